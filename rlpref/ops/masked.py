"""Reductions over completion tokens only."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` holds, over `dim` or over everything; 0 where nothing is selected."""
    mask = mask.to(values.dtype)
    kept = torch.where(mask.bool(), values, torch.zeros_like(values))
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim) / mask.sum(dim).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` [B, T] scaled to unit variance (and to mean 0 with `shift_mean`) over the masked tokens of the
    whole batch, 0 elsewhere. Variance is the population one; fewer than two tokens are left as they are."""
    if mask.sum() < 2:
        return torch.where(mask, values, torch.zeros_like(values))
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, torch.zeros_like(values))


def last_masked(mask: Tensor) -> Tensor:
    """[B] column of the last masked token of each row (0 in a row without any)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, torch.zeros_like(columns)).amax(1)
