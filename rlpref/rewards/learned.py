"""A trained reward model as a scorer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.models.heads import ScalarHead, last_token_scores
from rlpref.types import Sequences


def answer_scores(model: ScalarHead, sequences: Sequences) -> Tensor:
    """[B] the reward model's number at the last real token of each sequence, with gradient."""
    values = model(sequences.ids, sequences.attention_mask.long(), sequences.position_ids)
    return last_token_scores(values, sequences)


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
