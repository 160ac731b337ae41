"""Random answers, token by token: what both sides of a comparison are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardPairs, RolloutLogps
from rlpref.ops.logps import decayed_sum
from rlpref.ops.masked import masked_mean
from rlpref.types import TensorBatch

ANSWERS, LONGEST, LIST = 16, 12, 4  # answers of a batch, tokens of an answer, answers to a prompt in a list


@dataclass
class Tokens(TensorBatch):
    """N answers of up to T tokens; as pairs the first half of the rows is chosen, the second rejected. Log-probs are in
    nats and 0 outside `mask`."""

    logps: Tensor  # [N, T] of the policy; a leaf
    ref_logps: Tensor  # [N, T]
    log_sum_sq: Tensor  # [N, T] log of the sum over the vocabulary of p^2
    other_logps: Tensor  # [N, T] of the policy, for the prompt with another prompt's answer
    other_ref_logps: Tensor  # [N, T]
    mask: Tensor  # [N, T] bool
    label: Tensor  # [N] bool: desirable
    old_logps: Tensor  # [N, T] of the policy that sampled
    advantages: Tensor  # [N] of whole answers
    scores: Tensor  # [N] external rewards
    rewards: Tensor  # [N] of a reward model; a leaf
    margin: Tensor  # [N] how much better the chosen answer of the pair is

    @property
    def lengths(self) -> Tensor:
        """[N]"""
        return self.mask.sum(1)

    @property
    def pairs(self) -> list[Tokens]:
        """Each pair alone."""
        half = len(self) // 2
        return [self[[row, half + row]] for row in range(half)]


def draw(seed: int, dtype: torch.dtype) -> Tokens:
    """Sixteen answers of 1 to 12 tokens: lengths within pairs differ, an answer of one token and both labels are there,
    the KL on other prompts' answers is above 0 at even seeds and below at odd ones, and the reference is so far from
    the policy that hinges bend."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(ANSWERS, *shape, generator=generator, dtype=torch.float64)

    lengths = 1 + torch.randperm(ANSWERS, generator=generator) % LONGEST
    mask = torch.arange(LONGEST) < lengths[:, None]
    logits, other = 1.5 * normal(LONGEST), 1.5 * normal(LONGEST)
    pair = [other, other + 2.5 * normal(LONGEST)]
    of_tokens = {
        "logps": logits,
        "ref_logps": logits + 2.5 * normal(LONGEST),
        "log_sum_sq": normal(LONGEST),
        **dict(zip(("other_logps", "other_ref_logps"), pair if seed % 2 == 0 else pair[::-1])),
        "old_logps": logits + 0.4 * normal(LONGEST),
    }
    columns = {name: torch.where(mask, -softplus(column), 0.0).to(dtype) for name, column in of_tokens.items()}
    columns |= {name: normal().to(dtype) for name in ("advantages", "scores", "rewards", "margin")}
    tokens = Tokens(**columns, mask=mask, label=torch.arange(ANSWERS) % 3 > 0)
    tokens.logps.requires_grad_()
    tokens.rewards.requires_grad_()
    return tokens


def as_pairs(tokens: Tokens, ld_alpha: float = 1.0) -> PairLogps:
    """What a pair loss sees of these answers; `ld_alpha` weights the tokens beyond the shorter answer of a pair."""
    shared = torch.minimum(*tokens.lengths.chunk(2)).repeat(2)
    columns = {
        "": decayed_sum(tokens.logps, tokens.mask, shared, ld_alpha),
        "ref_": decayed_sum(tokens.ref_logps, tokens.mask, shared, ld_alpha),
        "_len": tokens.lengths,
        "_confidence": masked_mean(tokens.logps.detach() - tokens.log_sum_sq, tokens.mask, dim=1),
    }
    sides = {}
    for name, column in columns.items():
        for side, values in zip(("chosen", "rejected"), column.chunk(2)):
            sides[name + side if name.endswith("_") else side + name] = values
    return PairLogps(**sides)


def as_answers(tokens: Tokens) -> AnswerLogps:
    """What a loss on single answers sees."""
    return AnswerLogps(
        logps=tokens.logps.sum(1),
        ref_logps=tokens.ref_logps.sum(1),
        length=tokens.lengths,
        label=tokens.label,
        mismatched=(tokens.other_logps - tokens.other_ref_logps).sum(1),
    )


def as_lists(tokens: Tokens) -> ListLogps:
    """What a loss on lists sees: four answers to each prompt."""
    lists = {
        "logps": tokens.logps.sum(1),
        "ref_logps": tokens.ref_logps.sum(1),
        "length": tokens.lengths,
        "scores": tokens.scores,
        "present": torch.ones_like(tokens.label),
    }
    return ListLogps(**{name: column.view(-1, LIST) for name, column in lists.items()})


def as_rollouts(tokens: Tokens) -> RolloutLogps:
    """What a policy-gradient loss sees: every token has the advantage of its answer."""
    advantages = tokens.advantages[:, None].expand_as(tokens.logps)
    return RolloutLogps(tokens.logps, tokens.old_logps, advantages, tokens.mask, tokens.ref_logps)


def as_reward_pairs(tokens: Tokens) -> RewardPairs:
    """What a reward model's loss sees."""
    return RewardPairs(*tokens.rewards.chunk(2), margin=tokens.margin.chunk(2)[0])


def view(tokens: Tokens, takes: type[TensorBatch], ld_alpha: float = 1.0) -> TensorBatch:
    """These answers as a loss that takes such batches sees them."""
    if takes is PairLogps:
        return as_pairs(tokens, ld_alpha)
    others = {AnswerLogps: as_answers, ListLogps: as_lists, RolloutLogps: as_rollouts, RewardPairs: as_reward_pairs}
    return others[takes](tokens)
