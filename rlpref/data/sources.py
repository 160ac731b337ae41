"""Where preference rows come from: a source is `source(context, **settings) -> RowSplit`.

To add one, write the function and name it in SOURCES: its parameters after the context are its settings. `kind` says
which rows it makes, in all of its choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from rlpref.binding import ConfigError
from rlpref.data.context import DataContext, RowSplit, split_by_group
from rlpref.data.formats import hh_row, record_format
from rlpref.data.reader import gather_rows, read_jsonl
from rlpref.data.rows import AnyRow
from rlpref.data.sentiment import sentiment
from rlpref.data.testbed import testbed


def hh(
    context: DataContext, path: str, bad_rows: Literal["error", "skip"], kind: Literal["pairs"] = "pairs"
) -> RowSplit:
    """Human preferences in Anthropic's dialogue format, or as canonical rows.

    `path` is a .jsonl or .jsonl.gz file, or a data set of the hub ("Anthropic/hh-rlhf", with a folder of it
    "Anthropic/hh-rlhf:harmless-base"), of which the train split is read. Prompts become chat turns.
    """
    return _read(context, path, bad_rows, hh_row)


def jsonl(
    context: DataContext,
    path: str,
    bad_rows: Literal["error", "skip"],
    kind: Literal["pairs", "kwise", "unpaired"] = "pairs",
    score_key: str | None = None,
) -> RowSplit:
    """Pairs in TRL's preference formats (`formats.trl_row`), single answers with labels (`formats.unpaired_row`) or
    answers with scores (`formats.kwise_row`; `score_key` is where a response has its score, null: 'score').

    `path` is a .jsonl or .jsonl.gz file or a data set of the hub, as for `hh`.
    """
    return _read(context, path, bad_rows, record_format(kind, score_key))


SOURCES: dict[str, Callable[..., RowSplit]] = {
    "testbed": testbed,
    "hh": hh,
    "jsonl": jsonl,
    "sentiment": sentiment,
}


def _read(context: DataContext, path: str, bad_rows: str, to_row: Callable[[dict, str], AnyRow]) -> RowSplit:
    if Path(path).exists() or Path(path).suffix in (".jsonl", ".gz", ".json"):
        rows, skipped = read_jsonl(path, bad_rows, to_row)
    else:
        rows, skipped = gather_rows(_hub_records(path), to_row, bad_rows)
    train, test = split_by_group(rows, context.test_fraction, context.seed)
    return RowSplit(train, test, skipped)


def _hub_records(path: str) -> Iterator[tuple[str, str, dict]]:
    """(place, default id, record) of each row of a hub data set's train split; columns that are null in a row
    are left out, since a table has no other way to say that a key is missing."""
    from datasets import load_dataset

    name, _, folder = path.partition(":")
    try:
        records = load_dataset(name, data_dir=folder or None, split="train")
    except Exception as error:
        raise ConfigError(f"'{path}' is no file here, and the hub does not give it: {error}") from error
    for number, record in enumerate(records, start=1):
        given = {key: value for key, value in record.items() if value is not None}
        yield f"{path}:{number}", f"row-{number}", given
