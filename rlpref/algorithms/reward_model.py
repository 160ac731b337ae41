"""A reward model: a scalar head on the last real token, fitted to preference pairs or to scores of answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses import LOSSES, make_loss
from rlpref.losses.inputs import RewardPairs
from rlpref.losses.registry import TAKES, Bound, columns_read
from rlpref.models.bundle import Models
from rlpref.rewards.learned import answer_scores
from rlpref.types import Pairs, cat

SCORES = "every row needs 'chosen_score' and 'rejected_score'"
NEEDS = {"margin": SCORES, "chosen_target": SCORES, "soft_label": "every row needs 'soft_label'"}


@dataclass
class RewardModel:
    """Trains `models.reward_model`; the policy stays what it is."""

    needs_reward: ClassVar[bool] = False
    name: str
    objective: Bound
    epochs: int
    batch_size: int
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"reward_model": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        round.charge(labels=len(data.train))
        pairs = data.train.to(models.device)
        self._require_columns(pairs)
        return pairs

    def _require_columns(self, pairs: Pairs) -> None:
        """Raises ConfigError unless the data have all that the loss reads."""
        there = labels(pairs)
        for column in columns_read(self.objective, RewardPairs) & there.keys():
            if there[column] is None:
                raise ConfigError(
                    f"loss '{self.name}' reads '{column}', which the data do not have: {NEEDS[column]}. Or set "
                    "algorithm.loss.name=bradley_terry, which reads the order alone."
                )

    def loss(self, models: Models, batch: Pairs) -> Loss:
        both = cat([batch.chosen, batch.rejected]).trimmed()
        chosen, rejected = answer_scores(models.reward_model, both).chunk(2)
        metrics = {
            "rewards/chosen": chosen.detach(),
            "rewards/rejected": rejected.detach(),
            "rewards/margins": (chosen - rejected).detach(),
            "rewards/accuracies": (chosen > rejected).to(chosen) + 0.5 * (chosen == rejected).to(chosen),
        }
        weight = torch.ones_like(chosen) if batch.weight is None else batch.weight
        return Loss(self.objective(RewardPairs(chosen, rejected, **labels(batch))), weight, metrics)

    def check_start(self, models: Models, batch: Pairs) -> None:
        """A reward model has no reference to start from."""


def labels(pairs: Pairs) -> dict[str, Tensor | None]:
    """What the data say of each pair besides its order: columns of RewardPairs, None where they say nothing."""
    chosen, rejected = pairs.chosen_score, pairs.rejected_score
    scored = chosen is not None and rejected is not None
    return {
        "margin": chosen - rejected if scored else None,
        "soft_label": getattr(pairs, "soft_label", None),
        "chosen_target": chosen,
        "rejected_target": rejected,
    }


def reward_model(loss: dict, epochs: int, batch_size: int) -> RewardModel:
    """`loss` is {"name": a loss of reward pairs, its hyperparameters}."""
    name = loss["name"]
    objective = make_loss(name, **{key: value for key, value in loss.items() if key != "name"})
    if LOSSES[name].takes is not RewardPairs:
        raise ConfigError(
            f"loss '{name}' takes {LOSSES[name].data}; reward_model takes losses of {TAKES[RewardPairs]}."
        )
    return RewardModel(name, objective, epochs, batch_size)
