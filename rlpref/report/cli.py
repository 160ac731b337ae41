"""The command `rlpref-report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlpref.report.folders import NoRuns
from rlpref.report.frames import Sweep, load
from rlpref.report.page import write
from rlpref.report.statistics import headline
from rlpref.report.tables import readable


def build(folders: str | PathLike | Sequence[str | PathLike], quiet: bool = False) -> Path:
    """The report of the runs under `folders`, written to <first folder>/report; returns the page's path.

    Prints the headline table unless `quiet`. Raises NoRuns where a folder holds no run.
    """
    several = [folders] if isinstance(folders, str | PathLike) else folders
    return _publish(load(*several), quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 with --strict when a run failed; 2 when there is nothing to report on."""
    parser = argparse.ArgumentParser(
        prog="rlpref-report", description="Figures and one page from run folders."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a sweep or a run, such as runs/demo")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a run failed or is missing")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args(arguments)
    try:
        sweep = load(*options.folders)
    except NoRuns as error:
        print(f"rlpref-report: {error}", file=sys.stderr)
        return 2
    _publish(sweep, options.quiet)
    broken = sweep.unfinished["status"].isin(["failed", "interrupted"]).any() or len(sweep.missing) > 0
    return 1 if options.strict and broken else 0


def _publish(sweep: Sweep, quiet: bool) -> Path:
    page = write(sweep)
    if not quiet:
        _print(sweep, page)
    return page


def _print(sweep: Sweep, page: Path) -> None:
    # Markup is off for all that comes from the runs: an error message may hold square brackets.
    console = Console(markup=False, highlight=False)
    table = readable(headline(sweep))
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in table.columns:
        grid.add_column(name, overflow="fold")
    for row in table.values.tolist():
        grid.add_row(*row)
    console.print(grid)
    for run in sweep.unfinished.to_dict("records"):
        reason = run["error"].strip().splitlines()[-1] if isinstance(run["error"], str) else ""
        console.print(f"{run['status']}: {run['run']} {reason}".rstrip())
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main())
