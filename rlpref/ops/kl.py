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
