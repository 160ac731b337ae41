"""Reductions over completion tokens only."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.ops.blocks import blocks

TOKENS = (-2, -1)  # the rows and columns of one batch, whatever stands before them


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] = TOKENS, keepdim: bool = False) -> Tensor:
    """Mean of `values` where `mask` holds, over `dim` (all tokens of a batch [.., B, T]); 0 where there is none."""
    mask = mask.to(values.dtype)
    kept = torch.where(mask.bool(), values, torch.zeros_like(values))
    return kept.sum(dim, keepdim) / mask.sum(dim, keepdim).clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor, keepdim: bool = False) -> Tensor:
    """[..] population variance over the masked tokens of each batch [.., B, T]; 0 where there are none."""
    return masked_mean((values - masked_mean(values, mask, keepdim=True)) ** 2, mask, keepdim=keepdim)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` [.., B, T] scaled to unit variance (and to mean 0 with `shift_mean`) over the masked tokens of each
    whole batch, 0 elsewhere. Variance is the population one; fewer than two tokens are left as they are."""
    mean = masked_mean(values, mask, keepdim=True)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask, keepdim=True) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    enough = mask.sum(TOKENS, keepdim=True) >= 2
    return torch.where(mask, torch.where(enough, whitened, values), torch.zeros_like(values))


def whiten_runs(tokens: Tensor, mask: Tensor, runs: int, shift_mean: bool = True) -> Tensor:
    """`masked_whiten` [B, T] of the tokens of each run by itself."""
    return masked_whiten(blocks(tokens, runs), blocks(mask, runs), shift_mean).flatten(0, 1)


def last_masked(mask: Tensor) -> Tensor:
    """[B] column of the last masked token of each row (0 in a row without any)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, torch.zeros_like(columns)).amax(1)
