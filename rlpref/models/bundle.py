"""Everything an algorithm works with, in one place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlpref.models.heads import ScalarHead
from rlpref.models.reference import Reference
from rlpref.models.reference_rule import FIXED, ReferenceRule
from rlpref.ops.logps import (
    Comparison,
    compare,
    read_completions,
    token_confidence,
    token_forward_kl,
    token_logps,
)
from rlpref.ops.twin import running
from rlpref.types import Sequences, TensorBatch, cat, token_counts

TOKENS = 32_768  # in one pass without gradient: rows alone would let memory grow with their length


@dataclass
class Models:
    """The policy and its company. The policy is softmax(logits / temperature), everywhere."""

    policy: nn.Module
    ref: Reference | None  # what losses and penalties compare the policy with; None: nothing
    initial: Reference  # the policy as it was before training: what the evaluator measures KL from
    tokenizer: Any
    eos_token_id: int
    temperature: float
    max_new_tokens: int
    chunk: int  # rows in one pass without gradient
    engine: Any  # rlpref.rollout.engine.Engine: what answers prompts for training
    reward: Callable[[Sequences], Tensor] | None = None  # the score that training may use
    gold: Callable[[Sequences], Tensor] | None = None  # the truth, for labels and evaluation
    cost: Callable[[Sequences], Tensor] | None = None  # what a constraint holds below its limit
    preference: Callable[[Sequences, Sequences], Tensor] | None = None  # [B] P(first beats second), for training
    reward_model: ScalarHead | None = None
    critic: ScalarHead | None = None
    rule: ReferenceRule = FIXED  # how `ref` moves

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    @property
    def trains_on_a_proxy(self) -> bool:
        """Whether training scores answers by something else than the truth."""
        return self.reward is not None and self.reward is not self.gold

    @property
    def starts_at_reference(self) -> bool:
        """Whether the policy before training is the reference."""
        return self.ref is self.initial or self.rule.moves

    @property
    def policy_dtype(self) -> torch.dtype:
        """What the policy computes in."""
        return next(running(self.policy).parameters()).dtype

    def policy_logps(self, sequences: Sequences, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """[B, T] log-probs (and entropies on demand) of the policy, with gradient."""
        return token_logps(self.policy, sequences, self.temperature, entropy)

    def confidence(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """[B, T] log-probs of the policy, with gradient, and its confidence in each token (`token_confidence`)."""
        return token_confidence(self.policy, sequences, self.temperature)

    def forward_kl(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """[B, T] log-probs of the policy and KL(ref || policy) at each token, both with gradient."""
        read = read_completions(self.policy, sequences, self.temperature)
        with self.ref.active() as ref:
            ref_read = read_completions(ref, sequences, self.temperature)
        return token_forward_kl(read, ref_read)

    def ref_logps(self, sequences: Sequences, reference: Reference | None = None) -> Tensor:
        """[B, T] log-probs of the reference, no gradient, in chunks; an answer that comes again is read once."""
        rows, again = distinct(sequences)
        with (reference or self.ref).active() as model:
            found = in_chunks(lambda part: token_logps(model, part, self.temperature)[0], rows, self.chunk)
        return found[again]

    def fixed_ref_logps(self, sequences: Sequences, reference: Reference | None = None) -> Tensor:
        """`ref_logps` of rows that other runs read, too: from disk where the reference keeps them there."""
        reference = reference or self.ref
        if reference.cache is None:
            return self.ref_logps(sequences, reference)
        return reference.cache.logps(sequences, lambda rows: self.ref_logps(rows, reference))

    def compare_with_initial(self, sequences: Sequences) -> Comparison:
        """The policy beside the reference it started from, no gradient, in chunks."""

        def compared(part: Sequences) -> Comparison:
            read = read_completions(self.policy, part, self.temperature)
            with self.initial.active() as ref:
                return compare(read, read_completions(ref, part, self.temperature))

        return in_chunks(compared, sequences, self.chunk)


@torch.no_grad()
def in_chunks(function: Callable, batch: TensorBatch, rows: int):
    """`function` over at most `rows` rows and TOKENS tokens at a time (a longer row alone), results under each other.
    No gradient is kept."""
    ends = token_counts(batch).cumsum(0).tolist()
    parts, start = [], 0
    while start < len(batch):
        limit = TOKENS + (ends[start - 1] if start else 0)
        stop = max(start + 1, min(start + rows, bisect_right(ends, limit)))
        parts.append(function(batch[start:stop]))
        start = stop
    return cat(parts) if isinstance(parts[0], TensorBatch) else torch.cat(parts)


def distinct(sequences: Sequences) -> tuple[Sequences, Tensor]:
    """Each different row once, and for every row [B] where it stands among them. Pairs repeat answers: those formed
    from lists of K answers up to K - 1 times, those of the testbed thousands of times."""
    marks = sequences.attention_mask.long() + sequences.mask.long()
    _, again = torch.unique(torch.cat([sequences.ids, marks], 1), dim=0, return_inverse=True)
    rows = torch.arange(len(sequences), device=again.device)
    first = rows.new_full((int(again.max()) + 1,), len(sequences)).scatter_reduce(0, again, rows, "amin")
    return sequences[first], again
