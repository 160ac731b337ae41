"""Per-token rewards with the KL in them, and generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.ops.masked import last_masked, masked_variance


def penalised_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, beta: float | Tensor) -> Tensor:
    """[B, T] reward after each token: -beta log policy/ref, and with the last masked token the answer's score [B].
    beta is one number or one for each row [B]. Ziegler et al. 2019 (1909.08593), eq. 2, spread over the tokens."""
    rewards = -(beta * log_ratio.T).T
    rewards[torch.arange(len(rewards)), last_masked(mask)] += scores
    return rewards


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


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """[..] 1 - Var(returns - values) / Var(returns) over the masked tokens of each batch [.., B, T]: 1 for a perfect
    critic, 0 for a constant one, and worse below."""
    return 1 - masked_variance(returns - values, mask) / masked_variance(returns, mask).clamp(min=1e-12)
