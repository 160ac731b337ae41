"""Losses on tokens: supervised and policy-gradient. Inputs and outputs are [B, T]; the caller masks and reduces."""

from __future__ import annotations

import torch
from torch import Tensor


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each token, in nats."""
    return -logps


def reinforce(logps: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi, whose gradient is the score-function estimate. Williams 1992."""
    return -advantages * logps


def ppo_clip(logps: Tensor, old_logps: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """-min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange) * A). Schulman et al. 2017 (1707.06347), eq. 7."""
    ratio = torch.exp(logps - old_logps)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange))


def value_clip(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> Tensor:
    """0.5 max((V - R)^2, (clip(V, V_old +- cliprange_value) - R)^2), V_old the critic when it was sampled.
    The clipped value loss of OpenAI's PPO; Engstrom et al. 2020 (2005.12729), section 3."""
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
