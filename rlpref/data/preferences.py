"""From a source's name and settings to tokenised preference data with the card of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlpref.binding import bind, choose
from rlpref.data.context import DataContext, RowSplit
from rlpref.data.rows import Row, prompt_key, rows_hash
from rlpref.data.sources import SOURCES
from rlpref.data.tokenise import encode_pairs, encode_prompts
from rlpref.types import Pairs, Prompts


@dataclass
class PreferenceData:
    """What every method trains and is evaluated on. Prompts are unique, in the order of the rows."""

    train: Pairs
    test: Pairs
    prompts: Prompts  # of the train rows
    test_prompts: Prompts
    rows: RowSplit  # the text behind the tensors: row i of `train` is `rows.train[i]`
    card: dict[str, Any]  # source, settings, rows_hash, and all that was skipped or cut


def make_data(settings: Mapping[str, Any], context: DataContext, source: str) -> PreferenceData:
    """The tokenised data of the source named `source` with its own `settings`.

    Raises ConfigError for an unknown source, for a setting that it does not use, and for a missing one.
    """
    rows = bind(choose(SOURCES, source, "data source"), settings, f"data source '{source}'", 1)(context)
    lengths = context.max_prompt_length, context.max_completion_length
    train, train_counts = encode_pairs(rows.train, context.tokenizer, *lengths)
    test, test_counts = encode_pairs(rows.test, context.tokenizer, *lengths)
    prompts, test_prompts = (
        encode_prompts(unique_prompts(side), context.tokenizer, context.max_prompt_length)
        for side in (rows.train, rows.test)
    )
    card = {
        "source": source,
        "settings": dict(settings),
        "seed": context.seed,
        "rows_hash": rows_hash(rows.train + rows.test),
        "n_train": len(rows.train),
        "n_test": len(rows.test),
        "n_prompts": len(prompts),
        "n_test_prompts": len(test_prompts),
        "skipped": rows.skipped,
        "train": train_counts,
        "test": test_counts,
    }
    return PreferenceData(train, test, prompts, test_prompts, rows, card)


def unique_prompts(rows: list[Row]) -> list[str | list[dict]]:
    """The distinct prompts, in order of first appearance."""
    return list({prompt_key(row.prompt): row.prompt for row in rows}.values())
