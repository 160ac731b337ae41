"""A trained reward model as a scorer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.models.heads import ScalarHead, answer_scores
from rlpref.types import Sequences


@dataclass
class LearnedReward:
    """`scorer(sequences)` -> [B], without gradient, `chunk` rows at a time."""

    model: ScalarHead
    chunk: int
    name: str = "learned"

    @torch.no_grad()
    def __call__(self, sequences: Sequences) -> Tensor:
        return torch.cat(
            [answer_scores(self.model, sequences[at : at + self.chunk]) for at in range(0, len(sequences), self.chunk)]
        )
