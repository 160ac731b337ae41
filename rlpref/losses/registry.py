"""Names to losses. A new loss is one function under `@pair_loss`; nothing else is edited."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlpref.binding import bind, choose
from rlpref.types import PairLogps

LOSSES: dict[str, Callable[..., Tensor]] = {}


def pair_loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Registers `function(lp: PairLogps, **hyperparameters) -> [B]` under its own name."""
    if function.__name__ in LOSSES:
        raise ValueError(f"a loss named '{function.__name__}' is registered already")
    LOSSES[function.__name__] = function
    return function


def make_loss(name: str, **hyperparameters) -> Callable[[PairLogps], Tensor]:
    """The pair loss of that name with its hyperparameters bound: PairLogps -> [B], one value per pair.

    Raises ConfigError for an unknown name and for a hyperparameter that is missing or that the loss does
    not use.
    """
    return bind(choose(LOSSES, name, "loss"), hyperparameters, f"loss '{name}'", given_by_code=1)
