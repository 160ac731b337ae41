"""Trained reward models as scorers: one, or several of which each scores every answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.models.bundle import in_chunks
from rlpref.models.heads import ScalarHead, answer_scores
from rlpref.types import Sequences

Combine = Literal["mean", "worst", "variance"]


@dataclass
class LearnedReward:
    """`scorer(sequences)` -> [B], without gradient, at most `chunk` rows at a time."""

    model: ScalarHead
    chunk: int
    normalised: dict[str, float] | None = None  # score -> (score - bias) * scale, folded into the head
    name: str = "learned"

    def __call__(self, sequences: Sequences) -> Tensor:
        return in_chunks(lambda part: answer_scores(self.model, part), sequences, self.chunk)


def normalise(reward: LearnedReward, samples: Sequences) -> LearnedReward:
    """The reward with mean 0 and (population) variance 1 over the samples. The map goes into the head's weight and
    bias, in place, so that a critic which starts from the model starts normalised, too. Raises ConfigError where all
    samples score the same."""
    scores = reward(samples).double()
    bias, deviation = scores.mean(), scores.std(correction=0)
    if not deviation > 0:
        raise ConfigError(f"reward.normalise: the reward model gives all {len(samples)} samples the same score.")
    head = reward.model.head
    with torch.no_grad():
        head.weight.div_(deviation)
        head.bias.sub_(bias).div_(deviation)
    return replace(reward, normalised={"samples": len(samples), "bias": float(bias), "scale": float(1 / deviation)})


@dataclass
class EnsembleReward:
    """Several reward models' scores of each answer as one: their `mean`, the `worst` of them, or by `variance` mean -
    variance_weight * variance (Coste et al. 2023, 2310.02743, section 3.3; the variance is over the members that there
    are, divided by their number)."""

    members: list[LearnedReward]
    combine: Combine
    variance_weight: float | None  # of `variance` alone
    name: str = "ensemble"

    def __call__(self, sequences: Sequences) -> Tensor:
        """[B]"""
        return combined(self.scores(sequences), self.combine, self.variance_weight)

    def scores(self, sequences: Sequences) -> Tensor:
        """[members, B]"""
        return torch.stack([member(sequences) for member in self.members])

    def disagreement(self, sequences: Sequences) -> Tensor:
        """[B] standard deviation between the members, as in the variance."""
        return self.scores(sequences).std(0, correction=0)

    @property
    def normalised(self) -> list[dict[str, float] | None]:
        return [member.normalised for member in self.members]


def combined(scores: Tensor, combine: Combine, variance_weight: float | None) -> Tensor:
    """[B] of the members' scores [members, B]."""
    if combine == "worst":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean - variance_weight * scores.var(0, correction=0) if combine == "variance" else mean
