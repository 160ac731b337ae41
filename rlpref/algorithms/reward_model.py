"""A Bradley-Terry reward model: a scalar head on the last real token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.data.preferences import PreferenceData
from rlpref.losses import bradley_terry
from rlpref.models.bundle import Models
from rlpref.rewards.learned import answer_scores
from rlpref.types import Pairs, cat


@dataclass
class RewardModel:
    """Trains `models.reward_model`; the policy stays what it is."""

    needs_reward: ClassVar[bool] = False
    epochs: int
    batch_size: int
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"reward_model": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        round.charge(labels=len(data.train))
        return data.train.to(models.device)

    def loss(self, models: Models, batch: Pairs) -> Loss:
        both = cat([batch.chosen, batch.rejected]).trimmed()
        chosen, rejected = answer_scores(models.reward_model, both).chunk(2)
        metrics = {
            "rewards/chosen": chosen.detach(),
            "rewards/rejected": rejected.detach(),
            "rewards/margins": (chosen - rejected).detach(),
            "rewards/accuracies": (chosen > rejected).to(chosen) + 0.5 * (chosen == rejected).to(chosen),
        }
        return Loss(bradley_terry(chosen, rejected), torch.ones_like(chosen), metrics)

    def check_start(self, models: Models, batch: Pairs) -> None:
        """A reward model has no reference to start from."""
