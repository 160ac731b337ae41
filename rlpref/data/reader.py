"""Reading rows of any kind: every bad line is named with its place, its reason and the mend."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rlpref.binding import ConfigError
from rlpref.data.checks import BadRow, kind
from rlpref.data.rows import AnyRow, canonical_row

log = logging.getLogger(__name__)

SHOWN = 20  # bad rows that a message spells out


def read_jsonl(
    path: str | Path, bad_rows: str, to_row: Callable[[dict, str], AnyRow] = canonical_row
) -> tuple[list[AnyRow], int]:
    """Rows of a .jsonl or .jsonl.gz file and the number of bad ones that were left out.

    `to_row(record, default_id)` makes the row of one JSON object and raises BadRow. Blank lines are no rows. With
    `bad_rows='error'` ConfigError names each bad row as file:line: reason; mend. With 'skip' the same lines are
    logged and counted.
    """
    lines = ((f"{path}:{number}", f"row-{number}", line) for number, line in _lines(Path(path)))
    return gather_rows(lines, lambda line, default_id: to_row(_json_object(line), default_id), bad_rows)


def gather_rows(
    records: Iterable[tuple[str, str, Any]], to_row: Callable[[Any, str], AnyRow], bad_rows: str
) -> tuple[list[AnyRow], int]:
    """Rows made from (place, default id, record), and the number left out. Ids must be unique.

    Raises ConfigError for bad rows under `bad_rows='error'`, and where no row is left.
    """
    if bad_rows not in ("error", "skip"):
        raise ConfigError(f"bad_rows is '{bad_rows}'; it must be 'error' or 'skip'.")
    rows: list[AnyRow] = []
    places: dict[str, str] = {}
    problems: list[str] = []
    for place, default_id, record in records:
        try:
            row = to_row(record, default_id)
            if row.id in places:
                raise BadRow(f"id '{row.id}' is already that of {places[row.id]}", "give each row its own id")
        except BadRow as problem:
            problems.append(f"{place}: {problem}")
            continue
        places[row.id] = place
        rows.append(row)
    report = "\n".join([*problems[:SHOWN], *([f"and {len(problems) - SHOWN} more"] * (len(problems) > SHOWN))])
    if problems and (bad_rows == "error" or not rows):
        raise ConfigError(f"{len(problems)} bad rows (data.bad_rows=skip leaves them out):\n{report}")
    if problems:
        log.warning("left out %d bad rows:\n%s", len(problems), report)
    if not rows:
        raise ConfigError("The data hold no rows: the file or data set is empty.")
    return rows, len(problems)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, as bytes: one bad byte must not cost the file."""
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}' (looked from {Path.cwd()}): check the data's path.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path}: the gzip file is damaged or cut short ({error}): fetch it again.") from error


def _json_object(line: bytes) -> dict:
    try:
        record = json.loads(line.decode(), object_pairs_hook=_unique_keys)
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        raise BadRow(f"invalid UTF-8 at byte {error.start}", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON ({error.msg} at column {error.colno})", "write one JSON object per line") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise BadRow(f"JSON that cannot be read ({error})", "write one flat JSON object per line") from error
    if not isinstance(record, dict):
        raise BadRow(f"{kind(record)}, not an object", "write one JSON object per line")
    return record


def _unique_keys(items: list[tuple[str, Any]]) -> dict:
    record = dict(items)
    if len(record) < len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow(f"key '{twice}' appears twice in one object", "keep one of the two")
    return record
