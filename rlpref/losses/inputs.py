"""What losses see: log-probs, lengths and scores of one minibatch, nothing of the model. Log-probs are in nats, and
sums over the completion unless they are [B, T]. A column that is None is not there; a loss that reads it says so by
reading it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlpref.types import TensorBatch


@dataclass
class PairLogps(TensorBatch):
    """Preference pairs; all [B]."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor
    chosen_score: Tensor | None = None  # external reward of the answer
    rejected_score: Tensor | None = None
    soft_label: Tensor | None = None  # probability that the chosen answer is the better one
    chosen_kl: Tensor | None = None  # sum over the answer's tokens of KL(ref || policy) of the next token
    rejected_kl: Tensor | None = None
    chosen_confidence: Tensor | None = None  # mean over tokens of log p(token) - log sum p^2: WPO's alignment
    rejected_confidence: Tensor | None = None
    weight: Tensor | None = None

    def swapped(self) -> PairLogps:
        """The same pairs with the other label."""
        sides = {"chosen": "rejected", "rejected": "chosen"}
        columns = dict(self.items())
        other = {name: columns[name.replace(side, sides[side])] for name in columns for side in sides if side in name}
        label = None if self.soft_label is None else 1 - self.soft_label
        return PairLogps(**columns | other | {"soft_label": label})


@dataclass
class AnswerLogps(TensorBatch):
    """Single answers with a label; all [B]."""

    logps: Tensor
    ref_logps: Tensor
    length: Tensor
    label: Tensor  # bool: desirable
    mismatched: Tensor | None = None  # log policy/ref of the row's prompt with another row's completion
    score: Tensor | None = None
    weight: Tensor | None = None


@dataclass
class ListLogps(TensorBatch):
    """K answers to each prompt; all [B, K] but weight [B]. Where `present` is False there is no answer: 0."""

    logps: Tensor
    ref_logps: Tensor
    length: Tensor
    scores: Tensor  # higher is better
    present: Tensor  # bool
    weight: Tensor | None = None


@dataclass
class RolloutLogps(TensorBatch):
    """Tokens of sampled answers; all [B, T] (or [..., T])."""

    logps: Tensor
    old_logps: Tensor  # of the policy that sampled
    advantages: Tensor
    mask: Tensor  # bool: the tokens that count
    ref_logps: Tensor | None = None


@dataclass
class RewardPairs(TensorBatch):
    """A reward model's scores of preference pairs; all [B]."""

    chosen: Tensor
    rejected: Tensor
    margin: Tensor | None = None  # how much better the chosen answer was found to be
    soft_label: Tensor | None = None  # probability that the chosen answer is the better one
    chosen_target: Tensor | None = None  # the true score, where a model is fitted to scores
    rejected_target: Tensor | None = None


@dataclass
class RewardLists(TensorBatch):
    """A reward model's scores of K answers to each prompt; all [B, K]."""

    rewards: Tensor
    scores: Tensor  # external, higher is better: the order that the model should learn
    present: Tensor  # bool


def per_row(beta: float | Tensor) -> float | Tensor:
    """A beta of each row [B] as a column; one number as it is."""
    return beta[:, None] if isinstance(beta, Tensor) and beta.dim() else beta
