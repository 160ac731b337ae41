"""Chowdhury et al. 2024: labels flipped at a known rate; the optima of DPO, conservative DPO, robust DPO and IPO.

Every optimum is the argmin of the expected loss over all policies, pairs drawn from the reference and labelled by
Bradley-Terry with flips. IPO's tau is the one whose clean optimum has the least regret at beta.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from torch import Tensor

from exhibit import Findings, exactly, look, main, panels, style
from rlpref.losses import make_loss
from rlpref.report import mean_interval
from rlpref.testbed.duels import ipo_optimum
from rlpref.testbed.exact import expectation, regret, sequence_kl
from rlpref.testbed.optima import frontier_reward, optimum
from rlpref.testbed.population import population_argmin
from rlpref.testbed.preferences import flips
from rlpref.testbed.task import Testbed, make_testbed

NAMES = {"cdpo": "conservative DPO", "dpo": "DPO", "ipo": "IPO, its best clean tau", "robust": "robust DPO"}
MEASURES = {
    "regret": ("regret, units of reward", "how far from pi*"),
    "share": ("KL from the reference, share of pi*'s", "flips shrink the policy"),
    "gap": ("gap to the frontier, units of reward", "beyond shrinking: little"),
}


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    beta: float
    flips: list[float]
    environments: list[int]


def best_tau(task: Testbed, beta: float) -> float:
    """The tau at which IPO's optimum on clean labels has the least regret at `beta`."""

    def loss(log_tau: float) -> float:
        clean = ipo_optimum(task, task.ref, task.ref, flips(task, 0.0), 10**log_tau)
        return regret(task, clean, task.ref, task.rewards, beta)

    return 10 ** float(minimize_scalar(loss, bounds=(-3, 1), method="bounded").x)


def optima(task: Testbed, beta: float, tau: float, epsilon: float) -> dict[str, Tensor]:
    """The optimum of each loss where labels are flipped with probability `epsilon`: conditionals."""
    losses = {
        "dpo": make_loss("dpo", beta=beta),
        "cdpo": make_loss("dpo", beta=beta, label_smoothing=epsilon),
        "robust": make_loss("robust", beta=beta, label_smoothing=epsilon),
        "ipo": make_loss("ipo", tau=tau),
    }
    noisy = flips(task, epsilon)
    return {name: population_argmin(task, loss, task.ref, task.ref, noisy).policy for name, loss in losses.items()}


def measured(task: Testbed, policy: Tensor, beta: float) -> dict[str, float]:
    """`regret` at beta and `gap` in units of reward, `kl` to the reference and `kl_best` to pi* in nats."""
    kl = float(sequence_kl(task, policy, task.ref).mean())
    reward = float(expectation(task, policy, task.rewards).mean())
    best = optimum(task, task.ref, task.rewards, beta).policy
    return {
        "regret": regret(task, policy, task.ref, task.rewards, beta),
        "kl": kl,
        "gap": frontier_reward(task, task.ref, task.rewards, kl) - reward,
        "kl_best": float(sequence_kl(task, policy, best).mean()),
    }


def curves(grid: Grid) -> pd.DataFrame:
    """One row per environment, rate of flips and method: `measured`, and for IPO `kl_law`, nats to its closed form."""
    rows = []
    for environment in grid.environments:
        task = make_testbed(grid.vocab, grid.horizon, grid.prompts, environment, "ngram")
        tau = best_tau(task, grid.beta)
        clean = flips(task, 0.0)
        for epsilon in grid.flips:
            law = ipo_optimum(task, task.ref, task.ref, clean, tau / (1 - 2 * epsilon))
            for method, policy in optima(task, grid.beta, tau, epsilon).items():
                row = {"environment": environment, "flips": epsilon, "method": method}
                row |= measured(task, policy, grid.beta)
                if method == "ipo":
                    row |= {"tau": tau, "kl_law": float(sequence_kl(task, policy, law).mean())}
                rows.append(row)
    return pd.DataFrame(rows)


def draw(rows: pd.DataFrame) -> Figure:
    clean = rows["environment"].map(rows.query("method == 'robust' and flips == 0").set_index("environment")["kl"])
    shown = rows.assign(share=rows["kl"] / clean)
    with style():
        title = "Under flipped labels robust DPO keeps pi*; smoothing shrinks more than DPO"
        figure, axes = panels(3, height=2.5, title=title)
        for axis, (measure, (label, seen)) in zip(axes, MEASURES.items()):
            for method, name in NAMES.items():
                cells = shown[shown["method"] == method].groupby("flips")[measure]
                line = pd.DataFrame({epsilon: mean_interval(cell)._asdict() for epsilon, cell in cells}).T
                axis.plot(line["mean"], **look(method), ms=4, lw=1.2, label=name)
                axis.fill_between(line.index, line["low"], line["high"], color=look(method)["color"], alpha=0.15, lw=0)
            axis.set(xlabel="share of labels flipped", ylabel=label, title=seen)
            axis.set_ylim(bottom=-0.04 * axis.get_ylim()[1])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = curves(grid)
    regrets = rows.pivot_table("regret", ["environment", "flips"], "method").reset_index()
    noisy = regrets[regrets["flips"] > 0].groupby("environment")[["dpo", "cdpo", "ipo"]].mean()
    plain = rows[rows["method"] == "dpo"].pivot_table("kl", "environment", "flips")
    gaps = rows[rows["method"] == "dpo"].pivot_table("gap", "environment", "flips").max(axis=1)
    values = {
        "robust": exactly(rows[rows["method"] == "robust"]["kl_best"].max()),
        "smoothing": mean_interval(noisy["cdpo"] - noisy["dpo"]),
        "shrinks": mean_interval(plain[max(grid.flips)] / plain[0.0]),
        "ipo": exactly(rows["kl_law"].max()),
        "ipo_better": mean_interval(noisy["dpo"] - noisy["ipo"]),
        "gap": mean_interval(gaps),
    }
    notes = ["Lines and bands: mean over environments and its 95% interval."]
    return Findings(draw(rows), values, {"optima": rows}, notes)


if __name__ == "__main__":
    main(make, Grid)
