"""Losses of reward models on the scores of chosen and rejected answers, [B] each."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r(chosen) - r(rejected)). Bradley & Terry 1952; Ouyang et al. 2022 (2203.02155), eq. 1."""
    return -logsigmoid(chosen - rejected)
