"""Coste et al. 2023: ensembles of reward models that are careful where their members disagree resist over-optimisation.

Five proxies share their pairs and differ in initial weights and minibatches. Best-of-n up to 12,500 and the path of
KL-regularised optima are exact, on one member (the mean of what each of the five leads to), on the members' mean, their
worst score, and their mean less their variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exhibit import Findings, main, panels, style
from proxies import NAMES, Recipe, band, both_paths, fitted, labelled, peaked_testbed, selections, strengths, unit_scale
from rlpref.report import Interval, mean_interval
from rlpref.report.style import PALETTE
from rlpref.rewards.learned import combined

COMBINED = {"mean": "mean", "worst case": "worst", "mean - variance": "variance"}
COLOURS = dict(zip(("one model", *COMBINED), (PALETTE[9], PALETTE[0], PALETTE[1], PALETTE[2])))


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    noise: list[float]  # shares of labels turned round
    members: int
    hidden: int
    pairs: int
    penalty: float  # of the gold reward, for each two equal tokens
    variance_weight: float  # per standard deviation of the score
    largest_n: int
    points: int  # of each path
    smallest_beta: float  # in standard deviations of the score
    steps: int


def paths(grid: Grid) -> pd.DataFrame:
    """Points of both paths by environment, noise and what is optimised."""
    ns, betas = selections(grid.largest_n, grid.points), strengths(grid.smallest_beta, grid.points)
    keys = [(environment, noise) for environment in grid.environments for noise in grid.noise]
    tasks = {environment: peaked_testbed(environment, grid.penalty) for environment in grid.environments}
    data = [labelled(tasks[environment], grid.pairs, environment, noise) for environment, noise in keys]
    each = [own for own in data for _ in range(grid.members)]
    recipe = Recipe(steps=grid.steps, batch=48, lr=0.01)
    tables = torch.stack(fitted(each, grid.hidden, recipe, range(len(each)))).unflatten(0, (len(keys), grid.members))
    points = []
    for (environment, noise), members in zip(keys, tables):
        task = tasks[environment]
        alone = pd.concat([both_paths(task, member, ns, betas) for member in members])
        found = {"one model": alone.groupby(["path", "at"], as_index=False).mean()}
        for name, combine in COMBINED.items():
            score = unit_scale(task, combined(members, combine, grid.variance_weight))
            found[name] = both_paths(task, score, ns, betas)
        for name, rows in found.items():
            points.append(rows.assign(environment=environment, noise=noise, optimised=name))
    return pd.concat(points, ignore_index=True)


def ends(points: pd.DataFrame) -> pd.DataFrame:
    """Peak and final gold by path, noise, what is optimised (rows) and environment (columns under each)."""
    ordered = points.sort_values("kl").groupby(["path", "noise", "optimised", "environment"])["gold"]
    return pd.DataFrame({"peak": ordered.max(), "final": ordered.last()}).unstack("environment")


def gains(found: pd.DataFrame, path: str, noise: float, name: str) -> Interval:
    """Final gold on an ensemble less that on one model, over environments."""
    final = found["final"]
    return mean_interval(final.loc[path, noise, name] - final.loc[path, noise, "one model"])


def kept(found: pd.DataFrame, path: str, noise: float, name: str) -> Interval:
    """Final over peak gold: 1 where nothing falls."""
    return mean_interval(found["final"].loc[path, noise, name] / found["peak"].loc[path, noise, name])


def draw_gains(axis: Axes, found: pd.DataFrame, noise: float) -> None:
    for i, name in enumerate(COMBINED):
        for shift, path, marker in ((-0.12, "bon", "o"), (0.12, "rl", "s")):
            span = gains(found, path, noise, name)
            error = np.array([[span.mean - span.low], [span.high - span.mean]])
            label = {"bon": "BoN", "rl": "KL path"}[path] if i == 0 else None
            look = {"color": COLOURS[name], "marker": marker, "ms": 4.5, "ls": "", "elinewidth": 1.1}
            axis.errorbar([i + shift], [span.mean], error, mfc="white" if path == "rl" else None, label=label, **look)
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(range(len(COMBINED)), ["mean", "worst\ncase", "mean -\nvariance"], fontsize=7)
    axis.set(title="end less one model's", ylabel="gold reward, sd", xlim=(-0.5, 2.5), ylim=(-0.9, 1.5))
    axis.legend(loc="upper left", ncols=2, columnspacing=0.8, handletextpad=0.2)


def draw(points: pd.DataFrame, found: pd.DataFrame, grid: Grid) -> Figure:
    with style():
        figure, axes = panels(3, len(grid.noise), title="Ensembles whose members share their pairs share their errors")
        for row, noise in enumerate(grid.noise):
            for axis, path in zip(axes[3 * row :], NAMES):
                own = points[(points["noise"] == noise) & (points["path"] == path)]
                for name, colour in COLOURS.items():
                    shaded = name in ("one model", "mean - variance")
                    band(axis, own[own["optimised"] == name], "gold", colour, shaded, label=name)
                axis.set(title=f"{NAMES[path]}, {noise:.0%} wrong labels", ylabel="gold reward, sd")
                axis.set(xlabel="d = sqrt(KL), sqrt nats", ylim=(-0.6, 2.9))
            draw_gains(axes[3 * row + 2], found, noise)
        axes[0].legend(loc="upper left")
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    points = paths(grid)
    found = ends(points)
    worst = max(grid.noise)
    values = {
        "worst_noise": gains(found, "bon", worst, "worst case"),
        "variance_noise": gains(found, "bon", worst, "mean - variance"),
        "mean_noise": gains(found, "bon", worst, "mean"),
        "variance_clean": gains(found, "bon", min(grid.noise), "mean - variance"),
        "variance_keeps": kept(found, "bon", worst, "mean - variance"),
        "one_falls": kept(found, "bon", worst, "one model"),
        "variance_path": gains(found, "rl", worst, "mean - variance"),
    }
    final = found["final"]
    values["careful"] = mean_interval(final.loc["bon", worst, "mean - variance"] - final.loc["bon", worst, "mean"])
    notes = [
        f"Proxies of {grid.hidden} units, {grid.pairs} pairs; members share pairs, as in the paper. Bands: 95% "
        "intervals over environments, of one model and of mean - variance. Scores have variance 1 under the reference.",
    ]
    table = found.stack("environment", future_stack=True).reset_index()
    return Findings(draw(points, found, grid), values, {"ends": table}, notes)


if __name__ == "__main__":
    main(make, Grid)
