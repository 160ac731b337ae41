"""Rounds of rejection sampling, trained: the tabular policy's gold reward after each round beside its closed form.

The production trainer draws and imitates (algorithm=rejection): the best of N of the last round, the best of N of all
rounds so far, and the middle answer. The closed forms are those of experiments/f23_rejection_rounds.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

from exhibit import Findings, main, panels, style, train
from rlpref.report import Sweep, mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.exact import expectation
from rlpref.testbed.selection import order_statistic, rejection_rounds
from rlpref.testbed.task import Testbed, make_testbed

TITLES = {"last": "imitated: the last round", "all": "imitated: all rounds so far", "middle": "the middle answer"}
ROUND_ENDS = {"last": [1, 2, 3], "all": [1, 3, 6], "middle": [1, 2, 3]}  # in units of the first round's steps


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    kinds: list[str]  # in the first environment; the others have the first of them alone
    n: int
    middle: int
    shared: list[str]


def runs_of(grid: Grid) -> dict[str, list[str]]:
    """Name of the sweep -> its settings, three rounds each."""
    sweeps = {}
    for environment in grid.environments:
        for kind in grid.kinds if environment == grid.environments[0] else grid.kinds[:1]:
            stages = "all" if kind == "all" else "last"
            keep, k = ("median", grid.middle) if kind == "middle" else ("max", grid.n)
            sweeps[f"{kind}-{environment}"] = [
                *(f"testbed.seed={environment}", f"algorithm.stages={stages}", f"algorithm.keep={keep}"),
                *(f"algorithm.k={k}", f"evaluation.times={ROUND_ENDS[kind][-1]}"),
            ]
    return sweeps


def closed_form(task: Testbed, kind: str, k: int, grid: Grid) -> float:
    """Mean gold reward after round k, sd of the reference."""
    if kind == "middle":
        rank = (grid.middle + 1) // 2
        policy = reduce(
            lambda before, _: order_statistic(task, before, task.rewards, rank, grid.middle), range(k), task.ref
        )
    else:
        policy = rejection_rounds(task, task.ref, task.rewards, grid.n, k, kind == "all")
    return float(expectation(task, policy, task.rewards).mean())


def rounds(found: Sweep, grid: Grid) -> pd.DataFrame:
    """One row per run and round: the exact gold reward of the trained policy, and the closed form."""
    rows = []
    for run in found.done.itertuples():
        config = yaml.safe_load(found.configs[run.run])
        task, kind = make_testbed(**config["testbed"]), run.run.split("-")[0]
        own = found.history[(found.history["run"] == run.run) & found.history["exact/reward"].notna()]
        gold = own[own["step"] > 0].set_index("step")["exact/reward"]
        first = gold.index.max() // ROUND_ENDS[kind][-1]
        for k, end in enumerate(ROUND_ENDS[kind], 1):
            row = {"kind": kind, "environment": task.seed, "seed": run.seed, "round": k}
            rows.append(row | {"gold": gold[first * end], "closed": closed_form(task, kind, k, grid)})
    return pd.DataFrame(rows)


def draw(rows: pd.DataFrame, grid: Grid) -> Figure:
    with style():
        title = "Trained rounds of rejection sampling end where their closed form says"
        figure, axes = panels(len(grid.kinds), 1, 2.4, title)
        for axis, kind in zip(axes, grid.kinds):
            for i, (environment, own) in enumerate(rows[rows["kind"] == kind].groupby("environment")):
                axis.plot([0, 1, 2, 3], [0, *own.groupby("round")["closed"].first()], "k-", lw=1)
                shift = own["round"] + 0.06 * (own["seed"] - own["seed"].median())
                axis.plot(shift, own["gold"], "o", ms=3.5, color=PALETTE[i], label=f"environment {environment}")
            axis.plot([], [], "k-", lw=1, label="closed form")
            axis.set(xlabel="round", title=TITLES[kind], xticks=[0, 1, 2, 3], ylim=(-0.6, 1.1 * rows["gold"].max()))
            axis.legend(loc="upper left" if kind == "middle" else "lower right")
        axes[0].set_ylabel("gold reward, sd (a point: a seed)")
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = rounds(train(folder, runs_of(grid), grid.shared), grid)
    off = (rows["gold"] - rows["closed"]).abs().groupby([rows["kind"], rows["environment"], rows["seed"]]).max()
    last = rows[rows["round"] == 3].pivot(index=["environment", "seed"], columns="kind", values="gold").dropna()
    values = {kind: mean_interval(off[kind]) for kind in TITLES}
    values["all_below"] = mean_interval(last["last"] - last["all"])
    return Findings(draw(rows, grid), values, {"rounds": rows})


if __name__ == "__main__":
    main(make, Grid)
