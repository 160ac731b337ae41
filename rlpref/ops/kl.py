"""Sample estimators of KL(policy || ref) from samples of the policy. Schulman 2020, "Approximating KL
divergence". With log_ratio = log policy - log ref on the policy's own samples:"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """Unbiased, may be negative on a sample."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Biased, low variance near 0: half of the squared log-ratio."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """Unbiased and never negative: ref/policy - 1 - log(ref/policy)."""
    return torch.expm1(-log_ratio) + log_ratio


def controlled(coef: Tensor, kl: Tensor, target: float, gain: float) -> Tensor:
    """[..] the next weight of a KL that should settle at `target` nats, from the weight [..] under which it was `kl`
    [..]: coef (1 + gain e) with e = clip(kl / target - 1, -0.2, 0.2). Ziegler et al. 2019 (1909.08593), section 2.2,
    where the gain is K_beta."""
    return coef * (1 + gain * (kl / target - 1).clamp(-0.2, 0.2))
