"""The reference: a frozen policy. Under LoRA it is the policy itself with the adapter switched off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from rlpref.models.hashing import base_hash, weights_hash
from rlpref.models.lm import has_adapter


@dataclass
class Reference:
    """`hash` names the reference's weights; with `adapter_off` it is that of the base model alone."""

    model: nn.Module
    adapter_off: bool
    hash: str

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The module to call, without gradients; the adapter is back on afterwards."""
        adapter = self.model.disable_adapter() if self.adapter_off else nullcontext()
        with torch.no_grad(), adapter:
            yield self.model


def freeze(policy: nn.Module) -> Reference:
    """The policy as it is now, before training: shared with a LoRA policy whose adapter is still zero, else a
    frozen deep copy."""
    if adapter_is_zero(policy):
        return Reference(policy, adapter_off=True, hash=base_hash(policy))
    return snapshot(policy)


def policy_hash(policy: nn.Module) -> str:
    """Equal for policies that compute the same: an adapter that is still zero does not count."""
    return base_hash(policy) if adapter_is_zero(policy) else weights_hash(policy)


def snapshot(policy: nn.Module) -> Reference:
    """A frozen deep copy of the policy as it is now, adapter included: the reference of a later round."""
    model = copy.deepcopy(policy).requires_grad_(False).eval()
    return Reference(model, adapter_off=False, hash=weights_hash(model))


def adapter_is_zero(policy: nn.Module) -> bool:
    """Whether there is an adapter and every LoRA B is zero, so that it adds nothing."""
    return has_adapter(policy) and not any(p.any() for name, p in policy.named_parameters() if ".lora_B." in name)
