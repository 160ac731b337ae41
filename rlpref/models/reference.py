"""The reference: a frozen policy. Under an adapter it is the policy itself with the adapter switched off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from rlpref.models.adapters import adapter_is_zero
from rlpref.models.hashing import base_hash, weights_hash
from rlpref.models.reference_cache import ReferenceCache
from rlpref.ops.twin import running


@dataclass
class Reference:
    """What the policy is compared with."""

    model: nn.Module
    adapter_off: bool
    cache: ReferenceCache | None = None  # of a reference that never moves, where its log-probs are kept on disk

    @property
    def hash(self) -> str:
        """Of the weights as they are now; with `adapter_off` of the base model alone. It reads all of them."""
        return base_hash(self.model) if self.adapter_off else policy_hash(self.model)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The module to call, without gradients; the adapter is back on afterwards."""
        adapter = self.model.disable_adapter() if self.adapter_off else nullcontext()
        with torch.no_grad(), adapter:
            yield self.model


def freeze(policy: nn.Module) -> Reference:
    """The policy as it is now, before training: shared with a LoRA policy whose adapter is still zero, else a
    frozen deep copy, in the dtype that the policy computes in."""
    return Reference(policy, adapter_off=True) if adapter_is_zero(policy) else snapshot(running(policy))


def policy_hash(policy: nn.Module) -> str:
    """Equal for policies that compute the same: an adapter that is still zero does not count."""
    return base_hash(policy) if adapter_is_zero(policy) else weights_hash(policy)


def snapshot(policy: nn.Module) -> Reference:
    """A frozen deep copy of the policy as it is now, adapter included: a reference that `follow` can move."""
    return Reference(copy.deepcopy(policy).requires_grad_(False).eval(), adapter_off=False)


@torch.no_grad()
def follow(reference: Reference, policy: nn.Module, rate: float) -> None:
    """reference <- rate * policy + (1 - rate) * reference, in place; with rate 1 it is the policy bit for bit.

    `reference` is a `snapshot` of `policy`; what does not train is equal in both. Under LoRA the mean is that of the
    adapter's factors, not of their product.
    """
    for own, parameter in zip(reference.model.parameters(), policy.parameters(), strict=True):
        if parameter.requires_grad:
            own.lerp_(parameter, rate)
