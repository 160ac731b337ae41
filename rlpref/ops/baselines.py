"""Baselines of the score-function gradient: what is taken off a reward without moving the gradient's mean."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-4  # beside a standard deviation, as in TRL: answers that all score alike have advantage 0


def leave_one_out(values: Tensor) -> Tensor:
    """[..., k] for each of k values the mean of the others. Kool et al. 2019; Ahmadian et al. 2024 (2402.14740), RLOO.
    Raises ValueError for k = 1, which has no others."""
    k = values.shape[-1]
    if k < 2:
        raise ValueError("leave-one-out needs at least two answers to a prompt")
    return (values.sum(-1, keepdim=True) - values) / (k - 1)


def moving_mean(mean: Tensor, values: Tensor, rate: float) -> Tensor:
    """[...] the running mean [...] once `values` [..., n] are seen: mean + rate (their mean - mean). A baseline for the
    answers drawn next, not for these. Williams 1992, reinforcement comparison."""
    return mean + rate * (values.mean(-1) - mean)


def over_spread(values: Tensor) -> Tensor:
    """[..., k] values less their mean, over their standard deviation (of a sample) plus 1e-4. Shao et al. 2024
    (2402.03300), eq. 3. Unlike a baseline it moves the mean of the gradient."""
    return (values - values.mean(-1, keepdim=True)) / (values.std(-1, keepdim=True) + EPSILON)
