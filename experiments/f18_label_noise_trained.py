"""Robust DPO (2403.00409) and its rivals trained on pairs of which some labels are flipped: exact regret.

A table is trained with equal steps on every number of pairs; the seeds of an environment, each with pairs of its own,
go side by side. Dashed: the limit of many pairs, from f18_label_noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from f18_label_noise import optima
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exhibit import Findings, look, main, panels, style, train
from rlpref.report import mean_interval
from rlpref.testbed.exact import regret
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import Testbed, make_testbed

NAMES = {"cdpo": "conservative DPO", "dpo": "DPO", "ipo": "IPO", "robust": "robust DPO"}
PLENTY = 10_000  # epochs: the steps end a run before


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    beta: float
    tau: float
    flips: float
    pairs: list[int]
    steps: int
    evaluations: int
    environments: list[int]
    first_seed: int
    seeds: int  # so many, one after the other


def trained(grid: Grid, folder: Path) -> pd.DataFrame:
    """One row per evaluation: environment, pairs, method, seed, step, regret."""
    smoothing = f"algorithm.loss.label_smoothing={grid.flips}"
    at = f"beta={grid.beta}"
    methods = {
        "dpo": [at, "algorithm=dpo"],
        "cdpo": [at, "algorithm=dpo", "algorithm.name=cdpo", smoothing],
        "robust": [at, "algorithm=robust", smoothing],
        "ipo": [f"beta={grid.tau}", "algorithm=ipo"],
    }
    size = [f"testbed.vocab={grid.vocab}", f"testbed.horizon={grid.horizon}", f"testbed.prompts={grid.prompts}"]
    seeds = [f"seed={grid.first_seed}", f"replicas={grid.seeds}", "data.seed=${seed}"]
    noise = ["data.preference=flips", f"+data.preference_options.epsilon={grid.flips}"]
    length = [f"algorithm.epochs={PLENTY}", f"training.max_steps={grid.steps}"]
    asked = [f"evaluation.times={grid.evaluations}", "evaluation.k=2", "data.test_pairs=100", "logger.mode=disabled"]
    cells = {
        f"{method}-{pairs}-{environment}": [*own, f"data.pairs={pairs}", f"testbed.seed={environment}"]
        for environment in grid.environments
        for pairs in grid.pairs
        for method, own in methods.items()
    }
    found = train(folder, cells, ["model=tabular", *size, *seeds, *noise, *length, *asked])
    configs = {run: yaml.safe_load(text) for run, text in found.configs.items()}
    rows = found.history.dropna(subset=["exact/reward"])
    rows = rows.assign(
        environment=[configs[run]["testbed"]["seed"] for run in rows["run"]],
        pairs=[configs[run]["data"]["pairs"] for run in rows["run"]],
    )
    best = {each: attainable(grid, each) for each in grid.environments}
    objective = rows["exact/reward"] - grid.beta * rows["exact/kl"]  # at one beta: IPO's runs have another
    rows["regret"] = rows["environment"].map(best) - objective
    return rows[["environment", "pairs", "method", "seed", "step", "regret"]]


def task_of(grid: Grid, environment: int) -> Testbed:
    return make_testbed(grid.vocab, grid.horizon, grid.prompts, environment, "ngram")


def attainable(grid: Grid, environment: int) -> float:
    """The largest E[r] - beta KL of any policy."""
    task = task_of(grid, environment)
    return float(optimum(task, task.ref, task.rewards, grid.beta).v[:, 0].mean())


def limits(grid: Grid) -> pd.DataFrame:
    """[environments, methods] regret of each loss's optimum in the limit of many pairs."""
    found = {}
    for environment in grid.environments:
        task = task_of(grid, environment)
        policies = optima(task, grid.beta, grid.tau, grid.flips)
        found[environment] = {
            method: regret(task, policy, task.ref, task.rewards, grid.beta) for method, policy in policies.items()
        }
    return pd.DataFrame(found).T


def per_environment(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean over seeds: index (`by`, environment), a column for each method."""
    return rows.pivot_table("regret", [by, "environment"], "method")


def lines(axis: Axes, table: pd.DataFrame, methods: list[str], dash: str = "-") -> None:
    for method in methods:
        line = pd.DataFrame({at: mean_interval(cell)._asdict() for at, cell in table[method].groupby(level=0)}).T
        colour = look(method)["color"]
        axis.plot(line["mean"], **look(method), ms=4, lw=1.2, ls=dash, label=NAMES[method])
        axis.fill_between(line.index, line["low"], line["high"], color=colour, alpha=0.15, lw=0)


def draw(grid: Grid, rows: pd.DataFrame, limit: pd.DataFrame) -> Figure:
    ends = per_environment(rows[rows["step"] == rows["step"].max()], "pairs")
    with style():
        title = "Three labels in ten flipped: with many pairs robust DPO leads clearly"
        figure, axes = panels(3, height=2.5, title=title)
        lines(axes[0], ends, list(NAMES))
        for method in NAMES:
            axes[0].axhline(limit[method].mean(), color=look(method)["color"], lw=0.9, ls="--", zorder=1)
        axes[0].set(
            xscale="log", xlabel="pairs", ylabel="regret, units of reward", title="at the end (dashed: the limit)"
        )
        axes[0].set_xticks(grid.pairs, [f"{pairs:,}" for pairs in grid.pairs])
        axes[0].minorticks_off()
        for axis, pairs in zip(axes[1:], (min(grid.pairs), max(grid.pairs))):
            lines(axis, per_environment(rows[rows["pairs"] == pairs], "step"), list(NAMES))
            axis.set(xlabel="optimizer steps", ylabel="regret, units of reward", title=f"{pairs:,} pairs")
        top = max(axis.get_ylim()[1] for axis in axes)
        for axis in axes:
            axis.set_ylim(0, top)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = trained(grid, folder)
    ends = per_environment(rows[rows["step"] == rows["step"].max()], "pairs")
    many, few = ends.loc[max(grid.pairs)], ends.loc[min(grid.pairs)]
    path = per_environment(rows[rows["pairs"] == min(grid.pairs)], "step")["robust"].unstack()
    values = {
        "many": mean_interval(many["dpo"] - many["robust"]),
        "few": mean_interval(few["dpo"] - few["robust"]),
        "smoothing": mean_interval(many["cdpo"] - many["dpo"]),
        "runs_on": mean_interval(path.iloc[-1] - path.min()),
    }
    limit = limits(grid)
    notes = ["Means over environments, each the mean over its seeds, with 95% intervals over environments."]
    return Findings(draw(grid, rows, limit), values, {"regret": rows, "limits": limit}, notes)


if __name__ == "__main__":
    main(make, Grid)
