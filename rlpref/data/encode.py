"""From rows to padded tensors, one function for each kind of row. The prompt's ids come first in every sequence."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rlpref.data.rows import AnyRow, KwiseRow, Prompt, Row, UnpairedRow, prompt_key
from rlpref.data.tokenise import (
    Answer,
    added_bos,
    cut_prompt,
    encode_completion_batch,
    encode_prompt_batch,
    eos_id,
    pad_sequences,
)
from rlpref.data.unpaired import mismatched
from rlpref.types import Answers, Lists, Pairs


@dataclass
class TokenCounts:
    """What tokenisation cut, in prompts (one a row) and in completions (all of a row)."""

    prompts: int
    prompts_truncated: int
    completions: int
    completions_truncated: int
    completions_without_eos: int  # truncated, unfinished, or filling the whole length


def encode_rows(
    rows: list[AnyRow], tokenizer, max_prompt_length: int, max_completion_length: int
) -> tuple[Pairs | Answers | Lists, dict]:
    """The batch of rows that are all of one kind, and the fields of TokenCounts as a dict. A prompt longer than
    `max_prompt_length` keeps its last tokens (and its BOS), a longer completion its first."""
    encode = {Row: encode_pairs, UnpairedRow: encode_answers, KwiseRow: encode_lists}[type(rows[0])]
    return encode(rows, tokenizer, max_prompt_length, max_completion_length)


def encode_pairs(rows: list[Row], tokenizer, max_prompt_length: int, max_completion_length: int) -> tuple[Pairs, dict]:
    """Pairs padded on the right, and the fields of TokenCounts as a dict with `pairs_identical`, the pairs whose
    answers have the same ids after truncation.

    Scores and soft labels become tensors [B] if all rows have them. Weights do if any row has one; it is 1 for the
    others. Raises ConfigError, naming the row, for an answer of no tokens.
    """
    prompts, truncated = _prompts(rows, tokenizer, max_prompt_length)
    answers = [
        Answer(row.prompt, getattr(row, side), getattr(row, f"{side}_finished"), f"row '{row.id}' ({side})")
        for side in ("chosen", "rejected")
        for row in rows
    ]
    ids, cut = encode_completion_batch(tokenizer, answers, max_completion_length)
    chosen, rejected = ids[: len(rows)], ids[len(rows) :]
    pairs = Pairs(
        chosen=pad_sequences(prompts, chosen),
        rejected=pad_sequences(prompts, rejected),
        chosen_score=_if_all([row.chosen_score for row in rows]),
        rejected_score=_if_all([row.rejected_score for row in rows]),
        weight=_if_any([row.weight for row in rows]),
        soft_label=_if_all([row.soft_label for row in rows]),
    )
    identical = sum(one == other for one, other in zip(chosen, rejected))
    return pairs, _counts(truncated, len(rows), ids, cut, tokenizer) | {"pairs_identical": identical}


def encode_answers(
    rows: list[UnpairedRow], tokenizer, max_prompt_length: int, max_completion_length: int
) -> tuple[Answers, dict]:
    """Single answers with their mismatched completions (see `unpaired.mismatched`); columns and errors as in
    `encode_pairs`."""
    prompts, truncated = _prompts(rows, tokenizer, max_prompt_length)
    answers = [Answer(row.prompt, row.completion, row.finished, f"row '{row.id}'") for row in rows]
    ids, cut = encode_completion_batch(tokenizer, answers, max_completion_length)
    sequences = pad_sequences(prompts, ids)
    batch = Answers(
        sequences=sequences,
        label=torch.tensor([row.label for row in rows]),
        mismatched=mismatched(sequences),
        weight=_if_any([row.weight for row in rows]),
        score=_if_all([row.score for row in rows]),
    )
    return batch, _counts(truncated, len(rows), ids, cut, tokenizer)


def encode_lists(
    rows: list[KwiseRow], tokenizer, max_prompt_length: int, max_completion_length: int
) -> tuple[Lists, dict]:
    """Lists padded to the longest row's K; columns and errors as in `encode_pairs`."""
    prompts, truncated = _prompts(rows, tokenizer, max_prompt_length)
    answers = [
        Answer(row.prompt, text, finished, f"row '{row.id}' (responses[{i}])")
        for row in rows
        for i, (text, finished) in enumerate(zip(row.responses, row.finished, strict=True))
    ]
    ids, cut = encode_completion_batch(tokenizer, answers, max_completion_length)
    of_answers = [prompt for prompt, row in zip(prompts, rows) for _ in row.responses]
    sizes = torch.tensor([len(row.responses) for row in rows])
    present = torch.arange(int(sizes.max())) < sizes[:, None]

    def unflat(values: Tensor) -> Tensor:
        padded = values.new_zeros(*present.shape, *values.shape[1:])
        padded[present] = values
        return padded

    batch = Lists(
        answers=pad_sequences(of_answers, ids).map(unflat),
        present=present,
        scores=unflat(torch.tensor([score for row in rows for score in row.scores], dtype=torch.float32)),
        weight=_if_any([row.weight for row in rows]),
    )
    return batch, _counts(truncated, len(rows), ids, cut, tokenizer)


def _prompts(rows: list[AnyRow], tokenizer, max_length: int) -> tuple[list[list[int]], int]:
    """Ids of each row's prompt, at most `max_length`, and how many were longer. Equal prompts are encoded once."""
    unique: dict[str, Prompt] = {prompt_key(row.prompt): row.prompt for row in rows}
    whole = dict(zip(unique, encode_prompt_batch(tokenizer, list(unique.values()))))
    bos = added_bos(tokenizer)
    kept = {key: cut_prompt(ids, max_length, bos) for key, ids in whole.items()}
    keys = [prompt_key(row.prompt) for row in rows]
    return [kept[key] for key in keys], sum(len(whole[key]) > max_length for key in keys)


def _counts(truncated: int, rows: int, completions: list[list[int]], cut: int, tokenizer) -> dict[str, int]:
    eos = eos_id(tokenizer)
    without_eos = sum(ids[-1] != eos for ids in completions)
    return asdict(TokenCounts(rows, truncated, len(completions), cut, without_eos))


def _if_all(values: list[float | None]) -> Tensor | None:
    """[B] fp32, or None unless every row has a value."""
    return None if not values or None in values else torch.tensor(values, dtype=torch.float32)


def _if_any(values: list[float | None]) -> Tensor | None:
    """[B] fp32 with 1 where a row has no value, or None where none has."""
    if all(value is None for value in values):
        return None
    return torch.tensor([1.0 if value is None else value for value in values], dtype=torch.float32)
