"""Names to losses. A new loss is one function under `@register` in a file of this room; nothing else is edited: its
configuration, its page in docs/losses.md and its tests are made from the registry."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from rlpref.binding import ConfigError, bind, choose, hyperparameters
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardLists, RewardPairs, RolloutLogps
from rlpref.losses.ranges import range_of
from rlpref.types import TensorBatch

Bound = Callable[[TensorBatch], Tensor]  # a loss with its hyperparameters

TAKES = {
    PairLogps: "pairs",
    AnswerLogps: "unpaired",
    ListLogps: "kwise",
    RolloutLogps: "rollouts",
    RewardPairs: "reward pairs",
    RewardLists: "reward lists",
}


@dataclass(frozen=True)
class Entry:
    """A registered loss and what it claims of itself; tests hold it to every claim."""

    function: Callable[..., Tensor]
    takes: type[TensorBatch]
    at_ref: str | None = None  # value per example at policy == reference, in hyperparameters and functions of math
    shift_invariant: bool = False  # a constant added to both log-ratios of a pair changes nothing
    # Its minimum is the KL-regularised optimum at its beta, at the defaults of all else: over Bradley-Terry pairs or
    # Plackett-Luce rankings by the gold rewards, which are the scores where it reads their values.
    kl_optimal: bool = False
    coupled: bool = False  # the value of an example depends on the others of its minibatch
    linked: bool = False  # it puts a link of its own (an f-divergence) in place of the log-ratio
    nll: bool = False  # it has a likelihood term of its own
    reduce: str = "example"  # of a loss [B, T]: token_mean | sequence_mean | sequence_sum

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def data(self) -> str:
        """The kind of data that it takes."""
        return TAKES[self.takes]

    @property
    def hyperparameters(self) -> dict[str, inspect.Parameter]:
        return hyperparameters(self.function, 1)

    @property
    def formula(self) -> str:
        """The first sentence of the docstring."""
        return re.split(r"\.\s", " ".join(self.function.__doc__.split()) + " ", maxsplit=1)[0]

    @property
    def papers(self) -> list[str]:
        """arXiv numbers that the docstring names."""
        return re.findall(r"\b\d{4}\.\d{5}\b", self.function.__doc__)

    @property
    def regularisation(self) -> str | None:
        """The hyperparameter that stands for the objective's beta, `beta` or `tau`: one without a default."""
        required = [name for name, p in self.hyperparameters.items() if p.default is inspect.Parameter.empty]
        return required[0] if required else None

    def at(self, beta: float) -> dict[str, float]:
        """The hyperparameters that it cannot do without: its beta or tau."""
        return {self.regularisation: beta} if self.regularisation else {}


LOSSES: dict[str, Entry] = {}


def register(function: Callable[..., Tensor] | None = None, **claims):
    """Registers `function(batch, **hyperparameters) -> [B]` (policy-gradient losses: [B, T]) under its own name. The
    annotation of its first parameter says what it takes. A hyperparameter without a default is the beta of the run;
    all others default to the paper's value. `claims` are fields of Entry."""
    if function is None:
        return lambda function: register(function, **claims)
    before = LOSSES.get(function.__name__)
    if before and not before.function.__module__ == function.__module__ == "__main__":  # a notebook's cell runs again
        raise ValueError(f"a loss named '{function.__name__}' is registered already")
    if not function.__doc__:
        raise ValueError(f"loss '{function.__name__}' needs a docstring: its formula, then its paper")
    takes = next(iter(get_type_hints(function).values()))
    LOSSES[function.__name__] = Entry(function, takes, **claims)
    return function


def make_loss(name: str, **settings) -> Bound:
    """The loss of that name with its hyperparameters bound.

    Raises ConfigError for an unknown name, for a hyperparameter that is missing, that the loss does not use or that is
    out of range, and where the loss has no finite value with them.
    """
    entry = choose(LOSSES, name, "loss")
    loss = bind(entry.function, settings, f"loss '{name}'", given_by_code=1)
    hints = get_type_hints(entry.function, include_extras=True)
    for key, value in settings.items():
        wanted = range_of(hints[key])
        if wanted and value is not None and not wanted.holds(value):
            raise ConfigError(f"loss '{name}': '{key}' must be {wanted.words}, not {value}.")
    try:
        sound = bool(loss(probe(entry.takes)).isfinite().all())
    except ZeroDivisionError:
        sound = False
    if not sound:
        raise ConfigError(f"loss '{name}' has no finite value with {describe(settings)}: change one of these.")
    return loss


def variants(name: str, beta: float) -> list[dict[str, Any]]:
    """Hyperparameters to try a loss with: its defaults at that beta (or tau), and every choice of every hyperparameter
    that has choices; what a choice needs and the defaults leave unset is 0.5."""
    entry = LOSSES[name]
    hints = get_type_hints(entry.function)
    choices = {key: get_args(hints[key]) for key in entry.hyperparameters if get_origin(hints[key]) is Literal}
    unset = {key: 0.5 for key, p in entry.hyperparameters.items() if p.default is None}
    found = []
    for values in itertools.product(*choices.values()):
        chosen = entry.at(beta) | dict(zip(choices, values))
        try:
            make_loss(name, **chosen)
        except ConfigError:
            chosen |= unset
        found.append(chosen)
    return found


def describe(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


ALWAYS = ("weight", "present", "mask", "label")  # columns that no loss has to ask for


def probe(takes: type[TensorBatch], seed: int = 0) -> TensorBatch:
    """A small batch with every column filled, fp64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4,) if takes in (PairLogps, AnswerLogps, RewardPairs) else (4, 3)

    def column(name: str) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        if name in ("label", "present", "mask"):
            return torch.ones(shape, dtype=torch.bool) if name != "label" else drawn > 0.5
        if "len" in name:
            return 1 + (drawn * 5).long()
        if name == "weight":
            return drawn[:, 0] if len(shape) == 2 else drawn
        if name == "chosen_score":
            return 1 + drawn
        return drawn if name in ("rejected_score", "soft_label", "margin") else -0.1 - drawn

    return takes(**{field.name: column(field.name) for field in fields(takes)})


def columns_read(loss: Bound, takes: type[TensorBatch] = PairLogps) -> frozenset[str]:
    """The columns of its input that the value of a loss depends on, with the hyperparameters it has: seen by changing
    them one at a time, not declared."""
    rows, others = probe(takes), probe(takes, seed=1)
    before = loss(rows)

    def changes(name: str) -> bool:
        column, other = getattr(rows, name), getattr(others, name)
        unknown = torch.full_like(column, torch.nan) if column.is_floating_point() else other
        return any(not torch.equal(loss(replace(rows, **{name: new})), before) for new in (other, unknown))

    return frozenset(field.name for field in fields(takes) if field.name not in ALWAYS and changes(field.name))


def cancels(loss: Bound, changed: tuple[str, ...]) -> bool:
    """Whether a number of its own for each pair, added to these columns of PairLogps, leaves the loss what it was."""
    rows = probe(PairLogps)
    by = torch.linspace(0.3, 1.1, len(rows), dtype=torch.float64)
    moved = replace(rows, **{name: getattr(rows, name) - by for name in changed})
    return torch.allclose(loss(rows), loss(moved), rtol=0, atol=1e-9)


def of_log_ratios(loss: Bound) -> bool:
    """Whether a pair loss depends on log-probs through the two log-ratios alone."""
    return all(cancels(loss, (side, f"ref_{side}")) for side in ("chosen", "rejected"))


def of_the_margin(loss: Bound) -> bool:
    """Whether a pair loss does not feel a constant added to both log-ratios of a pair."""
    return cancels(loss, ("chosen", "rejected"))
