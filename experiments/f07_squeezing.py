"""Ren and Sutherland 2024: a negative gradient squeezes mass into the likeliest answer, more so from a valley.

A softmax over K answers with a linear head on features of N(0, 1) takes one step of gradient ascent on -log p of the
answer that is pushed down: the registry's `nll`, ascended. One step of the registry's `dpo` on a pair of answers moves
only their two logits, and squeezes nothing; on a tree of tokens, where the two answers part, it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import PairLogps, make_loss, nll
from rlpref.report import Interval, mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.task import Testbed, answer_places, make_testbed

UNIFORM, FLAT, PEAK, VALLEY = "random", "flat", "peak", "valley"  # heads; the last two are the same peaky one
LOOKS = {UNIFORM: (PALETTE[9], "v"), FLAT: (PALETTE[5], "P"), PEAK: (PALETTE[1], "^"), VALLEY: (PALETTE[0], "o")}


@dataclass(frozen=True)
class Grid:
    answers: int
    features: int
    peaks: list[int]  # the answers that the peaky head was trained on
    on_peak: int  # the answer that is pushed down from a peak
    in_valley: int  # and from a valley
    chosen: int  # of the DPO pair, in a valley too
    rate: float
    flat_rate: float
    beta: float
    seeds: int
    first_seed: int
    prompts: int  # of the trees: an off-policy pair for each
    updates: int  # of DPO on the trees
    tree_rate: float
    environments: list[int]


def heads(grid: Grid) -> tuple[Tensor, dict[str, Tensor]]:
    """Features [seeds, features, 1] and heads [seeds, features, answers]: random, flat, and peaky after one step of
    rate 1 towards all peaks at once, as in the authors' notebook."""
    generator = torch.Generator().manual_seed(grid.first_seed)
    shape = (grid.seeds, grid.features, grid.answers)
    x = torch.randn(*shape[:2], 1, generator=generator, dtype=torch.float64)
    random, flat, peaky = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    towards = torch.zeros(grid.answers, dtype=torch.float64)
    towards[grid.peaks] = 1.0
    gap = (x * peaky).sum(1).softmax(-1) - towards
    peaky = peaky - x * gap[:, None]
    return x, {UNIFORM: random, FLAT: 1 + 0.05 * flat, PEAK: peaky, VALLEY: peaky}


def logps(x: Tensor, head: Tensor) -> Tensor:
    """[seeds, answers]"""
    return (x * head).sum(1).log_softmax(-1)


def pushed_down(x: Tensor, head: Tensor, answer: int, rate: float) -> Tensor:
    """[seeds, answers] log-probs after one step up the negative log-likelihood of the answer."""
    head = head.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nll(logps(x, head)[:, answer]).sum(), head)
    return logps(x, head.detach() + rate * slope)


def dpo_step(x: Tensor, head: Tensor, pair: tuple[int, int], beta: float, rate: float) -> Tensor:
    """[seeds, answers] log-probs after one step, from the reference, down the DPO loss of (chosen, rejected)."""
    head = head.clone().requires_grad_()
    now = logps(x, head)
    chosen, rejected = now[:, pair[0]], now[:, pair[1]]
    length = torch.ones_like(chosen)
    columns = PairLogps(chosen, rejected, chosen.detach(), rejected.detach(), length, length)
    (slope,) = torch.autograd.grad(make_loss("dpo", beta=beta)(columns).sum(), head)
    return logps(x, head.detach() - rate * slope)


def measure(before: Tensor, after: Tensor, down: Tensor) -> dict[str, Tensor]:
    """[rows] each, of log-probs [rows, answers]: the change of the answer that is pushed down and of the likeliest
    other one, and the share of the remaining ones that fall."""
    change = after.exp() - before.exp()
    hidden = torch.zeros_like(before, dtype=torch.bool).scatter(1, down[:, None], True)
    top = before.masked_fill(hidden, -torch.inf).argmax(1, keepdim=True)
    others = ~hidden.scatter(1, top, True)
    fell = ((change < 0) & others).sum(1) / others.sum(1)
    return {"top": change.gather(1, top)[:, 0], "down": change.gather(1, down[:, None])[:, 0], "fell": fell.double()}


def one_step(grid: Grid) -> tuple[pd.DataFrame, tuple[Tensor, Tensor], float]:
    """(`measure` of one negative step per head and seed, log-probs [answers] of the first seed's valley before and
    after it, largest change of a log-ratio of two answers outside the pair by one step of DPO on the peaky head)."""
    x, made = heads(grid)
    rows = []
    for name, head in made.items():
        answer = grid.on_peak if name == PEAK else grid.in_valley
        before = logps(x, head)
        after = pushed_down(x, head, answer, grid.flat_rate if name == FLAT else grid.rate)
        found = measure(before, after, torch.full((grid.seeds,), answer))
        columns = {key: value.tolist() for key, value in found.items()}
        rows.append(pd.DataFrame({"head": name, "seed": range(grid.seeds), **columns}))
    pair = (grid.chosen, grid.in_valley)
    kept = [answer for answer in range(grid.answers) if answer not in pair]
    moved = (dpo_step(x, made[VALLEY], pair, grid.beta, grid.rate) - before)[:, kept]
    return pd.concat(rows), (before[0], after[0]), float((moved - moved[:, :1]).abs().max())


def off_policy_pairs(task: Testbed) -> Tensor:
    """[prompts, 2] places of a chosen and a rejected answer: two of all answers at random, the better one first."""
    generator = torch.Generator().manual_seed(task.seed)
    places = answer_places(task)
    drawn = [torch.randperm(len(places), generator=generator)[:2] for _ in range(task.tree.prompts)]
    pairs = places[torch.stack(drawn)]
    worth = task.rewards.flatten(1).gather(1, pairs)
    return torch.where((worth[:, :1] >= worth[:, 1:]), pairs, pairs.flip(1))


def train_tree(grid: Grid, environment: int) -> tuple[list[dict], dict[str, float]]:
    """DPO by gradient descent of a table of logits on one off-policy pair per prompt: mean probabilities over the
    contexts that only rejected answers reach, one row per update, and `measure` over these contexts in the end."""
    task = make_testbed(vocab=8, horizon=4, prompts=grid.prompts, seed=environment, reward="ngram")
    pairs, loss = off_policy_pairs(task), make_loss("dpo", beta=grid.beta)
    logits, rows = task.ref.clone().requires_grad_(), []
    ref = answer_logps(task, task.ref).flatten(1).gather(1, pairs)
    for update in range(grid.updates + 1):
        policy = logits.log_softmax(-1)
        now = answer_logps(task, policy).flatten(1).gather(1, pairs)
        if update == 0:
            by_side = [torch.autograd.grad(side.sum(), logits, retain_graph=True)[0] for side in now.T]
            chosen, rejected = (slope.abs().sum(-1) > 0 for slope in by_side)
            alone, token = rejected & ~chosen, by_side[1].argmax(-1)  # d log p of a token: 1 - p there, -p elsewhere
            top = task.ref.scatter(2, token[:, :, None], -torch.inf).argmax(-1, keepdim=True)
        probability = policy.detach().exp()
        likeliest, down = (probability.gather(2, at)[:, :, 0][alone].mean() for at in (top, token[:, :, None]))
        row = {"environment": environment, "update": update, "top": float(likeliest), "down": float(down)}
        rows.append(row | {"rest": float(1 - likeliest - down)})
        ones = torch.ones_like(now[:, 0])
        columns = PairLogps(now[:, 0], now[:, 1], ref[:, 0], ref[:, 1], ones, ones)
        (slope,) = torch.autograd.grad(loss(columns).sum(), logits)
        logits = (logits - grid.tree_rate * slope).detach().requires_grad_()
    found = measure(task.ref[alone], policy.detach()[alone], token[alone])
    up = float((found["top"] > 0).double().mean())
    return rows, {"environment": environment, "up": up, "fell": float(found["fell"].mean())}


def draw(steps: pd.DataFrame, one: tuple[Tensor, Tensor], trees: pd.DataFrame) -> Figure:
    with style():
        figure, axes = panels(3, height=2.5, title="Pushing one answer down moves its mass to the likeliest other one")
        order = one[0].argsort(descending=True)
        for logp, colour, marker, name in ((one[0], "0.6", ".", "before"), (one[1], PALETTE[0], "o", "after")):
            axes[0].plot(range(1, len(order) + 1), logp.exp()[order], marker, color=colour, ms=3, label=name)
        axes[0].set(title="one seed, from a valley", xlabel="answers, likeliest first", ylabel="probability")
        axes[0].set_yscale("log")
        axes[0].legend()
        for i, (name, (colour, marker)) in enumerate(LOOKS.items()):
            fell = steps[steps["head"] == name]["fell"]
            low, middle, high = fell.quantile([0.1, 0.5, 0.9])
            axes[1].plot([i, i], [low, high], color=colour, lw=2)
            axes[1].plot(i, fell.mean(), marker, color=colour, ms=6)
            axes[1].plot(i, middle, "_", color=colour, ms=10)
        axes[1].set_xticks(range(len(LOOKS)), LOOKS)
        axes[1].set(title="who falls too: mean, deciles 1, 5, 9", ylim=(-0.05, 1.05), xlim=(-0.5, 3.5))
        axes[1].set(xlabel="head, or place on the peaky one", ylabel="share of the other answers")
        for column, colour, name in (
            ("top", PALETTE[0], "likeliest other token"),
            ("rest", PALETTE[9], "all the rest"),
            ("down", PALETTE[1], "rejected token"),
        ):
            spread = trees.groupby("update")[column]
            axes[2].plot(spread.mean(), color=colour, lw=1.1, label=name)
            axes[2].fill_between(spread.mean().index, spread.min(), spread.max(), color=colour, alpha=0.2, lw=0)
        axes[2].set(title="DPO, after the answers part", xlabel="updates", ylabel="mean probability", ylim=(0, None))
        axes[2].legend(title="mean, range over tasks", title_fontsize=7, alignment="left")
    return figure


def claims(steps: pd.DataFrame, dpo_moves: float, ends: pd.DataFrame) -> dict[str, Interval]:
    fell = steps.pivot(index="seed", columns="head", values="fell")
    return {
        "top_up": exactly((steps["top"] > 0).mean()),
        "pushed_down": exactly((steps["down"] < 0).mean()),
        "valley": mean_interval(fell[VALLEY]),
        "peak": mean_interval(fell[PEAK]),
        "deeper": mean_interval(fell[VALLEY] - fell[PEAK]),
        "dpo_step": exactly(dpo_moves),
        "tree_up": exactly(ends["up"].min()),
        "tree_fell": mean_interval(ends["fell"]),
    }


def make(grid: Grid, folder: Path) -> Findings:
    steps, one, dpo_moves = one_step(grid)
    trained = [train_tree(grid, environment) for environment in grid.environments]
    trees = pd.DataFrame([row for rows, _ in trained for row in rows])
    ends = pd.DataFrame([end for _, end in trained])
    means = steps.groupby("head", sort=False).mean().drop(columns="seed").reset_index()
    return Findings(draw(steps, one, trees), claims(steps, dpo_moves, ends), {"steps": means, "trees": ends})


if __name__ == "__main__":
    main(make, Grid)
