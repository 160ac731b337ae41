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
from rlpref.types import Answers


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

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Answers:
        round.charge(labels=len(data.train))
        train = data.train.to(models.device)
        desirable = torch.ones(len(train), dtype=torch.bool, device=models.device)
        return Answers(train.chosen, desirable, weight=train.weight)

    def loss(self, models: Models, batch: Answers) -> Loss:
        return imitation_loss(models, batch)

    def check_start(self, models: Models, batch: Answers) -> None:
        check_imitation_start(models, batch)


def imitation_loss(models: Models, batch: Answers) -> Loss:
    """Negative log-likelihood of the answers, the mean over all their tokens."""
    chosen = batch.sequences.trimmed()
    logps, entropy = models.policy_logps(chosen, entropy=True)
    value = masked_mean(nll(logps), chosen.mask, dim=1)
    metrics = {
        "logps/chosen": logps.sum(1).detach(),
        "objective/entropy": masked_mean(entropy, chosen.mask, dim=1).detach(),
    }
    weight = chosen.lengths.to(value)
    return Loss(value, weight if batch.weight is None else weight * batch.weight, metrics)


def check_imitation_start(models: Models, batch: Answers) -> None:
    """At step 0 the policy is the reference."""
    with torch.no_grad():
        policy = models.policy_logps(batch.sequences)[0].sum(1)
    drift = float((policy - models.ref_logps(batch.sequences).sum(1)).abs().max())
    require_equal("log policy/ref of an answer", drift, 0.0, tolerance(models, batch.sequences.lengths))
