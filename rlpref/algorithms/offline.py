"""Any pair loss on the fixed preference data: DPO, IPO and all their relatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import check_pair_start, pair_logps, pair_loss, with_reference
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.models.bundle import Models
from rlpref.types import Pairs


@dataclass
class Offline:
    """One round over data that was there before."""

    needs_reward: ClassVar[bool] = False
    objective: Objective
    scale: float
    epochs: int
    batch_size: int
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        round.charge(labels=len(data.train))
        return with_reference(models, self.objective, data.train.to(models.device))

    def loss(self, models: Models, batch: Pairs) -> Loss:
        return pair_loss(self.objective, self.scale, pair_logps(models, self.objective, batch))

    def check_start(self, models: Models, batch: Pairs) -> None:
        check_pair_start(models, self.objective, batch)


def offline(loss: dict, epochs: int, batch_size: int, modifiers: dict | None = None) -> Offline:
    """`loss` is {"name": a pair loss, its hyperparameters}; `modifiers` are those of rlpref.losses.modifiers."""
    objective = make_objective(loss, PairLogps, make_modifiers(modifiers or {}))
    return Offline(objective, objective.scale, epochs, batch_size)
