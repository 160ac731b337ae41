"""RLOO, ReMax, GRPO, PPO: exact bias and variance of each policy gradient, by enumeration of all tuples of answers.

Three policies on each task: the reference, half way to pi* in log-probs, and nine tenths of the way. The objective is
J = E[r] - beta KL. What a baseline saves depends on where the rewards are centred, so the last panel shifts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exhibit import Findings, exactly, main, panels, style
from rlpref.report import Interval
from rlpref.report.style import PALETTE, shade
from rlpref.testbed.estimators import ESTIMATORS
from rlpref.testbed.gradients import enumerate_draws, objective_gradient, quality
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import make_testbed

WAY = {"at the reference": 0.0, "half way to pi*": 0.5, "near pi*": 0.9}  # share of log pi*/ref
PLAIN, CENTRED, RLOO, REMAX = "REINFORCE, no baseline", "REINFORCE, exact mean", "RLOO", "ReMax"
UNBIASED = (PLAIN, CENTRED, RLOO, "RLOO, KL still to come", REMAX)
EXACT_CRITIC = ("PPO, GAE 1, exact values", "PPO, GAE 1, zero values", "PPO, GAE 0.95, exact values")
STD, GRPO = "group mean / std", "GRPO as published"
SHIFTED = {PLAIN: (PALETTE[1], "s"), REMAX: (PALETTE[2], "^"), RLOO: (PALETTE[0], "o"), CENTRED: (PALETTE[9], "v")}
ZERO = 1e-4  # where a bias of 0 is drawn


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    k: int
    beta: float
    shifts: list[float]
    environments: list[int]


def measure(grid: Grid, environment: int) -> list[dict]:
    """One row per policy, estimator and shift of the rewards: `Quality` of the estimator. Shifts at the reference."""
    task = make_testbed(grid.vocab, grid.horizon, grid.prompts, environment, "ngram")
    best = optimum(task, task.ref, task.rewards, grid.beta).policy
    rows = []
    for name, way in WAY.items():
        policy = (task.ref + way * (best - task.ref)).log_softmax(-1)
        exact = objective_gradient(task, policy, task.ref, task.rewards, grid.beta)  # no shift moves it
        for shift in grid.shifts if way == 0 else [0.0]:
            draws = enumerate_draws(task, policy, task.ref, task.rewards + shift, grid.beta, grid.k)
            for estimator in ESTIMATORS if shift == 0 else SHIFTED:
                found = vars(quality(draws, ESTIMATORS[estimator].surrogate, exact))
                row = {"environment": environment, "policy": name, "shift": shift, "estimator": estimator}
                rows.append(row | found)
    return rows


def variance_ratio(rows: pd.DataFrame, estimator: str, policies: Sequence[str], shift: float = 0.0) -> pd.Series:
    """Variance of the estimator over that of REINFORCE without a baseline, by environment and policy."""
    rows = rows[(rows["shift"] == shift) & rows["policy"].isin(policies)].set_index(["environment", "policy"])
    return rows[rows["estimator"] == estimator]["variance"] / rows[rows["estimator"] == PLAIN]["variance"]


def dots(axis: Axes, rows: pd.DataFrame, value: str) -> None:
    """A dot per environment and policy on the line of each estimator."""
    names = list(ESTIMATORS)[::-1]
    for i, (policy, group) in enumerate(rows.groupby("policy", sort=False)):
        lines = group["estimator"].map(names.index) + 0.22 * (1 - i)
        colour = shade(PALETTE[0], i, len(WAY))
        marker = ("o", "s", "^")[i]
        axis.plot(group[value].clip(lower=ZERO), lines, marker, ms=3, color=colour, mew=0, label=policy)
    axis.set(xscale="log", ylim=(-0.6, len(names) - 0.4))
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.grid(axis="y", visible=False)
    for line in range(len(names) - 1):
        axis.axhline(line + 0.5, color="0.92", lw=0.6)


def draw(rows: pd.DataFrame) -> Figure:
    centred = rows[rows["shift"] == 0]
    with style():
        figure, axes = panels(3, height=3.4, title="Leave-one-out baselines do not bias the gradient; GRPO's std does")
        dots(axes[0], centred, "bias")
        axes[0].set(title="bias, a dot per task", xlabel="|E g - grad J| / |grad J|", xlim=(ZERO / 2, 200))
        axes[0].set_xticks([ZERO, 1e-2, 1, 100], ["0", "0.01", "1", "100"])
        dots(axes[1], centred, "variance")
        axes[1].set(title="variance, a dot per task", xlabel="E |g - E g|² / |grad J|²", yticklabels=[])
        axes[1].set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
        shifted = rows[rows["policy"] == next(iter(WAY))]
        for estimator, (colour, marker) in SHIFTED.items():
            spread = shifted[shifted["estimator"] == estimator].groupby("shift")["variance"]
            name = estimator.removeprefix("REINFORCE, ")
            axes[2].plot(spread.mean(), color=colour, marker=marker, ms=3, lw=1, label=name)
            axes[2].fill_between(spread.mean().index, spread.min(), spread.max(), color=colour, alpha=0.2, lw=0)
        axes[2].set(title="variance at the reference", xlabel="mean reward, in its sds", ylim=(0, 8))
        axes[2].legend(loc="upper left", title="mean, range over tasks", title_fontsize=7, alignment="left")
    return figure


def claims(rows: pd.DataFrame, k: int) -> dict[str, Interval]:
    """The largest or smallest value over environments and policies; shifted: at the reference, at the largest shift."""
    centred = rows[rows["shift"] == 0].set_index("estimator")
    own_mean = centred.loc["group mean"]
    start, near, last = list(WAY)[:1], list(WAY)[2:], rows["shift"].max()
    return {
        "unbiased": exactly(centred.loc[list(UNBIASED), "bias"].max()),
        "critic": exactly(centred.loc[list(EXACT_CRITIC), "bias"].max()),
        "group_mean": exactly(max((own_mean["bias"] - 1 / k).abs().max(), (1 - own_mean["scale"] - 1 / k).abs().max())),
        "std": exactly(centred.loc[[STD, GRPO], "bias"].min()),
        "length": exactly(centred.loc["RLOO / length", "bias"].min()),
        "grpo_cosine": exactly(centred.loc[GRPO, "cosine"].min()),
        "whitened": exactly(centred.loc["PPO, GAE 0.95, exact values, whitened", "scale"].max()),
        "rloo_everywhere": exactly(variance_ratio(rows, RLOO, list(WAY)).max()),
        "rloo_near": exactly(variance_ratio(rows, RLOO, near).max()),
        "rloo_shifted": exactly(variance_ratio(rows, RLOO, start, last).max()),
        "remax_everywhere": exactly(variance_ratio(rows, REMAX, list(WAY)).max()),
        "remax_near": exactly(variance_ratio(rows, REMAX, near).max()),
        "remax_shifted": exactly(variance_ratio(rows, REMAX, start, last).max()),
    }


def make(grid: Grid, folder: Path) -> Findings:
    rows = pd.DataFrame([row for environment in grid.environments for row in measure(grid, environment)])
    return Findings(draw(rows), claims(rows, grid.k), {"estimators": rows})


if __name__ == "__main__":
    main(make, Grid)
