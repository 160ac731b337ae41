"""Full fine-tuning in bfloat16 without losing small updates: a module keeps its weights in float32, and a twin in
bfloat16 does the computing.

The optimizer, checkpoints and hashes know the weights in float32 alone. Gradients of the twin are added to theirs as
soon as they are there, so that sums over micro-batches are in float32. Micikevicius et al. 2018 (1710.03740), 3.1.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Twin:
    """The same module in another dtype. A deep copy of the module gets a twin of its own."""

    def __init__(self, master: nn.Module, dtype: torch.dtype):
        self.master, self.dtype = master, dtype
        self.module: nn.Module | None = None
        self.versions: list[int] = []

    def __deepcopy__(self, memo: dict) -> Twin:
        return Twin(memo[id(self.master)] if id(self.master) in memo else copy.deepcopy(self.master, memo), self.dtype)

    def synced(self) -> nn.Module:
        """The twin, its weights rounded from those of its master where they have changed."""
        masters = list(self.master.parameters())
        versions = [master._version for master in masters]
        if self.module is None:
            self.module = self._made()
        elif versions != self.versions:
            with torch.no_grad():
                torch._foreach_copy_(list(self.module.parameters()), masters)
        self.versions = versions
        return self.module

    def _made(self) -> nn.Module:
        kept = self.master.__dict__.pop("twin")
        module = copy.deepcopy(self.master)
        self.master.twin = kept
        for own, master in zip(module.parameters(), self.master.parameters(), strict=True):
            own.data = own.data.to(self.dtype)  # buffers, such as rotary frequencies, stay as they are
            if own.requires_grad:
                own.register_post_accumulate_grad_hook(lambda twin, master=master: _hand_over(twin, master))
        return module


def _hand_over(own: Tensor, master: Tensor) -> None:
    if master.grad is None:
        master.grad = own.grad.to(master.dtype)
    else:
        master.grad += own.grad
    own.grad = None


def compute_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`module`, which from now on computes in `dtype` wherever `running` is asked what to run."""
    if next(module.parameters()).dtype != dtype:
        module.twin = Twin(module, dtype)
    return module


def running(module: nn.Module) -> nn.Module:
    """What computes in the place of `module`: its twin as its weights are now, or itself."""
    twin = getattr(module, "twin", None)
    return twin.synced() if twin else module
