"""Random answers, token by token: what both sides of a comparison are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlpref.losses.inputs import AnswerLogps, PairLogps
from rlpref.ops.logps import decayed_sum
from rlpref.ops.masked import masked_mean
from rlpref.types import TensorBatch

ANSWERS, LONGEST = 16, 12


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

    def normal() -> Tensor:
        return torch.randn(ANSWERS, LONGEST, generator=generator, dtype=torch.float64)

    lengths = 1 + torch.randperm(ANSWERS, generator=generator) % LONGEST
    mask = torch.arange(LONGEST) < lengths[:, None]
    logits, other = 1.5 * normal(), 1.5 * normal()
    pair = [other, other + 2.5 * normal()]
    columns = [logits, logits + 2.5 * normal(), normal(), *(pair if seed % 2 == 0 else pair[::-1])]
    drawn = [torch.where(mask, -softplus(column), 0.0).to(dtype) for column in columns]
    return Tokens(drawn[0].requires_grad_(), *drawn[1:], mask=mask, label=torch.arange(ANSWERS) % 3 > 0)


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
