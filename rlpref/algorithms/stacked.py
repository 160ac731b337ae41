"""One algorithm for several runs side by side, whose hyperparameters may differ in beta and tau."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Algorithm
from rlpref.losses.inputs import PairLogps
from rlpref.ops.blocks import Unstackable, spread

PER_RUN = ("beta", "scale")  # fields that an algorithm reads through `spread`


@dataclass
class StackedLoss:
    """A pair loss with a hyperparameter [runs] that differs between runs; rows [B] are blocks of runs."""

    loss: Callable[..., Tensor]
    hyperparameters: dict[str, Tensor | float]

    def __call__(self, lp: PairLogps) -> Tensor:
        own = {name: spread(value, len(lp.chosen)) for name, value in self.hyperparameters.items()}
        return self.loss(lp, **own)


def stack_algorithms(algorithms: list[Algorithm], device: torch.device) -> Algorithm:
    """Raises Unstackable, by name, for settings that have no replica axis."""
    stacked = copy.copy(algorithms[0])
    for field in fields(stacked):
        values = [getattr(algorithm, field.name) for algorithm in algorithms]
        setattr(stacked, field.name, _stack(field.name, values, device))
    return stacked


def _stack(name: str, values: list, device: torch.device):
    first = values[0]
    if isinstance(first, partial):
        return _stack_loss(values, device)
    if all(value == first for value in values):
        return first
    if name in PER_RUN:
        return torch.tensor(values, device=device)
    raise Unstackable(f"the runs differ in '{name}'")


def _stack_loss(losses: list[partial], device: torch.device):
    first = losses[0]
    if any(loss.func is not first.func or loss.keywords.keys() != first.keywords.keys() for loss in losses):
        raise Unstackable("the runs have different losses")
    hyperparameters = {}
    for name, value in first.keywords.items():
        values = [loss.keywords[name] for loss in losses]
        hyperparameters[name] = (
            value if all(other == value for other in values) else torch.tensor(values, device=device)
        )
    differ = any(isinstance(value, Tensor) for value in hyperparameters.values())
    return StackedLoss(first.func, hyperparameters) if differ else first
