"""A reward model: a scalar head on the last real token, fitted to preference pairs or to scores of answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import reward_metrics
from rlpref.algorithms.objective import require_columns, valued
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import RewardPairs
from rlpref.losses.modifiers import Objective, make_objective
from rlpref.models.bundle import Models
from rlpref.models.heads import answer_scores
from rlpref.types import Pairs, cat


@dataclass
class RewardModel:
    """Trains `models.reward_model`; the policy stays what it is."""

    needs_reward: ClassVar[bool] = False
    objective: Objective
    epochs: int
    batch_size: int
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"reward_model": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        round.charge(labels=len(data.train))
        pairs = data.train.to(models.device)
        unscored = torch.zeros(len(pairs), device=models.device)
        require_columns(self.objective, reward_pairs(pairs, unscored, unscored))
        return pairs

    def loss(self, models: Models, batch: Pairs) -> Loss:
        both = cat([batch.chosen, batch.rejected]).trimmed()
        chosen, rejected = answer_scores(models.reward_model, both).chunk(2)
        metrics = reward_metrics(chosen.detach(), rejected.detach())
        value, clamped = valued(self.objective, reward_pairs(batch, chosen, rejected))
        return Loss(value, torch.ones_like(chosen) if batch.weight is None else batch.weight, metrics | clamped)

    def check_start(self, models: Models, batch: Pairs) -> None:
        """A reward model has no reference to start from."""


def reward_pairs(pairs: Pairs, chosen: Tensor, rejected: Tensor) -> RewardPairs:
    """The model's scores [B] beside all that the data say of each pair."""
    scored = pairs.chosen_score is not None and pairs.rejected_score is not None
    margin = pairs.chosen_score - pairs.rejected_score if scored else None
    return RewardPairs(chosen, rejected, margin, pairs.soft_label, pairs.chosen_score, pairs.rejected_score)


def reward_model(loss: dict, epochs: int, batch_size: int) -> RewardModel:
    """`loss` is {"name": a loss of reward pairs, its hyperparameters}."""
    return RewardModel(make_objective(loss, (RewardPairs,)), epochs, batch_size)
