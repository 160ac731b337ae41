"""T rounds of DPO with a rolling reference aim at beta / T: what "iterations help" tables confound.

Each round minimises the population loss of the registry's DPO on Bradley-Terry pairs of the policy of the round before,
with that policy as the reference (rolling) or the first one (fixed).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import make_loss
from rlpref.report.figures import KL_LABEL
from rlpref.report.style import PALETTE, root_scale
from rlpref.testbed.exact import expectation, sequence_kl
from rlpref.testbed.optima import frontier, optimum
from rlpref.testbed.population import population_argmin
from rlpref.testbed.preferences import bradley_terry
from rlpref.testbed.task import Testbed, make_testbed

COLOURS = {"rolling": PALETTE[1], "fixed": PALETTE[0]}


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    vocab: int
    horizon: int
    prompts: int
    beta: float
    rounds: int


def follow(task: Testbed, beta: float, rounds: int, which: str) -> list[dict]:
    """One row per round: the KL to what theory says (nats), the KL to the first reference, the reward."""
    loss, policy, rows = make_loss("dpo", beta=beta), task.ref, []
    for t in range(1, rounds + 1):
        ref = policy if which == "rolling" else task.ref
        policy = population_argmin(task, loss, ref, policy, bradley_terry(task), start=policy).policy
        aim = optimum(task, task.ref, task.rewards, beta / t if which == "rolling" else beta).policy
        kl, reward = sequence_kl(task, policy, task.ref), expectation(task, policy, task.rewards)
        row = {"environment": task.seed, "reference": which, "round": t}
        row["kl_to_theory"] = max(0.0, float(sequence_kl(task, policy, aim).max()))
        rows.append(row | {"kl": float(kl.mean()), "reward": float(reward.mean())})
    return rows


def draw(rows: pd.DataFrame, task: Testbed) -> Figure:
    shown = rows[rows["environment"] == task.seed]
    line = pd.DataFrame(frontier(task, task.ref, task.rewards))
    with style():
        figure, axes = panels(3, title="A rolling reference multiplies 1/β by the round; a fixed one stays")
        axes[0].plot(line["kl"], line["reward"], color="black", lw=1.3, label="exact frontier")
        for which, marker in (("rolling", "s"), ("fixed", "o")):
            path, colour = shown[shown["reference"] == which], COLOURS[which]
            axes[0].plot(path["kl"], path["reward"], marker=marker, ms=4, ls="", color=colour, label=which)
            for _, own in rows[rows["reference"] == which].groupby("environment"):
                axes[1].plot(own["round"], own["kl"], marker=marker, ms=3, lw=0.9, color=colour)
                axes[2].plot(own["round"], own["kl_to_theory"].clip(1e-17), marker=marker, ms=3, lw=0.9, color=colour)
        root_scale(axes[0], "x", 1.1 * shown["kl"].max())
        axes[0].set(xlabel=KL_LABEL, ylabel="expected reward, sd", title=f"environment {task.seed}, by round")
        axes[1].set(ylabel="KL(policy || first reference), nats", title="how far, all environments")
        axes[2].set(ylabel="KL to pi_ref exp(T r/β)/Z, nats", yscale="log", title="distance to theory")
        for axis in axes[1:]:
            axis.set_xlabel("round T")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].legend()
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    tasks = [make_testbed(grid.vocab, grid.horizon, grid.prompts, seed, "ngram") for seed in grid.environments]
    rows = pd.DataFrame(
        [row for task in tasks for which in COLOURS for row in follow(task, grid.beta, grid.rounds, which)]
    )
    worst = rows.groupby("reference")["kl_to_theory"].max()
    last = rows[rows["round"] == grid.rounds].pivot(index="environment", columns="reference", values="kl")
    values = {which: exactly(worst[which]) for which in COLOURS}
    return Findings(
        draw(rows, tasks[0]), values | {"spent": exactly((last["rolling"] / last["fixed"]).min())}, {"rounds": rows}
    )


if __name__ == "__main__":
    main(make, Grid)
