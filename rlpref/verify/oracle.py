"""One row of the comparison: a loss of ours beside the loss of TRL that should be equal to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlpref.losses.inputs import RolloutLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.losses.registry import LOSSES
from rlpref.losses.rollouts import reduced
from rlpref.verify.tokens import Tokens, view


@dataclass(frozen=True)
class Oracle:
    """TRL's loss, `theirs` of the tokens, is `factor` times the batch mean of ours."""

    loss: Mapping[str, Any]  # name and hyperparameters
    theirs: partial
    modifiers: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    pair_by_pair: bool = False  # TRL takes a mean over all tokens of its micro-batch: one pair is one micro-batch
    in_double: bool = False  # TRL computes in fp32 whatever its input is: its casts are lifted to compare in fp64
    outside: Callable[[Tokens], Tensor] | None = None  # ours, where it is a function outside the registry
    note: str = ""

    @property
    def name(self) -> str:
        return self.loss["name"]

    @property
    def ours(self) -> str:
        """Loss, hyperparameters and modifiers as one writes them."""
        values = ", ".join(f"{key}={value}" for key, value in self.loss.items() if key != "name")
        over = [f"{key} {_plain(value)}".removesuffix(" True") for key, value in self.modifiers.items()]
        return " + ".join([f"{self.name}({values})", *over])

    @property
    def trl(self) -> str:
        """TRL's trainer and settings."""
        settings = dict(self.theirs.keywords)
        kind = settings.pop("loss_type", "")
        return f"{self.theirs.func.__name__} {_plain(kind)} {_plain(settings)}".replace("  ", " ")

    def objective(self) -> Objective:
        """Ours. Raises ConfigError where a modifier makes no sense with the loss."""
        return make_objective(self.loss, (LOSSES[self.name].takes,), make_modifiers(self.modifiers))

    def value(self, tokens: Tokens) -> Tensor:
        """Our loss times the factor: a scalar."""
        if self.outside:
            return self.factor * self.outside(tokens)
        objective = self.objective()
        seen = view(tokens, objective.entry.takes, objective.modifiers.ld_alpha)
        value, weight = objective(seen), torch.ones(())
        if isinstance(seen, RolloutLogps):
            value, weight = reduced(value, seen.mask, objective.entry.reduce)
        return self.factor * (weight * value).sum() / weight.expand_as(value).sum()

    def peer_value(self, tokens: Tokens) -> Tensor:
        """TRL's loss: a scalar."""
        if not self.pair_by_pair:
            return self.theirs(tokens)
        each = [self.theirs(pair) for pair in tokens.pairs]
        return sum(each) / len(each)


def _plain(value: Any) -> str:
    """Without the signs of a program."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(one)}" for key, one in value.items())
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
