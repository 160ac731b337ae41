"""Two language models as one: the geometric mixture of their next-token distributions."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from rlpref.models.reference import Reference
from rlpref.ops.twin import running


@dataclass
class BothCaches:
    """Where both models stand in each row."""

    policy: Any
    ref: Any

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.policy.batch_repeat_interleave(repeats)
        self.ref.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.policy.batch_select_indices(indices)
        self.ref.batch_select_indices(indices)


class Mixture(nn.Module):
    """Each token from policy^(1 - share) ref^share / Z, the call of a causal LM, without gradient. Munos et al. 2023
    (2312.00886), section 7.1: it is mixed token by token, which is not the mixture of whole answers where there are
    several tokens. Neither model is packed here: the sampler reads it with the caches that the models keep."""

    def __init__(self, policy: nn.Module, ref: Reference, share: float):
        super().__init__()
        self.policy, self.ref, self.share = running(policy), ref, share

    @torch.no_grad()
    def forward(self, input_ids, past_key_values: BothCaches | None = None, **inputs) -> SimpleNamespace:
        """As a HF causal LM that is asked for its cache: `.logits` and `.past_key_values`."""
        own, other = (past_key_values.policy, past_key_values.ref) if past_key_values else (None, None)
        read = self.policy(input_ids=input_ids, past_key_values=own, **inputs)
        with self.ref.active() as ref:
            beside = ref(input_ids=input_ids, past_key_values=other, **inputs)
        # Normalisers are the same for all tokens: logits mix as log-probs do.
        logits = (1 - self.share) * read.logits + self.share * beside.logits
        return SimpleNamespace(logits=logits, past_key_values=BothCaches(read.past_key_values, beside.past_key_values))
