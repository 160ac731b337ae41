"""What the tests of every registered loss share: settings to try it with, batches, and a numerical gradient."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import torch

from rlpref.losses import LOSSES
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardLists, RewardPairs, RolloutLogps
from rlpref.losses.registry import variants

TRAINED = {  # the columns that carry the gradient
    PairLogps: ("chosen", "rejected", "chosen_kl", "rejected_kl"),
    AnswerLogps: ("logps",),
    ListLogps: ("logps",),
    RolloutLogps: ("logps",),
    RewardPairs: ("chosen", "rejected"),
    RewardLists: ("rewards",),
}
BETA = 0.3


def settings_of(name: str) -> list[dict]:
    """Hyperparameters to try a loss with."""
    return variants(name, BETA)


def cases(*takes: type, claim: str | None = None, default_only: bool = False) -> list:
    """(name, settings) of every registered loss that takes one of these and makes the claim."""
    names = [e.name for e in LOSSES.values() if (not takes or e.takes in takes) and (not claim or getattr(e, claim))]
    return [(name, settings) for name in names for settings in settings_of(name)[: 1 if default_only else None]]


def label(value) -> str:
    return value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()) or "defaults"


def batch(takes: type, rows: int = 5, seed: int = 0, dtype=torch.float64, tokens: int | None = None):
    """Random rows with every column, log-ratios of the order of 1, lengths that differ; rollouts of `tokens` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    def lengths(*shape):
        return torch.randint(1, 9, shape, generator=generator)

    if takes is PairLogps:
        ref = [-6 - 3 * rand(rows) for _ in range(2)]
        columns = {"ref_chosen": ref[0], "ref_rejected": ref[1], "chosen_len": lengths(rows)}
        columns |= {"chosen": ref[0] + randn(rows), "rejected": ref[1] + randn(rows), "rejected_len": lengths(rows)}
        scores = {"chosen_score": 1 + rand(rows), "rejected_score": rand(rows) - 0.5, "soft_label": rand(rows)}
        tokens = {f"{side}_{name}": rand(rows) for side in ("chosen", "rejected") for name in ("kl", "confidence")}
        return PairLogps(**columns, **scores, **tokens)
    if takes is AnswerLogps:
        ref, label = -6 - 3 * rand(rows), torch.arange(rows) % 2 == 0
        return AnswerLogps(ref + randn(rows), ref, lengths(rows), label, randn(rows), rand(rows))
    if takes is ListLogps:
        ref, present = -6 - 3 * rand(rows, 4), torch.ones(rows, 4, dtype=torch.bool)
        present[0, 2:] = False
        columns = (ref + randn(rows, 4), ref, lengths(rows, 4), rand(rows, 4))
        return ListLogps(*(torch.where(present, column, 0) for column in columns), present)
    if takes is RolloutLogps:
        width = tokens or 6
        mask = torch.arange(width) < (width if tokens else lengths(rows)[:, None]) * torch.ones(rows, 1)
        logps, old, advantages, ref = (torch.where(mask, randn(rows, width) * 0.3, 0.0) for _ in range(4))
        return RolloutLogps(logps - 1.0, old - 1.0, advantages, mask, ref - 1.0)
    if takes is RewardPairs:
        return RewardPairs(randn(rows), randn(rows), rand(rows), rand(rows), randn(rows), randn(rows))
    present = torch.ones(rows, 4, dtype=torch.bool)
    present[0, 2:] = False
    return RewardLists(randn(rows, 4), rand(rows, 4), present)


def moved(rows, name: str, values):
    return replace(rows, **{name: values})


@contextmanager
def held_detach(values: list, record: bool):
    """Within it, what a loss detaches is written down, or comes from what was written down: so that a numerical
    gradient holds constant what the loss holds constant."""
    original, position = torch.Tensor.detach, iter(range(10**6))

    def detach(tensor):
        if record:
            values.append(original(tensor).clone())
            return values[-1]
        return values[next(position)]

    torch.Tensor.detach = detach
    try:
        yield
    finally:
        torch.Tensor.detach = original


def numerical_gradient(loss, rows, name: str, epsilon: float = 1e-6) -> torch.Tensor:
    """Central differences of the summed loss by one column, fp64."""
    held: list = []
    with held_detach(held, record=True):
        loss(rows)
    column = getattr(rows, name)
    gradient = torch.zeros_like(column)
    for place in range(column.numel()):
        step = torch.zeros_like(column).flatten()
        step[place] = epsilon
        step = step.view_as(column)
        with held_detach(held, record=False):
            above = loss(moved(rows, name, column + step)).sum()
        with held_detach(held, record=False):
            below = loss(moved(rows, name, column - step)).sum()
        gradient.view(-1)[place] = (above - below) / (2 * epsilon)
    return gradient
