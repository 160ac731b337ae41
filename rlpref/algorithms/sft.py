"""Supervised fine-tuning on the chosen answers ("preferred fine-tuning" where they come from pairs)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import require_equal, tolerance
from rlpref.data.preferences import PreferenceData
from rlpref.losses import nll
from rlpref.models.bundle import Models
from rlpref.ops.masked import masked_mean
from rlpref.types import Sequences


@dataclass
class SFT:
    """Token-mean negative log-likelihood of the chosen answers."""

    needs_reward: ClassVar[bool] = False
    epochs: int
    batch_size: int
    rounds: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return len(data.train)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Sequences:
        round.charge(labels=len(data.train))
        return data.train.chosen.to(models.device)

    def loss(self, models: Models, batch: Sequences) -> Loss:
        batch = batch.trimmed()
        logps, entropy = models.policy_logps(batch, entropy=True)
        value = masked_mean(nll(logps), batch.mask, dim=1)
        metrics = {
            "logps/chosen": logps.sum(1).detach(),
            "objective/entropy": masked_mean(entropy, batch.mask, dim=1).detach(),
        }
        return Loss(value, batch.lengths.to(value), metrics)

    def check_start(self, models: Models, batch: Sequences) -> None:
        with torch.no_grad():
            policy = models.policy_logps(batch)[0].sum(1)
        drift = float((policy - models.ref_logps(batch).sum(1)).abs().max())
        require_equal("log policy/ref of an answer", drift, 0.0, tolerance(models, batch.lengths))
