"""Schulman 2020: bias and spread of k1, k2 and k3, on Gaussians by quadrature and on whole answers by enumeration.

The blog's table: samples of q = N(0, 1), p = N(mu, 1). The testbed's panels: samples of a policy on the path of
log-probs from the reference to pi*, with the KL of whole answers; `k3 by token` sums k3 over an answer's tokens, as
GRPO does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.ops.kl import k1, k2, k3
from rlpref.report import Interval
from rlpref.report.style import PALETTE
from rlpref.testbed.exact import answer_logps, expectation, log_reach, sequence_kl
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import Testbed, make_testbed

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
BY_TOKEN = "k3 by token"
LOOKS = {"k1": (PALETTE[0], "o"), "k2": (PALETTE[2], "s"), "k3": (PALETTE[1], "^"), BY_TOKEN: (PALETTE[3], "D")}
# (mu, estimator): bias and standard deviation in units of the true KL. The blog's table as remembered, not read.
REMEMBERED = {
    (0.1, "k1"): (0.0, 20.0),
    (0.1, "k2"): (0.002, 1.42),
    (0.1, "k3"): (0.0, 1.42),
    (1.0, "k1"): (0.0, 2.0),
    (1.0, "k2"): (0.25, 1.73),
    (1.0, "k3"): (0.0, 1.7),
}


@dataclass(frozen=True)
class Grid:
    points: int  # of the quadrature
    vocab: int
    horizon: int
    prompts: int
    beta: float  # of pi*, to which the path of policies leads
    ways: list[float]  # share of log pi*/ref
    environments: list[int]


def gaussians(points: int) -> pd.DataFrame:
    """One row per mu and estimator: bias and standard deviation in units of the true KL, and the remembered ones."""
    x = torch.linspace(-12, 12, points, dtype=torch.float64)
    mass = (-0.5 * x**2).softmax(0)  # of q on an even grid: the trapezoid rule, exact to rounding for smooth tails
    rows = []
    for (mu, name), (bias, std) in REMEMBERED.items():
        values, kl = ESTIMATORS[name](0.5 * mu**2 - mu * x), 0.5 * mu**2
        mean = (mass * values).sum()
        spread = (mass * (values - mean) ** 2).sum().sqrt()
        row = {"mu": mu, "estimator": name, "bias": float(mean / kl - 1), "std": float(spread / kl)}
        rows.append(row | {"remembered_bias": bias, "remembered_std": std})
    return pd.DataFrame(rows)


def along_answers(task: Testbed, per_token: Tensor) -> Tensor:
    """[prompts, inner, vocab] the sum of a value [prompts, inner, vocab] of each token along every answer."""
    return log_reach(task, per_token)[:, :, None] + per_token


def whole_answers(grid: Grid, environment: int) -> list[dict]:
    """One row per policy and estimator: bias and standard deviation within a prompt, in units of the exact KL."""
    task = make_testbed(grid.vocab, grid.horizon, grid.prompts, environment, "ngram")
    best, rows = optimum(task, task.ref, task.rewards, grid.beta).policy, []
    for way in grid.ways:
        policy = (task.ref + way * (best - task.ref)).log_softmax(-1)
        kl = sequence_kl(task, policy, task.ref)
        whole = torch.where(task.ends, answer_logps(task, policy) - answer_logps(task, task.ref), 0.0)
        values = {name: estimate(whole) for name, estimate in ESTIMATORS.items()}
        values[BY_TOKEN] = along_answers(task, k3(policy - task.ref))
        for name, value in values.items():
            mean = expectation(task, policy, value)
            variance = expectation(task, policy, (value - mean[:, None, None]) ** 2).mean()
            row = {"environment": environment, "way": way, "kl": float(kl.mean()), "estimator": name}
            bias, std = float((mean - kl).mean() / kl.mean()), math.sqrt(variance) / float(kl.mean())
            rows.append(row | {"bias": bias, "std": std})
    return rows


def draw(table: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    with style():
        figure, axes = panels(3, height=2.6, title="k3 is unbiased and calm near the reference, not far from it")
        for name, (colour, marker) in LOOKS.items():
            own, offset = table[table["estimator"] == name], 0.25 * (list(LOOKS).index(name) - 1)
            at = torch.arange(len(own)) + offset
            axes[0].plot(at, own["std"], marker, color=colour, ms=5, ls="")
            axes[0].plot(at, own["remembered_std"], "_", color="black", ms=11, mew=1)
            for axis, value in zip(axes[1:], ("bias", "std")):
                spread = rows[rows["estimator"] == name].groupby("way")
                kl = spread["kl"].mean()
                axis.plot(kl, spread[value].mean(), color=colour, marker=marker, ms=3, lw=1, label=name)
                axis.fill_between(kl, spread[value].min(), spread[value].max(), color=colour, alpha=0.15, lw=0)
        axes[0].set(title="Gaussians; black: as remembered", ylabel="std / KL", yscale="log", ylim=(0.8, 30))
        axes[0].set_xticks([0, 1], ["p = N(0.1, 1)", "p = N(1, 1)"])
        axes[0].set(yticks=[1, 2, 5, 10, 20], yticklabels=["1", "2", "5", "10", "20"], xlim=(-0.6, 1.6))
        axes[1].set(title="whole answers: bias / KL", xlabel="exact KL(policy || reference), nats", xscale="log")
        axes[2].set(title="whole answers: std / KL", xlabel="exact KL(policy || reference), nats", xscale="log")
        axes[2].set_yscale("log")
        shown = axes[1].get_legend_handles_labels()
        figure.legend(*shown, loc="outside lower center", ncols=4, title="mean and range over tasks", title_fontsize=7)
    return figure


def claims(table: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Interval]:
    """The worst value of each; `near` is the policy next to the reference, `far` pi*."""
    off = rows.set_index("estimator")["bias"].abs()
    std = rows.pivot(index=["environment", "way"], columns="estimator", values="std")
    near, far = (std.xs(way, level="way") for way in (rows["way"].min(), rows["way"].max()))
    k2_bias = rows[(rows["estimator"] == "k2") & (rows["way"] == rows["way"].max())]["bias"]
    closed = {0.1: 20.0, 1.0: 2.0}  # std of k1 is |mu|, the KL mu^2 / 2
    own = table[table["estimator"] == "k1"]
    return {
        "blog_std": exactly((table["std"] / table["remembered_std"] - 1).abs().max()),
        "blog_bias": exactly((table["bias"] - table["remembered_bias"]).abs().max()),
        "k1_std": exactly((own["std"] - own["mu"].map(closed)).abs().max()),
        "unbiased": exactly(off[["k1", "k3", BY_TOKEN]].max()),
        "k2_far": exactly(k2_bias.min()),
        "near": exactly((near["k3"] / near["k1"]).max()),
        "far": exactly((far["k3"] / far["k1"]).min()),
        "by_token": exactly((std[BY_TOKEN] / std["k3"]).max()),
    }


def make(grid: Grid, folder: Path) -> Findings:
    table = gaussians(grid.points)
    rows = pd.DataFrame([row for environment in grid.environments for row in whole_answers(grid, environment)])
    return Findings(draw(table, rows), claims(table, rows), {"gaussians": table, "answers": rows})


if __name__ == "__main__":
    main(make, Grid)
