"""Li, Xu and Yu 2023: a policy trained on a learned reward gains from states that stand in no preference pair.

A linear bandit: states from U[0, 1], four actions, rewards linear in features that the reward model knows; the policy
is log-linear in others, so that none is best at every state and the states it is trained on matter. All seeds are
tensors of one batch: a bandit with a continuous state is no task of the testbed. The losses are the registry's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, look, main, panels, style
from rlpref.losses import make_loss
from rlpref.losses.inputs import PairLogps, RewardPairs
from rlpref.report import mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.population import minimise

ACTIONS = 4
TRUE = torch.tensor([1.0, 2.0], dtype=torch.float64)  # weights of the reward's features
FINE = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000  # midpoints: the mean over states to 1e-7


@dataclass(frozen=True)
class Grid:
    first_seed: int
    seeds: int
    pairs: int
    extra: int
    more: list[int]
    regularisation: float
    dpo_steps: int
    steps: int


@dataclass
class Instances:
    """What is drawn for every seed: states in [0, 1], actions by number."""

    states: Tensor  # [seeds, pairs]
    chosen: Tensor  # [seeds, pairs]
    rejected: Tensor  # [seeds, pairs]
    others: Tensor  # [seeds, extra states]
    start: Tensor  # [seeds, 2] weights of the policy


def features(states: Tensor, flipped: bool) -> Tensor:
    """[..., actions, 2] features of each action: (a cos, sin / a) of pi times the state, with a from 1; flipped: sine
    and cosine change places."""
    number = torch.arange(1, ACTIONS + 1, dtype=torch.float64)
    cos, sin = ((math.pi * states[..., None]).cos(), (math.pi * states[..., None]).sin())
    return torch.stack([number * (sin if flipped else cos), (cos if flipped else sin) / number], -1)


def instances(grid: Grid) -> Instances:
    """Pairs of two different actions, uniform, labelled by Bradley-Terry."""
    columns = []
    for seed in range(grid.first_seed, grid.first_seed + grid.seeds):
        generator = torch.Generator().manual_seed(seed)
        draw = {"generator": generator, "dtype": torch.float64}
        states = torch.rand(grid.pairs, **draw)
        actions = torch.rand(grid.pairs, ACTIONS, **draw).argsort(1)[:, :2]
        rewards = (features(states, False) @ TRUE).gather(1, actions)
        first = torch.rand(grid.pairs, **draw) < (rewards[:, 0] - rewards[:, 1]).sigmoid()
        chosen, rejected = (torch.where(first == wins, actions[:, 0], actions[:, 1]) for wins in (True, False))
        columns.append((states, chosen, rejected, torch.rand(max(grid.more), **draw), torch.rand(2, **draw)))
    return Instances(*map(torch.stack, zip(*columns)))


def reward_model(data: Instances) -> Tensor:
    """[seeds, 2] weights with the smallest Bradley-Terry loss on each seed's pairs."""
    loss, known = make_loss("bradley_terry"), features(data.states, False)
    weights = torch.zeros(len(data.states), 2, dtype=torch.float64, requires_grad=True)

    def value() -> Tensor:
        scores = (known * weights[:, None, None]).sum(-1)
        chosen, rejected = (scores.gather(2, side[..., None]).flatten() for side in (data.chosen, data.rejected))
        return loss(RewardPairs(chosen, rejected)).sum()

    minimise(value, [weights], 500)
    return weights.detach()


def logps(weights: Tensor, read: Tensor) -> Tensor:
    """[seeds, states, actions] of the log-linear policies [seeds, 2] that read flipped features."""
    return (read * weights[:, None, None]).sum(-1).log_softmax(-1)


def adapted(start: Tensor, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """[seeds, 2] after so many steps of size 1 / sqrt(sum of squared gradient norms), each seed's own, as in the
    authors' code; `loss` is the sum over seeds."""
    weights, squares = start.clone().requires_grad_(), torch.zeros(len(start), 1, dtype=torch.float64)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(weights), weights)
        squares = squares + gradient.square().sum(1, keepdim=True)
        weights = (weights.detach() - gradient / squares.sqrt()).requires_grad_()
    return weights.detach()


def dpo(grid: Grid, data: Instances, steps: int) -> Tensor:
    loss, even = make_loss("dpo", beta=grid.regularisation), torch.full_like(data.states, -math.log(ACTIONS)).flatten()
    one, read = torch.ones_like(even), features(data.states, True)

    def value(weights: Tensor) -> Tensor:
        table = logps(weights, read)
        sides = [table.gather(2, side[..., None]).flatten() for side in (data.chosen, data.rejected)]
        return loss(PairLogps(*sides, even, even, one, one)).sum() / grid.pairs

    return adapted(data.start, value, steps)


def on_reward(grid: Grid, data: Instances, rewards: Tensor, states: Tensor) -> Tensor:
    """Exact policy gradient on E[r] - c KL(pi || uniform) at states [seeds, states], r with weights [seeds, 2]."""
    worth, read = (features(states, False) * rewards[:, None, None]).sum(-1), features(states, True)

    def value(weights: Tensor) -> Tensor:
        table = logps(weights, read)
        gain = worth - grid.regularisation * (table + math.log(ACTIONS))
        return -(table.exp() * gain).sum(2).mean(1).sum()

    return adapted(data.start, value, grid.steps)


def gaps(weights: Tensor) -> Tensor:
    """[seeds] best mean reward less that of the policies, over all states."""
    worth = features(FINE, False) @ TRUE
    return worth.amax(1).mean() - (logps(weights, features(FINE, True)[None]).exp() * worth).sum(2).mean(1)


def results(grid: Grid) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row per seed and method, one row per seed and number of extra states): the optimality gap."""
    data = instances(grid)
    learned, true = reward_model(data), TRUE.expand(grid.seeds, -1)
    seeds = range(grid.first_seed, grid.first_seed + grid.seeds)
    by_extra = {n: torch.cat([data.states, data.others[:, :n]], 1) for n in sorted({0, grid.extra, *grid.more})}
    along = {n: gaps(on_reward(grid, data, learned, states)) for n, states in by_extra.items()}
    found = {
        "uniform": gaps(torch.zeros_like(data.start)),
        "DPO": gaps(dpo(grid, data, grid.dpo_steps)),
        "DPO, long": gaps(dpo(grid, data, grid.steps)),
        "RMB-PO": along[0],
        "RMB-PO+": along[grid.extra],
        "best of class": gaps(on_reward(grid, data, true, FINE[::40].expand(grid.seeds, -1))),
    }
    frames = [
        pd.concat([pd.DataFrame({name: key, "seed": seeds, "gap": values.numpy()}) for key, values in table.items()])
        for name, table in (("method", found), ("extra", along))
    ]
    return frames[0].reset_index(drop=True), frames[1].reset_index(drop=True)


def draw(methods: pd.DataFrame, along: pd.DataFrame) -> Figure:
    with style():
        figure, (left, right) = panels(2, title="RL on a learned reward beats DPO; states beyond its data add little")
        names = list(dict.fromkeys(methods["method"]))
        for i, name in enumerate(names):
            found = mean_interval(methods.loc[methods["method"] == name, "gap"])
            colour = (
                look("dpo")["color"] if name.startswith("DPO") else PALETTE[3] if name.startswith("RMB") else "black"
            )
            left.plot(i, found.mean, marker="o", ms=5, color=colour)
            left.vlines(i, found.low, found.high, color=colour, lw=1.5)
        left.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=7)
        left.set(ylabel="optimality gap, units of reward", title="mean and 95% interval over seeds")
        found = {n: mean_interval(own["gap"]) for n, own in along.groupby("extra")}
        means, lows, highs = zip(*found.values())
        right.plot(list(found), means, marker="o", ms=4, color=PALETTE[3], label="RMB-PO+")
        right.fill_between(list(found), lows, highs, color=PALETTE[3], alpha=0.25, lw=0)
        best = methods.loc[methods["method"] == "best of class", "gap"].mean()
        right.axhline(best, color="black", lw=1, ls="--", label="best of class")
        right.set(xlabel="states besides those of the pairs", ylabel="optimality gap, units of reward")
        right.set_title("mean and 95% interval over seeds")
        right.legend()
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    methods, along = results(grid)
    wide = methods.pivot(index="seed", columns="method", values="gap")
    values = {
        "plus_po": mean_interval(wide["RMB-PO"] - wide["RMB-PO+"]),
        "plus_dpo": mean_interval(wide["DPO"] - wide["RMB-PO+"]),
        "long_dpo": mean_interval(wide["DPO, long"] - wide["RMB-PO+"]),
        "class": mean_interval(wide["best of class"]),
    }
    notes = [
        "The authors' setting from their code (liziniu/policy_optimization) with more seeds; the policies' start and "
        "the draws are ours, and the mean over states is an integral. The neural bandit of the paper is left out.",
    ]
    return Findings(draw(methods, along), values, {"methods": methods, "along": along}, notes)


if __name__ == "__main__":
    main(make, Grid)
