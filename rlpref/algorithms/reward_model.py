"""A reward model: a scalar head on the last real token, fitted to preference pairs, rankings of K answers or scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import above, reward_metrics
from rlpref.algorithms.objective import require_columns, valued
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import RewardLists, RewardPairs
from rlpref.losses.lists import best, better, worst
from rlpref.losses.modifiers import Objective, make_objective
from rlpref.models.bundle import Models
from rlpref.models.heads import ScalarHead, answer_scores
from rlpref.types import Lists, Pairs, cat


@dataclass
class RewardModel:
    """Trains `models.reward_model`; the policy stays what it is."""

    needs_reward: ClassVar[bool] = False
    objective: Objective
    epochs: int
    batch_size: int
    head_std: float | None  # of the head's initial weights; None: that of ScalarHead
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"reward_model": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs | Lists:
        round.charge(labels=len(data.train))
        check_columns(self.objective, data.train)
        return data.train.to(models.device)

    def loss(self, models: Models, batch: Pairs | Lists) -> Loss:
        score = score_lists if isinstance(batch, Lists) else score_pairs
        seen, metrics = score(models.reward_model, batch)
        value, clamped = valued(self.objective, seen)
        return Loss(value, torch.ones_like(value) if batch.weight is None else batch.weight, metrics | clamped)

    def check_start(self, models: Models, batch: Pairs | Lists) -> None:
        """A reward model has no reference to start from."""


def score_pairs(model: ScalarHead, pairs: Pairs) -> tuple[RewardPairs, dict[str, Tensor]]:
    """What a loss of reward pairs sees, with gradient, and its metrics [B]."""
    chosen, rejected = answer_scores(model, cat([pairs.chosen, pairs.rejected]).trimmed()).chunk(2)
    return reward_pairs(pairs, chosen, rejected), reward_metrics(chosen.detach(), rejected.detach())


def score_lists(model: ScalarHead, lists: Lists) -> tuple[RewardLists, dict[str, Tensor]]:
    """What a loss of reward lists sees, with gradient, and its metrics [B]: `chosen` is the answer with the highest
    score, `rejected` the one with the lowest, and accuracies count every pair of the list that its scores rank."""
    rewards = lists.unflat(answer_scores(model, lists.flat().trimmed()))
    seen, found = RewardLists(rewards, lists.scores.to(rewards), lists.present), rewards.detach()
    ends = (found.gather(1, place(seen))[:, 0] for place in (best, worst))
    ranked = better(seen)
    right = torch.where(ranked, above(found[:, :, None], found[:, None]), 0.0).sum((1, 2))
    return seen, reward_metrics(*ends) | {"rewards/accuracies": right / ranked.sum((1, 2)).clamp(min=1)}


def reward_pairs(pairs: Pairs, chosen: Tensor, rejected: Tensor) -> RewardPairs:
    """The model's scores [B] beside all that the data say of each pair."""
    scored = pairs.chosen_score is not None and pairs.rejected_score is not None
    margin = pairs.chosen_score - pairs.rejected_score if scored else None
    return RewardPairs(chosen, rejected, margin, pairs.soft_label, pairs.chosen_score, pairs.rejected_score)


def check_columns(objective: Objective, rows: Pairs | Lists) -> None:
    """Raises ConfigError for what the loss reads and the data do not have."""
    if isinstance(rows, Pairs):
        unscored = torch.zeros(len(rows), device=rows.chosen.ids.device)
        rows = reward_pairs(rows, unscored, unscored)
    require_columns(objective, rows)


def reward_model(loss: dict, epochs: int, batch_size: int, head_std: float | None = None) -> RewardModel:
    """`loss` is {"name": a loss of reward pairs or reward lists, its hyperparameters}; `head_std` is that of the
    head's initial weights, None for 1/sqrt(width + 1). Raises ConfigError where it is below 0."""
    if head_std is not None and not head_std >= 0:
        raise ConfigError(f"algorithm.head_std must not be below 0, but is {head_std}.")
    return RewardModel(make_objective(loss, (RewardPairs, RewardLists)), epochs, batch_size, head_std)
