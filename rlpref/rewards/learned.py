"""A trained reward model as a scorer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlpref.models.bundle import in_chunks
from rlpref.models.heads import ScalarHead, answer_scores
from rlpref.types import Sequences


@dataclass
class LearnedReward:
    """`scorer(sequences)` -> [B], without gradient, at most `chunk` rows at a time."""

    model: ScalarHead
    chunk: int
    name: str = "learned"

    def __call__(self, sequences: Sequences) -> Tensor:
        return in_chunks(lambda part: answer_scores(self.model, part), sequences, self.chunk)
