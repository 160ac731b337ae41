"""Bounds that keep a loss finite. None is silent: within `counted()` every number that was held back is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

LARGEST_EXPONENT = 80.0  # exp of it is 5.5e34: a few thousand of them add up in fp32

_held: ContextVar[list[Tensor] | None] = ContextVar("held", default=None)


def bounded(values: Tensor, low: float = float("-inf"), high: float = float("inf")) -> Tensor:
    """`values` held between `low` and `high`; what was outside has no gradient and is counted."""
    if (held := _held.get()) is not None:
        held.append((values < low) | (values > high))
    return values.clamp(low, high)


def bounded_exp(values: Tensor) -> Tensor:
    """exp of at most LARGEST_EXPONENT."""
    return torch.exp(bounded(values, high=LARGEST_EXPONENT))


def log1mexp(logps: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, stable at both ends; x is held below -eps of its dtype, where it would be -inf.
    Maechler 2012, "Accurately computing log(1 - exp(-|a|))"."""
    x = bounded(logps, high=-torch.finfo(logps.dtype).eps)
    far = x < -0.6931
    return torch.where(
        far, torch.log1p(-torch.exp(torch.where(far, x, -1.0))), torch.log(-torch.expm1(torch.where(far, -1.0, x)))
    )


@contextmanager
def counted() -> Iterator[list[Tensor]]:
    """Collects a boolean mask of what each bound held back, in the order of the calls."""
    token = _held.set([])
    try:
        yield _held.get()
    finally:
        _held.reset(token)


def rows_held(masks: list[Tensor], rows: int) -> Tensor:
    """[rows] whether any bound held something of that row back; one number for the whole minibatch is every row's."""
    return torch.stack([mask.expand(rows) if mask.dim() == 0 else mask.view(rows, -1).any(1) for mask in masks]).any(0)
