"""Generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Advantages [B, T] of the masked tokens. Schulman et al. 2016 (1506.02438), eq. 16.

    `rewards` at t arrive after token t, `values` at t belong to the state before token t. The masked tokens
    of a row are one stretch; the value after its last token is 0 (the answer has ended).
    """
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * gae_lambda * running, torch.zeros_like(running))
        advantages[:, t] = running
        next_value = torch.where(mask[:, t], values[:, t], torch.zeros_like(next_value))
    return advantages
