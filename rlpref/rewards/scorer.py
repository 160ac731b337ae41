"""The one protocol of all rewards of whole answers: gold scorers, learned reward models, judges."""

from __future__ import annotations

from itertools import compress
from typing import Protocol

from torch import Tensor

from rlpref.types import Sequences


class Scorer(Protocol):
    """`scorer(sequences)` gives each answer one number, [B]; logs and cache keys know it by its `name`."""

    name: str

    def __call__(self, sequences: Sequences) -> Tensor: ...


def completion_ids(sequences: Sequences) -> list[list[int]]:
    """The completion tokens of each row (EOS included), read by the mask alone."""
    rows = zip(sequences.ids.tolist(), sequences.mask.tolist())
    return [list(compress(ids, mask)) for ids, mask in rows]


def completion_texts(tokenizer, sequences: Sequences) -> list[str]:
    """The text of each completion without special tokens and prompt, blanks as the tokens have them."""
    ids = completion_ids(sequences)
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
