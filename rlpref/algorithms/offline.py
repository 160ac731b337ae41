"""Any loss on fixed data: DPO, IPO and all their relatives on pairs, KTO on single answers, rankings of K answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.objective import check_objective_start, objective_loss, require_no_lone_row, with_reference
from rlpref.data.preferences import PreferenceData
from rlpref.data.unpaired import unpair
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.models.bundle import Models
from rlpref.types import Answers, Pairs, TensorBatch


@dataclass
class Offline:
    """One round over data that was there before. A loss of single answers takes a pair as two of them."""

    needs_reward: ClassVar[bool] = False
    objective: Objective
    scale: float
    epochs: int
    batch_size: int
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train) * (2 if self._unpairs(data) else 1)

    def _unpairs(self, data: PreferenceData) -> bool:
        return self.objective.entry.takes is AnswerLogps and isinstance(data.train, Pairs)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> TensorBatch:
        round.charge(labels=len(data.train))
        require_no_lone_row(self.objective, self.examples(data, round.index) // round.runs, self.batch_size)
        rows = data.train.to(models.device)
        if self._unpairs(data):
            rows = unpair(rows, round.runs)
        if isinstance(rows, Answers) and "mismatched" not in self.objective.reads:
            rows = replace(rows, mismatched=None)  # no model will read them
        return with_reference(models, self.objective, rows, fixed=True)

    def loss(self, models: Models, batch: TensorBatch) -> Loss:
        return objective_loss(models, self.objective, self.scale, batch)

    def check_start(self, models: Models, batch: TensorBatch) -> None:
        check_objective_start(models, self.objective, batch)


def offline(loss: dict, epochs: int, batch_size: int, modifiers: dict | None = None) -> Offline:
    """`loss` is {"name": a loss of pairs, single answers or K answers, its hyperparameters}; `modifiers` are those of
    rlpref.losses.modifiers, for pairs alone."""
    objective = make_objective(loss, (PairLogps, AnswerLogps, ListLogps), make_modifiers(modifiers or {}))
    return Offline(objective, objective.scale, epochs, batch_size)
