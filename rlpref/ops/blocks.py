"""Several runs side by side: their rows stand under each other in equal blocks. An ordinary run is one block."""

from __future__ import annotations

import torch
from torch import Tensor


class Unstackable(Exception):
    """Runs that cannot be trained side by side; each can be trained alone."""


def blocks(rows: Tensor, runs: int) -> Tensor:
    """[rows, ...] seen as [runs, rows of one run, ...]."""
    return rows.unflatten(0, (runs, -1))


def spread(value: float | Tensor, rows: int) -> float | Tensor:
    """[rows] a hyperparameter that differs between runs [runs], repeated over the rows of each; a float as it is."""
    return value.repeat_interleave(rows // len(value)) if isinstance(value, Tensor) else value


def uniform(generators: list[torch.Generator], rows: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """[rows, *shape] random numbers in [0, 1), each block of rows from the generator of its run: what the run would
    have drawn alone."""
    each = rows // len(generators)
    drawn = [torch.rand(each, *shape, generator=one, device=one.device, dtype=dtype) for one in generators]
    return torch.cat(drawn)


def chosen_rows(columns: list[Tensor], rows: int) -> Tensor:
    """Rows of a batch of `rows` rows: from each run's block those that its own index tensor names."""
    each = rows // len(columns)
    return torch.cat([column + run * each for run, column in enumerate(columns)])
