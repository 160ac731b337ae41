"""Huang et al. 2024: chi-squared regularisation resists over-optimisation of a reward model; the KL does not.

Both regularisers' optima on the same proxies are closed forms, exact on 19,608 answers to each of 4 prompts. Proxies
learned from few pairs; intervals and bands are over environments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exhibit import Findings, look, main, panels, style
from proxies import Recipe, fitted, labelled, peaked_testbed, strengths
from rlpref.report import Interval, mean_interval
from rlpref.report.style import plain_logs
from rlpref.testbed.divergences import CHI_SQUARED_KL, REVERSE_KL, f_path

REGULARISERS = {"KL": REVERSE_KL, "chi2 + KL": CHI_SQUARED_KL}
LOOKS = {"KL": "rl_optimum", "chi2 + KL": "chi_po"}


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    proxies: list[list[int]]  # hidden units and pairs of each
    penalty: float  # of the gold reward, for each two equal tokens
    smallest_beta: float  # in standard deviations of the proxy
    points: int
    steps: int


def paths(grid: Grid) -> pd.DataFrame:
    """One row per proxy, environment, regulariser and beta: KL (nats), gold and proxy reward (sd of the reference)."""
    betas = strengths(grid.smallest_beta, grid.points)
    tasks = [peaked_testbed(environment, grid.penalty) for environment in grid.environments]
    recipe = Recipe(steps=grid.steps, batch=48, lr=0.01)
    frames = []
    for hidden, pairs in grid.proxies:
        data = [labelled(task, pairs, task.seed) for task in tasks]
        for task, proxy in zip(tasks, fitted(data, hidden, recipe, grid.environments)):
            for name, divergence in REGULARISERS.items():
                path = f_path(task, task.ref, proxy, betas, divergence, [task.rewards, proxy])
                rows = {"beta": betas, "kl": path.kl, "gold": path.means[:, 0], "proxy": path.means[:, 1]}
                key = {"proxy_of": f"{hidden} units, {pairs} pairs", "environment": task.seed, "regulariser": name}
                frames.append(pd.DataFrame(rows).assign(**key))
    return pd.concat(frames, ignore_index=True)


def ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Peak and final gold (of the smallest beta), a mean over proxies, by regulariser and environment."""
    falling = rows.sort_values("beta", ascending=False).groupby(["regulariser", "environment", "proxy_of"])["gold"]
    return pd.DataFrame({"peak": falling.max(), "final": falling.last()}).groupby(level=[0, 1]).mean()


def at_equal_kl(rows: pd.DataFrame) -> Interval:
    """Gold of chi2 + KL at its smallest beta less that of the KL's path at the same KL, over environments."""
    found = {}
    for key, own in rows.sort_values("kl").groupby(["environment", "proxy_of"]):
        kl, chi = (own[own["regulariser"] == name] for name in REGULARISERS)
        end = chi.iloc[-1]
        found[key] = end["gold"] - np.interp(end["kl"] ** 0.5, kl["kl"].clip(lower=0) ** 0.5, kl["gold"])
    return mean_interval(pd.Series(found).groupby(level=0).mean())


def band(axis: Axes, own: pd.DataFrame, at: str, name: str) -> None:
    """Mean gold over environments with its 95% interval, at the beta or at the mean sqrt(KL)."""
    groups = own.groupby("beta", sort=False)
    spans = np.array([mean_interval(values) for _, values in groups["gold"]])
    where = groups["kl"].mean().clip(lower=0) ** 0.5 if at == "kl" else pd.Series(own["beta"].unique())
    axis.plot(where, spans[:, 0], lw=1.2, ms=3, label=name, **look(LOOKS[name]))
    axis.fill_between(where, spans[:, 1], spans[:, 2], color=look(LOOKS[name])["color"], alpha=0.18, lw=0)


def draw(rows: pd.DataFrame) -> Figure:
    kinds = list(rows["proxy_of"].unique())
    with style():
        title = "At a small beta chi-squared stays near the reference; the KL does not"
        figure, axes = panels(2, len(kinds), 2.3, title=title)
        for row, kind in enumerate(kinds):
            for axis, at in zip(axes[2 * row :], ("beta", "kl")):
                for name in REGULARISERS:
                    own = rows[(rows["proxy_of"] == kind) & (rows["regulariser"] == name)]
                    band(axis, own, at, name)
                axis.set(ylabel="gold reward, sd", title=f"proxy of {kind}; mean, 95% interval")
            axes[2 * row].set(xscale="log", xlabel="beta, sd of the proxy")
            axes[2 * row].invert_xaxis()
            axes[2 * row + 1].set(xlabel="sqrt(KL), sqrt nats")
        axes[0].legend(loc="upper left")
        plain_logs(figure)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = paths(grid)
    found = ends(rows)

    def kept(name: str) -> Interval:
        return mean_interval(found.loc[name, "final"] / found.loc[name, "peak"])

    kl, chi = (found.loc[name] for name in REGULARISERS)
    values = {
        "chi_keeps": kept("chi2 + KL"),
        "kl_loses": kept("KL"),
        "chi_ends_higher": mean_interval(chi["final"] - kl["final"]),
        "equal_kl": at_equal_kl(rows),
        "peaks": mean_interval(chi["peak"] - kl["peak"]),
    }
    notes = [
        f"Betas 1,000 to {grid.smallest_beta:g} standard deviations of the proxy. Closed-form optima only: the losses' "
        "own training (algorithm=chi_po) is not part of this exhibit.",
    ]
    return Findings(draw(rows), values, {"ends": found.reset_index(), "paths": rows}, notes)


if __name__ == "__main__":
    main(make, Grid)
