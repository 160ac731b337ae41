"""Pairs in stages: each trains on the share of the pairs that comes first in an order, and the shares may grow.

Bengio et al. 2009 (Curriculum learning) from easy to hard; self-paced learning (Kumar et al. 2010) where what is easy
is what the policy itself loses least on when a stage begins: the pairs whose loss is below a threshold that grows, here
the quantile that leaves the share. A share below 1 in the last stage is a selection of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.objective import check_objective_start, objective_loss, require_no_lone_row, with_reference
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.models.bundle import Models, in_chunks
from rlpref.ops.blocks import blocks
from rlpref.types import Pairs


@dataclass
class Curriculum:
    """A round for each of `shares`. What makes a pair easy, `by`: a large difference of its `scores`; a `reference`
    that finds the chosen answer likelier; a small `loss` of the policy as the stage begins (all are equal before the
    first update). `order`: the `easy` pairs come first, the `hard` ones, those in the `middle` of the ranks, or
    `random` ones, the control of all others."""

    needs_reward: ClassVar[bool] = False
    objective: Objective
    scale: float
    by: str
    order: str
    shares: Sequence[float]
    epochs: int
    batch_size: int
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    @property
    def rounds(self) -> int:
        return len(self.shares)

    def examples(self, data: PreferenceData, index: int) -> int:
        return self._count(len(data.train), index)

    def _count(self, rows: int, index: int) -> int:
        return max(1, round(self.shares[index] * rows))

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        if round.index == 0:
            round.charge(labels=len(data.train))
        pairs = with_reference(models, self.objective, data.train.to(models.device), fixed=True)
        ease = blocks(self._ease(models, pairs), round.runs)
        kept = self._count(ease.shape[1], round.index)
        require_no_lone_row(self.objective, kept, self.batch_size)
        first = ranked(ease, self.order, shuffled(round, ease.shape[1]))[:, :kept].sort(1).values
        rows = (first + torch.arange(round.runs, device=first.device)[:, None] * ease.shape[1]).flatten()
        round.metrics["curriculum/ease"] = round.mean(ease.flatten()[rows])
        return pairs[rows]

    def loss(self, models: Models, batch: Pairs) -> Loss:
        return objective_loss(models, self.objective, self.scale, batch)

    def _ease(self, models: Models, pairs: Pairs) -> Tensor:
        """[B] how easy each pair is."""
        if self.by == "scores":
            return (pairs.chosen_score - pairs.rejected_score).abs()
        if self.by == "reference":
            sides = (pairs.chosen, pairs.rejected)
            chosen, rejected = (models.fixed_ref_logps(side, models.initial).sum(1) for side in sides)
            return chosen - rejected
        return -in_chunks(lambda part: self.loss(models, part).value, pairs, models.chunk)

    def check_start(self, models: Models, batch: Pairs) -> None:
        check_objective_start(models, self.objective, batch)


def shuffled(round: Round, rows: int) -> Tensor:
    """[runs, rows] the rows of each run in an order by chance, the same in every stage: files are sorted by prompt."""
    if "order_seed" not in round.carried:
        seeds = [torch.randint(2**31, (), generator=g, device=g.device) for g in round.generators]
        round.carried["order_seed"] = torch.stack(seeds).double().cpu()
    generators = [torch.Generator().manual_seed(int(seed)) for seed in round.carried["order_seed"]]
    return torch.stack([torch.randperm(rows, generator=g) for g in generators]).to(round.generators[0].device)


def ranked(ease: Tensor, order: str, by_chance: Tensor) -> Tensor:
    """[runs, rows] the rows of each run as they are taken; equal ones, or all if random, as they stand `by_chance`."""
    if order == "random":
        return by_chance
    ease = ease.gather(1, by_chance)
    taken = ease.argsort(dim=1, descending=order != "hard", stable=True)
    if order == "middle":
        from_middle = (torch.arange(ease.shape[1], device=ease.device) - (ease.shape[1] - 1) / 2).abs()
        taken = taken[:, from_middle.argsort(stable=True)]
    return by_chance.gather(1, taken)


def curriculum(
    loss: dict,
    by: Literal["scores", "reference", "loss"],
    order: Literal["easy", "hard", "middle", "random"],
    shares: Sequence[float],
    epochs: int,
    batch_size: int,
    modifiers: dict | None = None,
) -> Curriculum:
    """`loss` is {"name": a pair loss, its hyperparameters}; `modifiers` are those of rlpref.losses.modifiers."""
    objective = make_objective(loss, (PairLogps,), make_modifiers(modifiers or {}))
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"algorithm.shares is {list(shares)}: for each stage a number above 0 and at most 1.")
    if by == "loss" and objective.entry.coupled:
        raise ConfigError(f"loss '{objective.entry.name}' takes a minibatch as a whole: no pair has a loss of its own.")
    return Curriculum(objective, objective.scale, by, order, shares, epochs, batch_size)
