"""Judges: a language model that compares two answers, or scores one, by the log-probs of its verdict.

A preference is `preference(first, second)` -> [B], the probability that the first of two answers to the same prompt is
the better one, 1/2 for a tie. Zheng et al. 2023 (2306.05685): a judge sees each pair in both orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlpref.models.bundle import in_chunks
from rlpref.models.reference import Reference
from rlpref.ops.logps import token_logps
from rlpref.rewards.rubric import Question
from rlpref.rewards.scorer import completion_texts
from rlpref.types import Sequences


@dataclass
class Verdicts:
    """What a judge says of n pairs: log-probs [2, n, words] of its words, which name the answer shown first, the one
    shown second, and a tie where the rubric has one. Row 0 shows the pair's first answer first, row 1 its second."""

    logps: Tensor

    @property
    def named(self) -> Tensor:
        """[2, n] in each order the likeliest word: 1 for the pair's first answer, -1 for its second, 0 for a tie."""
        shown = torch.tensor([1, -1, 0], device=self.logps.device)[self.logps.argmax(-1)]
        return shown * torch.tensor([[1], [-1]], device=shown.device)

    @property
    def first_shown(self) -> Tensor:
        """[2, n] bool: whether the answer that stands first on the page was named."""
        return self.logps.argmax(-1) == 0

    @property
    def flipped(self) -> Tensor:
        """[n] bool: the other order has another verdict."""
        return self.named[0] != self.named[1]

    def wins(self, order_conflict: Literal["tie", "mean"]) -> Tensor:
        """[n] the probability that the first answer wins: of each order's words, a tie counting half, the mean over
        both orders. `order_conflict` tie: 1/2 unless both orders name the same answer (Zheng et al. 2023, 3.4)."""
        words = self.logps.softmax(-1)
        shown = words[..., 0] + words[..., 2:].sum(-1) / 2
        mean = (shown[0] + 1 - shown[1]) / 2
        undecided = self.flipped | (self.named[0] == 0)
        return torch.where(undecided, 0.5, mean) if order_conflict == "tie" else mean


@dataclass
class Reader:
    """A model that is asked, not trained, and says how likely each of some words is as its answer to a request."""

    model: Reference
    encode: Callable[[list[str], tuple[str, ...]], Sequences]  # rlpref.data.requests: each request with each word
    chunk: int  # requests in one pass

    def __call__(self, requests: list[str], words: tuple[str, ...]) -> Tensor:
        """[requests, words] log-prob of each word, in nats."""
        with self.model.active() as model:
            rows = self.encode(requests, words).to(next(model.parameters()).device)
            read = in_chunks(lambda part: token_logps(model, part.trimmed())[0].sum(1), rows, self.chunk * len(words))
        return read.view(len(requests), len(words))


@dataclass
class PairJudge:
    """A preference: which of two answers, in both orders."""

    question: Question
    reader: Reader
    texts: Callable[[Sequences], tuple[list[str], list[str]]]  # prompts and answers, as the policy's tokenizer has them
    order_conflict: Literal["tie", "mean"]
    name: str = "judge"

    def __call__(self, first: Sequences, second: Sequences) -> Tensor:
        """[B] as `Verdicts.wins`."""
        prompts, answers = self.texts(first)
        return self.verdicts(prompts, answers, self.texts(second)[1]).wins(self.order_conflict).to(first.ids.device)

    def verdicts(self, prompts: list[str], first: list[str], second: list[str]) -> Verdicts:
        """Of n pairs of texts."""
        asked = [
            self.question.fill(prompt=prompt, first=one, second=other)
            for left, right in ((first, second), (second, first))
            for prompt, one, other in zip(prompts, left, right, strict=True)
        ]
        return Verdicts(self.reader(asked, self.question.words).view(2, len(prompts), -1))


@dataclass
class PointJudge:
    """A scorer: log p(good) - log p(bad), the verdict's log-odds on one answer alone."""

    question: Question
    reader: Reader
    texts: Callable[[Sequences], tuple[list[str], list[str]]]
    name: str = "judge"

    def __call__(self, sequences: Sequences) -> Tensor:
        """[B] in nats."""
        return self.scores(*self.texts(sequences)).to(sequences.ids.device)

    def scores(self, prompts: list[str], answers: list[str]) -> Tensor:
        """Of n answers as texts."""
        asked = [self.question.fill(prompt=prompt, answer=answer) for prompt, answer in zip(prompts, answers)]
        good, bad = self.reader(asked, self.question.words).unbind(1)
        return good - bad


def plain_texts(tokenizer, sequences: Sequences) -> tuple[list[str], list[str]]:
    """The prompt of each row without the frame of the tokenizer's chat template, and the answer. Of a longer dialogue
    the names of the speakers stay between the turns."""
    prompt_only = sequences.attention_mask & ~sequences.mask
    ids = [row[kept].tolist() for row, kept in zip(sequences.ids.cpu(), prompt_only.cpu())]
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "@@"}]
        frame = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False).partition("@@")
        opening, _, closing = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in frame)
        ids = [_without(row, opening, closing) for row in ids]
    prompts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in prompts], completion_texts(tokenizer, sequences)


def _without(ids: list[int], opening: list[int], closing: list[int]) -> list[int]:
    if ids[: len(opening)] == opening:
        ids = ids[len(opening) :]
    return ids[: -len(closing)] if closing and ids[-len(closing) :] == closing else ids
