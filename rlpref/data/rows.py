"""The one canonical preference row, its checks, and the reader that names every bad line."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpref.binding import ConfigError
from rlpref.data.checks import BadRow, flag, kind, optional_text, prompt_turns, require, score, text

log = logging.getLogger(__name__)

SHOWN = 20  # bad rows that a message spells out


@dataclass
class Row:
    """One preference: `prompt` is text or chat turns, `chosen` and `rejected` are answers without the prompt.

    `*_finished` is False where the sampler's budget cut the answer: it gets no EOS in training. `group` keeps
    rows that must not be parted by the split together; None becomes the hash of the prompt's opening.
    """

    id: str
    prompt: str | list[dict]
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None
    annotator: str | None = None
    group: str | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True

    def __post_init__(self):
        if self.group is None:
            self.group = hashlib.sha256(prompt_key(opening(self.prompt)).encode()).hexdigest()[:16]


def opening(prompt: str | list[dict]) -> str | list[dict]:
    """What tells one conversation from another: a text as it is, of chat turns the first that is the user's.
    Preference data hold one conversation at several lengths, and a longer prompt contains the shorter one."""
    return prompt if isinstance(prompt, str) else [turn for turn in prompt if turn["role"] == "user"][:1] or prompt


def prompt_key(prompt: str | list[dict]) -> str:
    """A string that is equal for equal prompts."""
    return json.dumps(prompt, sort_keys=True)


def rows_hash(rows: Iterable[Row]) -> str:
    """sha256 over all fields of all rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(vars(row), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def read_jsonl(
    path: str | Path, bad_rows: str, to_row: Callable[[dict, str], Row] | None = None
) -> tuple[list[Row], int]:
    """Rows of a .jsonl or .jsonl.gz file and the number of bad ones that were left out.

    `to_row(record, default_id)` makes the row of one JSON object and raises BadRow; by default the object
    must hold the canonical row. Blank lines are no rows. With `bad_rows='error'` ConfigError names each bad
    row as file:line: reason; mend. With 'skip' the same lines are logged and counted.
    """
    make = to_row or canonical_row
    lines = ((f"{path}:{number}", f"row-{number}", line) for number, line in _lines(Path(path)))
    return gather_rows(lines, lambda line, default_id: make(_json_object(line), default_id), bad_rows)


def gather_rows(
    records: Iterable[tuple[str, str, Any]], to_row: Callable[[Any, str], Row], bad_rows: str
) -> tuple[list[Row], int]:
    """Rows made from (place, default id, record), and the number left out. Ids must be unique.

    Raises ConfigError for bad rows under `bad_rows='error'`, and where no row is left.
    """
    if bad_rows not in ("error", "skip"):
        raise ConfigError(f"bad_rows is '{bad_rows}'; it must be 'error' or 'skip'.")
    rows: list[Row] = []
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
        raise ConfigError(f"{len(problems)} bad rows (bad_rows=skip leaves them out):\n{report}")
    if problems:
        log.warning("left out %d bad rows:\n%s", len(problems), report)
    if not rows:
        raise ConfigError("The data hold no rows: the file or data set is empty.")
    return rows, len(problems)


def canonical_row(record: dict, default_id: str) -> Row:
    """The Row of an object that has `prompt` (text or chat turns), `chosen` and `rejected` (text)."""
    prompt = require(record, "prompt")
    prompt = text(prompt, "prompt") if isinstance(prompt, str) else prompt_turns(prompt, "prompt")
    chosen, rejected = (text(require(record, key), key) for key in ("chosen", "rejected"))
    return make_row(record, default_id, prompt, chosen, rejected)


def make_row(record: dict, default_id: str, prompt: str | list[dict], chosen: str, rejected: str) -> Row:
    """A Row of parsed texts with the optional columns of `record`, all checked."""
    text(chosen, "chosen"), text(rejected, "rejected")
    if chosen == rejected:
        raise BadRow("'chosen' and 'rejected' are the same text", "remove the row, it states no preference")
    row_id = record.get("id", default_id)
    return Row(
        id=str(row_id) if type(row_id) is int else text(row_id, "id"),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_score=score(record, "chosen_score", "score_chosen"),
        rejected_score=score(record, "rejected_score", "score_rejected"),
        annotator=optional_text(record, "annotator"),
        group=optional_text(record, "group"),
        chosen_finished=flag(record, "chosen_finished"),
        rejected_finished=flag(record, "rejected_finished"),
    )


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
