"""Small statistics of the evaluator: means with standard errors, win rates, diversity."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_and_se(values: Tensor, all_prompts: bool) -> tuple[float, float]:
    """Mean of [prompts, k] values and its standard error.

    Prompts are a sample from many, so the error is that between prompts; with `all_prompts` they are all
    there are (testbed), and only the answers are random: the error is that within prompts.
    """
    values = values.double()
    prompts, k = values.shape
    if all_prompts:
        se = (values.var(1) / k).sum().sqrt() / prompts if k > 1 else torch.tensor(0.0)
    else:
        se = values.mean(1).std() / prompts**0.5 if prompts > 1 else torch.tensor(0.0)
    return float(values.mean()), float(se)


def with_se(name: str, values: Tensor, groups: Tensor | None = None) -> dict[str, float]:
    """{name: mean, name_se: its standard error} of one value for each prompt or pair [B].

    Values are independent, or with `groups` [B] only those of different groups: see `grouped_se`.
    """
    value, se = mean_and_se(values[:, None], all_prompts=False)
    return {name: value, f"{name}_se": se if groups is None else grouped_se(values, groups)}


def grouped_se(values: Tensor, groups: Tensor) -> float:
    """Standard error of the mean of values [B] that hang together within each of `groups` [B], 0 for a single group:
    sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / B, that of a regression on a constant alone.
    Liang and Zeger 1986; Cameron and Miller 2015, eq. 11 with the factor G / (G - 1)."""
    values = values.double().cpu()  # where sums are the same each time
    number = groups.cpu().unique(return_inverse=True)[1]
    sums = values.new_zeros(int(number.max()) + 1).index_add(0, number, values - values.mean())
    return float((len(sums) / (len(sums) - 1) * sums.square().sum()).sqrt() / len(values)) if len(sums) > 1 else 0.0


def share_right(name: str, margins: Tensor, groups: Tensor | None = None) -> dict[str, float]:
    """How often a margin [B] is above 0, a tie counting one half, with its standard error: see `with_se`."""
    return with_se(name, (margins > 0).double() + 0.5 * (margins == 0).double(), groups)


def wins(rewards: Tensor, opponent: Tensor) -> tuple[Tensor, float]:
    """(win rate [prompts, k] of each answer against all k' answers of the opponent to the same prompt, a tie
    counting one half; share of ties). Arguments are [prompts, k] and [prompts, k']."""
    difference = rewards[:, :, None] - opponent[:, None, :]
    ties = (difference == 0).double()
    return ((difference > 0).double() + 0.5 * ties).mean(2), float(ties.mean())


def distinct_n(answers: list[list[int]], n: int) -> float:
    """Share of different n-grams among all n-grams of the answers. Li et al. 2016 (1510.03055)."""
    grams = [tuple(answer[i : i + n]) for answer in answers for i in range(len(answer) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
