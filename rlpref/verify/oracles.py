"""All rows of the comparison."""

from __future__ import annotations

from rlpref.losses.registry import LOSSES
from rlpref.verify import preferences, rollouts
from rlpref.verify.oracle import Oracle


def oracles() -> list[Oracle]:
    """In the order of printing."""
    return [*preferences.ROWS, *rollouts.ROWS]


def without_counterpart() -> list[str]:
    """Registered losses that no row compares."""
    return sorted(LOSSES.keys() - {row.name for row in oracles()})
