"""Which of several scored answers are kept."""

from __future__ import annotations

import torch
from torch import Tensor

ONE_EACH = ("max", "median", "random")


def one_of_each(scores: Tensor, k: int, keep: str) -> Tensor:
    """[prompts] row of one answer to each prompt, of scores [prompts * k] whose rows of one prompt follow each other:
    that of the highest score (`max`), the lower `median`, or any (`random`)."""
    groups = scores.view(-1, k)
    start = torch.arange(len(groups), device=scores.device) * k
    if keep == "random":  # answers are in no order: the first one is any
        return start
    return start + groups.argsort(1)[:, -1 if keep == "max" else (k - 1) // 2]
