"""The two protocols of all that says how good answers are: a score of one, a preference between two. Gold scorers and
learned reward models score; a judge may do either; a score makes a preference."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import Protocol

from torch import Tensor

from rlpref.models.bundle import distinct
from rlpref.types import Sequences, cat


class Scorer(Protocol):
    """`scorer(sequences)` gives each answer one number, [B]; logs and cache keys know it by its `name`."""

    name: str

    def __call__(self, sequences: Sequences) -> Tensor: ...


class Preference(Protocol):
    """`preference(first, second)` gives each row, two answers to one prompt, the probability [B] that the first is the
    better one. Whoever depends on their order asks both ways and takes the mean: P(a, b) + P(b, a) = 1."""

    name: str

    def __call__(self, first: Sequences, second: Sequences) -> Tensor: ...


@dataclass
class BradleyTerry:
    """The preference that a score makes: sigmoid(difference of the scores). Bradley and Terry 1952."""

    scorer: Scorer

    @property
    def name(self) -> str:
        return f"bradley_terry of {self.scorer.name}"

    def __call__(self, first: Sequences, second: Sequences) -> Tensor:
        """[B]. An answer that stands in several pairs is scored once."""
        answers, again = distinct(cat([first, second]))
        one, other = self.scorer(answers)[again].chunk(2)
        return (one - other).sigmoid()


def completion_ids(sequences: Sequences) -> list[list[int]]:
    """The completion tokens of each row (EOS included), read by the mask alone."""
    rows = zip(sequences.ids.tolist(), sequences.mask.tolist())
    return [list(compress(ids, mask)) for ids, mask in rows]


def completion_texts(tokenizer, sequences: Sequences) -> list[str]:
    """The text of each completion without special tokens and prompt, blanks as the tokens have them."""
    ids = completion_ids(sequences)
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
