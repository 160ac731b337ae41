"""The command `rlpref-losses`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for a loss that is not registered."""
    parser = argparse.ArgumentParser(prog="rlpref-losses", description="All registered losses, or some in full.")
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="show these in full")
    parser.add_argument("--write", metavar="DOCS", help="write losses.md and its pictures into this folder")
    options = parser.parse_args(arguments)
    from rlpref.binding import ConfigError, choose  # after --help and bad arguments are answered
    from rlpref.catalogue import table
    from rlpref.losses import LOSSES

    if options.write:
        from rlpref.catalogue.shapes import write

        folder = Path(options.write)
        print(*write(folder / "losses"), sep="\n")
        (folder / "losses.md").write_text(table.page(), encoding="utf-8")
        print(folder / "losses.md")
        return 0
    try:
        for name in options.losses:
            choose(LOSSES, name, "loss")
            print(table.shown(name))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.losses:
        _print_table(table.COLUMNS, table.text())
    return 0


NARROW = (0, 3, 4, 6)  # columns that fit into 80 characters


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # a pipe has no width: one loss a line
        console = Console(width=max(sum(map(len, row)) for row in rows) + 60)
    shown = range(len(header)) if console.width >= 160 else NARROW
    drawn = Table(*(header[column] for column in shown), box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*(row[column] for column in shown))
    console.print(drawn)
    console.print(f"{len(rows)} losses; rlpref-losses NAME shows one in full.")
