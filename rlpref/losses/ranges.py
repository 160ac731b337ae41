"""What numbers a hyperparameter may be, written as its annotation: `clip: Positive = 1.0`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args


@dataclass(frozen=True)
class Range:
    words: str
    holds: Callable[[float], bool]


Positive = Annotated[float, Range("above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Range("at least 0", lambda x: x >= 0)]
AboveOne = Annotated[float, Range("above 1", lambda x: x > 1)]
Share = Annotated[float, Range("from 0 to 1", lambda x: 0 <= x <= 1)]
SomeShare = Annotated[float, Range("above 0 and at most 1", lambda x: 0 < x <= 1)]
UpToHalf = Annotated[float, Range("from 0 to 0.5", lambda x: 0 <= x <= 0.5)]


def range_of(hint: Any) -> Range | None:
    """The range that an annotation carries, also inside `... | None`."""
    if ranges := [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]:
        return ranges[0]
    return next((found for part in get_args(hint) if (found := range_of(part))), None)
