"""One algorithm for several runs side by side, whose hyperparameters may differ in beta and tau."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Algorithm
from rlpref.losses.modifiers import Objective
from rlpref.ops.blocks import Unstackable, spread
from rlpref.types import TensorBatch

PER_RUN = ("beta", "scale")  # fields that an algorithm reads through `spread`


@dataclass
class StackedLoss:
    """A loss with a hyperparameter [runs] that differs between runs; rows [B] are blocks of runs."""

    loss: Callable[..., Tensor]
    hyperparameters: dict[str, Tensor | float]

    def __call__(self, batch: TensorBatch) -> Tensor:
        own = {name: spread(value, len(batch)) for name, value in self.hyperparameters.items()}
        return self.loss(batch, **own)


def stack_algorithms(algorithms: list[Algorithm], device: torch.device) -> Algorithm:
    """Raises Unstackable, by name, for settings that have no replica axis."""
    stacked = copy.copy(algorithms[0])
    for field in fields(stacked):
        values = [getattr(algorithm, field.name) for algorithm in algorithms]
        setattr(stacked, field.name, _stack(field.name, values, device))
    return stacked


def _stack(name: str, values: list, device: torch.device):
    first = values[0]
    if isinstance(first, Objective):
        return _stack_objective(values, device)
    if all(value == first for value in values):
        return first
    if name == "method":  # an algorithm in an algorithm
        return stack_algorithms(values, device)
    if name in PER_RUN:
        return torch.tensor(values, device=device)
    raise Unstackable(f"the runs differ in '{name}'")


def _stack_objective(objectives: list[Objective], device: torch.device) -> Objective:
    first, losses = objectives[0], [objective.loss for objective in objectives]
    if any(loss.func is not losses[0].func or loss.keywords.keys() != losses[0].keywords.keys() for loss in losses):
        raise Unstackable("the runs have different losses")
    if any(objective.modifiers != first.modifiers for objective in objectives):
        raise Unstackable("the runs have different modifiers of their loss")
    if first.entry.coupled:
        raise Unstackable(f"loss '{first.entry.name}' takes a minibatch as a whole")
    hyperparameters = {}
    for name, value in losses[0].keywords.items():
        values = [loss.keywords[name] for loss in losses]
        hyperparameters[name] = (
            value if all(other == value for other in values) else torch.tensor(values, device=device)
        )
    differ = any(isinstance(value, Tensor) for value in hyperparameters.values())
    return replace(first, loss=StackedLoss(losses[0].func, hyperparameters)) if differ else first
