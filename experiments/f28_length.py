"""Park et al. 2024 (R-DPO): annotators who like long answers lengthen the policy, and a penalty per token undoes it.

Closed forms alone: annotators label by r + b |y|, the policy is ref exp((r + b |y| - alpha |y|)/beta)/Z. That this is
where R-DPO ends is checked on a small task by minimising the registry's loss over all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import make_loss
from rlpref.report import mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.exact import expectation, lengths, sequence_kl
from rlpref.testbed.optima import frontier_reward, length_penalised
from rlpref.testbed.population import population_argmin
from rlpref.testbed.preferences import length_biased, mixed_annotators
from rlpref.testbed.task import Testbed, answer_lengths, make_testbed


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    environments: list[int]
    bias: float  # b, sd of the gold reward for each token
    shares: list[float]  # alpha, in units of b, of the curves
    all_shares: list[float]  # the same, of the gap
    betas: list[float]
    one_beta: float  # of the gap and of R-DPO's minimum


def point(task: Testbed, labelled: Tensor, beta: float, alpha: float) -> dict[str, float]:
    """Mean KL to the reference in nats, gold reward, tokens and gap to the gold frontier of the penalised optimum of
    what the annotators label by."""
    policy = length_penalised(task, task.ref, labelled, beta, alpha).policy
    kl, gold = float(sequence_kl(task, policy, task.ref).mean()), float(expectation(task, policy, task.rewards).mean())
    row = {"kl": kl, "gold": gold, "tokens": float(expectation(task, policy, lengths(task)).mean())}
    return row | {"gap": frontier_reward(task, task.ref, task.rewards, kl) - gold}


def curves(task: Testbed, grid: Grid) -> pd.DataFrame:
    """One row for each way to count, beta and share of alpha in b. Annotators who count EOS count as the penalty does;
    the testbed's `length_biased` do not, and of the longest answers some have no EOS."""
    counted = {"EOS counted": lengths(task), "EOS not counted": answer_lengths(task)}
    rows = []
    for count, tokens in counted.items():
        labelled = (task.rewards + grid.bias * tokens) * task.ends
        cells = [(grid.one_beta, share) for share in grid.all_shares]
        if count == "EOS counted":
            cells += [(beta, share) for beta in grid.betas for share in grid.shares]
        for beta, share in cells:
            row = {"environment": task.seed, "count": count, "beta": beta, "share": share}
            rows.append(row | point(task, labelled, beta, share * grid.bias))
    return pd.DataFrame(rows).drop_duplicates(["count", "beta", "share"])


def identity(environment: int, grid: Grid, share: float) -> float:
    """Largest KL, nats, of the closed form to the minimum of the registry's R-DPO loss, on a small task."""
    task = make_testbed(vocab=3, horizon=3, prompts=2, seed=environment, reward="ngram")
    labelled = (task.rewards + grid.bias * lengths(task)) * task.ends
    loss = make_loss("r_dpo", beta=grid.one_beta, alpha=share * grid.bias)
    preference = mixed_annotators([labelled], [1.0])
    found = population_argmin(task, loss, task.ref, task.ref, preference).policy
    closed = length_penalised(task, task.ref, labelled, grid.one_beta, share * grid.bias).policy
    return float(sequence_kl(task, closed, found).max())


def by_annotators(environment: int, grid: Grid) -> float:
    """The same for DPO and the testbed's own length-biased annotators, who do not count EOS."""
    task = make_testbed(vocab=3, horizon=3, prompts=2, seed=environment, reward="ngram")
    preference = length_biased(task, grid.bias)
    found = population_argmin(task, make_loss("dpo", beta=grid.one_beta), task.ref, task.ref, preference).policy
    labelled = (task.rewards + grid.bias * answer_lengths(task)) * task.ends
    return float(sequence_kl(task, length_penalised(task, task.ref, labelled, grid.one_beta, 0.0).policy, found).max())


def findings(grid: Grid, rows: pd.DataFrame, tasks: list[Testbed]) -> dict:
    counted = rows[rows["count"] == "EOS counted"]
    undone, biased = counted[counted["share"] == 1], counted[counted["share"] == 0]
    other = rows[(rows["count"] != "EOS counted") & (rows["share"] == 1)]
    reference = {task.seed: float(expectation(task, task.ref, lengths(task)).mean()) for task in tasks}
    last = biased[biased["beta"] == min(grid.betas)].set_index("environment")["tokens"]
    gold = undone[undone["beta"] == min(grid.betas)].set_index("environment")["tokens"]
    at_one = biased[biased["beta"] == grid.one_beta].set_index("environment")["gap"]
    apart = [identity(task.seed, grid, share) for task in tasks for share in (0.0, 0.5, 1.0)]
    apart += [by_annotators(task.seed, grid) for task in tasks]
    return {
        "identity": exactly(max(apart)),
        "undone": exactly(undone["gap"].max()),
        "longer": mean_interval(last - pd.Series(reference)),
        "longer_than_gold": mean_interval(last - gold),
        "lost": mean_interval(at_one),
        "eos": mean_interval(other["gap"]),
    }


def draw(grid: Grid, rows: pd.DataFrame, task: Testbed) -> Figure:
    with style():
        title = "The penalty per token that equals the annotators' bias undoes it"
        figure, (left, middle, right) = panels(3, 1, 2.6, title)
        counted = rows[rows["count"] == "EOS counted"]
        own = counted[counted["environment"] == task.seed].sort_values("kl")
        left.axhline(0, color="black", lw=1.2, label="gold frontier")
        for share, colour in zip(grid.shares, PALETTE):
            each = own[own["share"] == share]
            label = f"alpha = {share:g} b" if share else "alpha = 0 (DPO)"
            left.plot(each["kl"], each["gap"], "o-", ms=3, lw=0.9, color=colour, label=label)
            middle.plot(each["kl"], each["tokens"], "o-", ms=3, lw=0.9, color=colour)
        length = float(expectation(task, task.ref, lengths(task)).mean())
        middle.axhline(length, color="0.4", lw=0.8, ls=":", label="reference")
        for count, colour in (("EOS counted", PALETTE[0]), ("EOS not counted", PALETTE[1])):
            at_one = rows[(rows["count"] == count) & (rows["beta"] == grid.one_beta)]
            found = {share: mean_interval(each) for share, each in at_one.groupby("share")["gap"]}
            found = pd.DataFrame(found, index=["mean", "low", "high"]).T.loc[sorted(grid.all_shares)]
            right.plot(found.index, found["mean"], "o-", ms=3, lw=1, color=colour, label=f"annotators: {count}")
            right.fill_between(found.index, found["low"], found["high"], color=colour, alpha=0.2, lw=0)
        left.set(xlabel="KL to the reference, nats", ylabel="gap to the gold frontier, sd")
        left.set_title(f"environment {task.seed}, betas {max(grid.betas):g} to {min(grid.betas):g}")
        middle.set(xlabel="KL to the reference, nats", ylabel="tokens of an answer", title="its mean length")
        right.set(xlabel="alpha / b", ylabel="gap to the gold frontier, sd", ylim=(0, None))
        right.set_title(f"beta = {grid.one_beta:g}: mean and 95%\ninterval over environments")
        left.set_ylim(top=1.9 * own["gap"].max())
        for axis in (left, middle, right):
            axis.legend(fontsize=6.5, loc="upper right" if axis is left else None)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    sizes = {"vocab": grid.vocab, "horizon": grid.horizon, "prompts": grid.prompts, "reward": "ngram"}
    tasks = [make_testbed(**sizes, seed=environment) for environment in grid.environments]
    rows = pd.concat([curves(task, grid) for task in tasks], ignore_index=True)
    return Findings(draw(grid, rows, tasks[0]), findings(grid, rows, tasks), {"points": rows})


if __name__ == "__main__":
    main(make, Grid)
