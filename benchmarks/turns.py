"""Sides that take turns: each lives in a process of its own, loads its model once and does one pass when it is asked.

Whatever slows the machine for a while slows all sides alike, and the ratio of two passes of the same round says more
than the ratio of two means.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NoMoreTurns(Exception):
    """Ends a side that waits for its next turn."""


class Turn:
    """A side's end of the pipe: `turn(report)` hands over the report of a pass and waits until another is asked for."""

    def __init__(self, connection):
        self.connection = connection

    def __call__(self, report: dict[str, Any] | None = None) -> None:
        self.connection.send((report or {}) | {"peak_gb": peak_gb()})
        if not self.connection.recv():
            raise NoMoreTurns


@dataclass
class Side:
    """`function(turn, **settings)` prepares, calls `turn()`, and from then on does a pass and calls `turn(report)`."""

    name: str
    function: Callable[..., None]
    settings: dict[str, Any] = field(default_factory=dict)


def by_turns(sides: list[Side], repeats: int, warm_up: int = 1) -> dict[str, list[dict]]:
    """The reports of each side, one for each pass: first those that warm up, then `repeats` more.

    A side's processes all live at once. RuntimeError, with the side's own traceback, where one fails.
    """
    started = []
    try:
        for side in sides:
            started.append((side, *_start(side)))
            _answer(*started[-1])  # loaded: one after another, as loading is what takes most memory
        reports: dict[str, list[dict]] = {side.name: [] for side in sides}
        for _ in range(warm_up + repeats):
            for side, process, connection in started:
                connection.send(True)
                reports[side.name].append(_answer(side, process, connection))
        return reports
    finally:
        for _, process, connection in started:
            _end(process, connection)


def _start(side: Side):
    spawn = multiprocessing.get_context("spawn")  # a fork would begin with the memory of its parent
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(side.function, side.settings, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(function: Callable[..., None], settings: dict[str, Any], connection) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the report alone goes to standard output
    try:
        function(Turn(connection), **settings)
    except (NoMoreTurns, EOFError):
        return
    except Exception:
        connection.send(traceback.format_exc())


def _answer(side: Side, process, connection) -> dict:
    try:
        answer = connection.recv()
    except EOFError:
        process.join()
        answer = f"it ended with exit code {process.exitcode}"
    if isinstance(answer, str):
        raise RuntimeError(f"{side.name}: {answer}")
    return answer


def _end(process, connection) -> None:
    with contextlib.suppress(OSError):  # it has failed and gone
        connection.send(False)
    process.join(timeout=30)
    if process.is_alive():
        process.terminate()


def peak_gb() -> float:
    """Largest memory of this process so far in GB: the accelerator's where one is in use, else resident memory."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start with that of the parent
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


@contextlib.contextmanager
def timed(seconds: dict[str, float], part: str, device: str) -> Iterator[None]:
    """Writes how long the block took; an accelerator finishes first what it still has to do."""
    _finish(device)
    begun = time.perf_counter()
    yield
    _finish(device)
    seconds[part] = time.perf_counter() - begun


def _finish(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """Of passes of the same round."""
    return [one / other for one, other in zip(slow, fast, strict=True)]


def interval(values: list[float], digits: int = 2) -> str:
    """Median with smallest and largest."""
    shown = [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
