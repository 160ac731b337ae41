"""The configurations that nobody writes: for every registered loss one of the group `algorithm/loss`, with its
hyperparameters, and for every loss that trains a policy on data one of the group `algorithm`.

They are read from the source of rlpref/losses, not from its registry: composing a configuration must not wait for
torch. A hyperparameter without a default is the run's beta."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOSSES = Path(__file__).parent / "losses"
ON_DATA = ("PairLogps", "AnswerLogps", "ListLogps")  # what losses take that train a policy on data
TAKEN = (*ON_DATA, "RewardPairs", "RewardLists", "RolloutLogps")  # by an algorithm that lets one choose


@dataclass
class Signature:
    """What the source says of a loss."""

    name: str
    takes: str  # the annotation of its first parameter
    hyperparameters: dict[str, Any]


def signatures() -> Iterator[Signature]:
    """Of every function under `@register`, in the order of files and lines."""
    for file in sorted(LOSSES.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
            if isinstance(node, ast.FunctionDef) and any(_registers(d) for d in node.decorator_list):
                yield _signature(node)


def configs() -> Iterator[tuple[str, str, dict]]:
    """(group, option, configuration) of each."""
    for loss in signatures():
        if loss.takes in TAKEN:
            yield "algorithm/loss", loss.name, {"name": loss.name, **loss.hyperparameters}
        if loss.takes in ON_DATA:
            yield "algorithm", loss.name, _algorithm(loss)


def _algorithm(loss: Signature) -> dict:
    parts = [{"loss": loss.name}, *([{"modifiers": "none"}] if loss.takes == "PairLogps" else [])]
    return {
        "defaults": [*parts, "_self_"],
        "name": "${.loss.name}",
        "kind": "offline",
        "epochs": "${budget.offline.epochs}",
        "batch_size": "${budget.batch_size}",
    }


def _registers(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id == "register"


def _signature(node: ast.FunctionDef) -> Signature:
    first, *rest = node.args.args
    defaults = [None] * (len(rest) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(rest, defaults), *zip(node.args.kwonlyargs, node.args.kw_defaults)]
    values = {p.arg: "${beta}" if default is None else ast.literal_eval(default) for p, default in pairs}
    return Signature(node.name, ast.unparse(first.annotation), values)
