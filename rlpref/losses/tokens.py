"""Losses on tokens that are no policy gradients. Inputs and outputs are [B, T]; the caller masks and reduces."""

from __future__ import annotations

import torch
from torch import Tensor


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each token, in nats."""
    return -logps


def value_clip(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None) -> Tensor:
    """0.5 max((V - R)^2, (clip(V, V_old +- cliprange_value) - R)^2), V_old the critic when it was sampled.
    None: no clip. The clipped value loss of OpenAI's PPO; Engstrom et al. 2020 (2005.12729), section 3."""
    if cliprange_value is None:
        return 0.5 * (values - returns) ** 2
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
