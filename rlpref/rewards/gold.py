"""Scorers that are programs: gold rewards that stand for the true preference, and costs."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.rewards.scorer import completion_texts
from rlpref.types import Sequences


class VaderScorer:
    """VADER's compound sentiment of the completion, in [-1, 1]; an answer without text gets 0.

    Hutto & Gilbert 2014, with the lexicon and rules of the vaderSentiment package. Deterministic and easy to
    exploit ("great great great"), which is what an over-optimization study wants of a gold reward.
    """

    name = "vader"

    def __init__(self, tokenizer):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon when built

        self.tokenizer = tokenizer
        self.polarity = SentimentIntensityAnalyzer().polarity_scores

    def __call__(self, sequences: Sequences) -> Tensor:
        """[B] fp32 on the device of the sequences."""
        texts = completion_texts(self.tokenizer, sequences)
        scores = [self.polarity(text)["compound"] if text.strip() else 0.0 for text in texts]
        return torch.tensor(scores, dtype=torch.float32, device=sequences.ids.device)


class AnswerLength:
    """Tokens of the completion, EOS included: a cost that every answer has."""

    name = "length"

    def __call__(self, sequences: Sequences) -> Tensor:
        """[B] fp32 on the device of the sequences."""
        return sequences.lengths.float()
