"""Gao, Schulman & Hilton 2022: gold reward rises, then falls, in the square root of the KL spent on a proxy.

Best-of-n for n up to 60,000 and the path of KL-regularised optima are exact, for proxies of several sizes and amounts
of data. Nothing but the proxies is trained or drawn. Points of a cell (size, pairs) are means over the seeds of one
environment; intervals and bands are over environments.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from proxies import (
    FORMS,
    NAMES,
    Recipe,
    band,
    both_paths,
    correlation,
    fitted,
    labelled,
    peaked_testbed,
    selections,
    strengths,
)
from rlpref.report import Interval, mean_interval
from rlpref.report.gao import fit_gao
from rlpref.report.style import PALETTE, plain_logs, shade
from rlpref.testbed.optima import tilted_path
from rlpref.testbed.selection import best_of_n_kl_bound
from rlpref.testbed.task import Testbed

NEAR = 1000  # the n up to which the paper measured, and from which it looked further
STEEP = 1e4  # a beta at which the path is straight in sqrt(KL)
CELL = ["environment", "hidden", "pairs"]
COLOURS = {"bon": PALETTE[0], "rl": PALETTE[1]}
SHORT = {"bon": "BoN", "rl": "KL"}  # in legends


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    seeds: list[int]  # of pairs and initial weights
    hidden: list[int]
    pairs: list[int]
    penalty: float  # of the gold reward, for each two equal tokens
    largest_n: int
    points: int  # of each path
    smallest_beta: float  # in standard deviations of the proxy
    steps: int
    shown_pairs: int  # of the panels over sizes
    shown_hidden: int  # of the panel over data


def paths(grid: Grid, penalty: float, sizes: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(points of both paths of every proxy, one row per proxy): KL in nats, rewards in gold's and the proxy's own
    standard deviations."""
    drawn = list(itertools.product(grid.environments, grid.seeds))
    tasks = {environment: peaked_testbed(environment, penalty) for environment in grid.environments}
    data = [labelled(tasks[environment], max(grid.pairs), 100 * environment + seed) for environment, seed in drawn]
    sets = [(key, n, own.first(n)) for key, own in zip(drawn, data) for n in grid.pairs]
    ns, betas = selections(grid.largest_n, grid.points), strengths(grid.smallest_beta, grid.points)
    points, proxies = [], []
    for hidden in sizes:
        recipe = Recipe(steps=grid.steps, batch=48, lr=0.01)
        tables = fitted([own for _, _, own in sets], hidden, recipe, range(len(sets)))
        for ((environment, seed), n, _), proxy in zip(sets, tables):
            key = {"environment": environment, "seed": seed, "hidden": hidden, "pairs": n}
            points.append(both_paths(tasks[environment], proxy, ns, betas).assign(**key))
            proxies.append(key | near_the_reference(tasks[environment], proxy))
    return pd.concat(points, ignore_index=True), pd.DataFrame(proxies)


def near_the_reference(task: Testbed, proxy: Tensor) -> dict[str, float]:
    """The correlation of proxy and gold, and the slope of gold in sqrt(KL) where the path begins."""
    kl, means = tilted_path(task, task.ref, proxy, [STEEP], [task.rewards])
    return {"correlation": correlation(task, proxy, task.rewards), "slope": float(means[0, 0] / kl[0].sqrt())}


def averaged(points: pd.DataFrame) -> pd.DataFrame:
    """Points of each cell's paths, means over seeds, in the order of the KL."""
    mean = points.groupby([*CELL, "path", "at"], as_index=False)[["kl", "gold", "proxy"]].mean()
    return mean.sort_values([*CELL, "path", "kl"])


def cells(points: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and path: peak and final gold, coefficients and R2 of the path's form, and how far the form
    that was fitted to the near part (n <= 1000) lies from the end."""
    rows = []
    for key, own in averaged(points).groupby([*CELL, "path"]):
        form, gold = FORMS[key[-1]], own["gold"].to_numpy()
        fit, near = fit_gao(own["kl"], gold, form), own["at"] <= NEAR
        row = dict(zip([*CELL, "path"], key)) | {"peak": gold.max(), "final": gold[-1], "r2": fit.r2}
        row |= {"alpha": fit.alpha.mean, "beta": fit.beta.mean, "missed": np.nan}
        if form == "best_of_n":
            guess = fit_gao(own["kl"][near], own["gold"][near], form).gold(own["kl"].to_numpy()[-1:])
            row["missed"] = abs(guess[0] - gold[-1])
        rows.append(row)
    return pd.DataFrame(rows)


def kl_ratio(points: pd.DataFrame) -> list[float]:
    """[environments] KL with which the RL path reaches the proxy score of best-of-n at n = NEAR, over best-of-n's."""
    found = {}
    for key, own in averaged(points).groupby(CELL):
        bon, rl = (own[own["path"] == name] for name in FORMS)
        at = bon[bon["at"] <= NEAR].iloc[-1]
        found[key] = np.interp(at["proxy"], rl["proxy"], rl["kl"]) / at["kl"]
    return pd.Series(found).groupby(level=0).mean().tolist()


def over(frame: pd.DataFrame, of: Callable[[pd.DataFrame], float]) -> Interval:
    """Mean and interval, over environments, of a number of each."""
    return mean_interval([of(own) for _, own in frame.groupby("environment")])


def good_fits(own: pd.DataFrame) -> float:
    return float((own["r2"] >= 0.9).mean())


def kept(own: pd.DataFrame) -> float:
    """Final gold over peak gold, both summed over cells: 1 where nothing falls."""
    return own["final"].sum() / own["peak"].sum()


def order_of_peaks(axis: str) -> Callable[[pd.DataFrame], float]:
    """Spearman's correlation of `axis` with the peak gold, a mean over all else."""

    def of(own: pd.DataFrame) -> float:
        peaks = own.groupby(axis)["peak"].mean()
        return float(spearmanr(peaks.index, peaks).statistic)

    return of


def values(points: pd.DataFrame, proxies: pd.DataFrame, found: pd.DataFrame, linear: pd.DataFrame) -> dict:
    bon, rl = (found[found["path"] == name] for name in FORMS)
    drawn = points[points["path"] == "bon"].sort_values("at")
    rises = drawn.groupby([*CELL, "seed"])["proxy"].apply(lambda proxy: proxy.diff().min())
    largest = bon[(bon["hidden"] == bon["hidden"].max()) & (bon["pairs"] == bon["pairs"].max())]
    return {
        "form_bon": over(bon, good_fits),
        "form_rl": over(rl[rl["peak"] > 1], good_fits),
        "small_falls": over(bon[bon["hidden"] == bon["hidden"].min()], kept),
        "large_keeps": over(largest, kept),
        "data": over(bon, order_of_peaks("pairs")),
        "size": over(bon, order_of_peaks("hidden")),
        "proxy_rises": exactly(rises.min()),
        "kl_bound": exactly((drawn["kl"] - drawn["at"].map(best_of_n_kl_bound)).max()),
        "slope": exactly((proxies["slope"] / 2**0.5 - proxies["correlation"]).abs().max()),
        "extrapolation": over(bon, lambda own: own["missed"].mean()),
        "rl_kl": mean_interval(kl_ratio(points)),
        "linear_gold": over(linear[linear["path"] == "bon"], kept),
    }


def draw_paths(axes: Sequence[Axes], mean: pd.DataFrame, grid: Grid) -> None:
    for axis, path in zip(axes, FORMS):
        own = mean[(mean["path"] == path) & (mean["pairs"] == grid.shown_pairs)]
        for i, hidden in enumerate(grid.hidden):
            colour, size = shade(PALETTE[0], i, len(grid.hidden)), own[own["hidden"] == hidden]
            band(axis, size, "gold", colour, shaded=hidden in (min(grid.hidden), max(grid.hidden)), label=f"{hidden}")
            band(axis, size, "proxy", colour, ls="--")
        axis.set(title=f"{NAMES[path]}, {grid.shown_pairs:,} pairs", ylim=(-0.7, 4.8), ylabel="reward, sd")
    axes[0].legend(title="units of the proxy", title_fontsize=7, loc="upper left", ncols=2, columnspacing=0.9)
    kinds = [Line2D([], [], color="0.3", ls=line, label=name) for line, name in (("-", "gold"), ("--", "proxy"))]
    axes[1].legend(handles=kinds, loc="upper left")
    own = mean[(mean["path"] == "bon") & (mean["hidden"] == grid.shown_hidden)]
    for i, pairs in enumerate(grid.pairs):
        colour, shaded = shade(PALETTE[2], i, len(grid.pairs)), pairs in (min(grid.pairs), max(grid.pairs))
        band(axes[2], own[own["pairs"] == pairs], "gold", colour, shaded, label=f"{pairs:,}")
    axes[2].set(title=f"{NAMES['bon']}, {grid.shown_hidden} units", ylabel="gold reward, sd", ylim=(-0.7, 4.8))
    axes[2].legend(title="pairs", title_fontsize=7, loc="upper left", ncols=2, columnspacing=0.9)
    for axis in axes:
        axis.set_xlabel("d = sqrt(KL), sqrt nats")


def draw_coefficients(axis: Axes, found: pd.DataFrame, grid: Grid) -> None:
    most = found[found["pairs"] == max(grid.pairs)]
    styles = (("alpha", "-", "o"), ("beta", "--", "s"))
    for (path, colour), (column, line, marker) in itertools.product(COLOURS.items(), styles):
        cells = most[most["path"] == path].groupby("hidden")[column]
        mean, low, high = np.array([mean_interval(cell) for _, cell in cells]).T
        look = {"color": colour, "ls": line, "marker": marker, "ms": 3.5, "lw": 1.1, "elinewidth": 0.8}
        axis.errorbar(grid.hidden, mean, (mean - low, high - mean), label=f"{column}, {SHORT[path]}", **look)
    axis.set(xscale="log", xlabel="units of the proxy", ylabel="coefficient", ylim=(-0.6, 3.2))
    axis.set_title(f"coefficients, {max(grid.pairs):,} pairs")
    axis.legend(loc="upper left", ncols=2, columnspacing=0.7, handlelength=1.2)


def draw_peaks(axis: Axes, found: pd.DataFrame, grid: Grid) -> None:
    for i, hidden in enumerate(grid.hidden):
        own = found[(found["path"] == "bon") & (found["hidden"] == hidden)].groupby("pairs")["peak"].mean()
        axis.plot(
            own.index, own, color=shade(PALETTE[0], i, len(grid.hidden)), marker="o", ms=3, lw=1.1, label=f"{hidden}"
        )
    axis.set(
        xscale="log", xlabel="pairs", ylabel="peak gold reward, sd", title=f"peak of {NAMES['bon']}", ylim=(0, 3.4)
    )
    axis.legend(title="units of the proxy", title_fontsize=7, loc="upper left", ncols=3, columnspacing=0.9)


def draw_gold_by_proxy(axis: Axes, mean: pd.DataFrame, grid: Grid) -> None:
    ends = ((min(grid.hidden), PALETTE[3]), (max(grid.hidden), PALETTE[2]))
    for (hidden, colour), (path, line) in itertools.product(ends, (("bon", "-"), ("rl", "--"))):
        own = mean[(mean["hidden"] == hidden) & (mean["path"] == path) & (mean["pairs"] == grid.shown_pairs)]
        own = own.groupby("at")[["proxy", "gold"]].mean().sort_values("proxy")
        axis.plot(own["proxy"], own["gold"], color=colour, ls=line, lw=1.2, label=f"{hidden}, {SHORT[path]}")
    axis.set(xlabel="proxy reward, sd", ylabel="gold reward, sd", title=f"gold by proxy, {grid.shown_pairs:,} pairs")
    axis.set_ylim(-0.2, 3.4)
    axis.legend(title="units, path (BoN: best-of-n)", title_fontsize=7, loc="upper left", ncols=2, columnspacing=0.8)


def draw(points: pd.DataFrame, found: pd.DataFrame, grid: Grid) -> Figure:
    mean = averaged(points)
    with style():
        figure, axes = panels(3, 2, 2.5, title="Optimised against a small proxy, gold reward rises and then falls")
        draw_paths(axes[:3], mean, grid)
        draw_coefficients(axes[3], found, grid)
        draw_peaks(axes[4], found, grid)
        draw_gold_by_proxy(axes[5], mean, grid)
        plain_logs(figure)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    points, proxies = paths(grid, grid.penalty, grid.hidden)
    found = cells(points)
    linear = cells(paths(grid, 0.0, grid.hidden[:1])[0])
    notes = [
        "Each size of proxy is a stack of MLPs fitted at once (experiments/proxies.py) with the registry's "
        "bradley_terry loss: the production trainer's models do not come in sizes of 1 to 64 units.",
        "Both paths are exact; no policy is trained. The KL path is the best that RL could do, so that RL spends no "
        "more KL than best-of-n here, by construction, where the paper's PPO spends far more.",
    ]
    notes.append("Shaded: 95% intervals over environments, of the smallest and the largest proxy or number of pairs.")
    curves = averaged(points).groupby(["hidden", "pairs", "path", "at"], as_index=False).mean()
    tables = {"cells": found, "curves": curves.drop(columns="environment")}
    return Findings(draw(points, found, grid), values(points, proxies, found, linear), tables, notes)


if __name__ == "__main__":
    main(make, Grid)
