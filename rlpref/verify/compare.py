"""Two losses of the same tokens: how far apart their values are, and their gradients token by token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.verify.oracle import Oracle
from rlpref.verify.tokens import Tokens, draw
from rlpref.verify.trl_stubs import in_double

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Difference:
    """The largest of any seed, relative to the largest of TRL's numbers."""

    oracle: Oracle
    value: float
    gradient: float
    tolerance: float

    @property
    def within(self) -> bool:
        return self.value <= self.tolerance and self.gradient <= self.tolerance  # False where one is nan


def apart(one: Tensor, other: Tensor) -> float:
    """max |one - other| / max |other|"""
    return float((one - other).abs().max() / other.abs().max().clamp(min=torch.finfo(other.dtype).tiny))


def gradient(value: Tensor, tokens: Tokens) -> Tensor:
    """Of every answer token's log-prob, then of every answer's reward."""
    leaves = tokens.logps, tokens.rewards
    logps, rewards = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([logps[tokens.mask], rewards])


def compare(oracle: Oracle, seeds: Sequence[int], dtype: torch.dtype = torch.float64) -> Difference:
    """Ours against TRL's on one random batch for each seed."""
    values, gradients = [], []
    for seed in seeds:
        tokens = draw(seed, dtype)
        ours = oracle.value(tokens)
        with in_double() if oracle.in_double and dtype == torch.float64 else nullcontext():
            theirs = oracle.peer_value(tokens)
            slopes = [gradient(value, tokens) for value in (ours, theirs)]
        values.append(apart(ours.detach(), theirs.detach()))
        gradients.append(apart(*slopes))
    return Difference(oracle, _largest(values), _largest(gradients), TOLERANCE[dtype])


def _largest(numbers: list[float]) -> float:
    """nan where there is one, which Python's max may pass over."""
    return float(torch.tensor(numbers, dtype=torch.float64).max())
