"""The command `rlpref-verify`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlpref.verify.compare import Difference

WRITTEN_FOR = "1.16"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when a row is further apart than its tolerance; 2 where TRL is missing or of another version."""
    parser = argparse.ArgumentParser(
        prog="rlpref-verify", description="Our losses against TRL's on random answers: value and token gradient."
    )
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64", help="default: float64")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="random batches for each row (default: 5)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if problem := missing():
        print(f"rlpref-verify: {problem}", file=sys.stderr)
        return 2
    import torch

    from rlpref.verify.compare import compare
    from rlpref.verify.oracles import oracles

    rows = [compare(oracle, range(options.seeds), getattr(torch, options.dtype)) for oracle in oracles()]
    _print(rows, options.dtype, options.seeds)
    return 0 if all(row.within for row in rows) else 1


def missing() -> str | None:
    """What keeps the comparison from running, and the mend."""
    try:
        installed = version("trl")
    except PackageNotFoundError:
        return "needs TRL, which is not installed: pip install 'rlpref[verify]'"
    if not installed.startswith(f"{WRITTEN_FOR}."):
        return f"is written for TRL {WRITTEN_FOR}, but {installed} is installed: pip install 'rlpref[verify]'"
    return None


def _print(rows: Sequence[Difference], dtype: str, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from rlpref.verify.oracles import without_counterpart
    from rlpref.verify.preferences import LEFT_OUT

    # A file has no width: there a row is never folded.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 240, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("ours", "TRL", "value", "gradient", "", "note"):
        table.add_column(title, justify="right" if title in ("value", "gradient") else "left", overflow="fold")
    for row in rows:
        factor = "" if row.oracle.factor == 1 else f"{row.oracle.factor:g} x "
        note = ("in fp64 by lifted casts; " if row.oracle.in_double and dtype == "float64" else "") + row.oracle.note
        mark = "" if row.within else "DIFFERS"
        table.add_row(factor + row.oracle.ours, row.oracle.trl, f"{row.value:.0e}", f"{row.gradient:.0e}", mark, note)
    console.print(table)
    beyond = sum(not row.within for row in rows)
    print(
        f"\n{len(rows)} rows against TRL {version('trl')} in {dtype}, {seeds} random batches each: {beyond} beyond "
        f"{rows[0].tolerance:.0e}. Differences are relative to the largest of TRL's numbers."
    )
    for modifier, (reason, names) in LEFT_OUT.items():
        print(f"left out, {modifier} over {', '.join(sorted(names))}: {reason}")
    print(f"no counterpart in TRL: {', '.join(without_counterpart())}")


if __name__ == "__main__":
    sys.exit(main())
