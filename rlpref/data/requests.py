"""Requests to a judge as token ids: each a user's turn, answered by each of some words."""

from __future__ import annotations

from functools import partial

from rlpref.binding import ConfigError
from rlpref.data.tokenise import Answer, encode_completion_batch, encode_prompt_batch, pad_sequences
from rlpref.models.reference import Reference
from rlpref.rewards.judge import Reader
from rlpref.types import Sequences


def make_reader(model: Reference, tokenizer, chunk: int) -> Reader:
    """What asks `model`, at most `chunk` requests at a time."""
    longest = getattr(model.model.config, "max_position_embeddings", None)
    return Reader(model, partial(verdict_sequences, tokenizer, longest), chunk)


def verdict_sequences(tokenizer, longest: int | None, requests: list[str], words: tuple[str, ...]) -> Sequences:
    """[requests * words, T] rows of one request next to each other, the mask on the word. A word has no EOS: whatever
    the judge would say after it counts.

    Raises ConfigError for words as `verdict_ids` does, and for a request with which the model would read
    more than `longest` tokens (null: it knows no limit): cut, it might lose the very question.
    """
    turns = [[{"role": "user", "content": request}] for request in requests]
    ids = verdict_ids(tokenizer, words)
    prompts = encode_prompt_batch(tokenizer, turns)
    most = max(map(len, prompts)) + max(map(len, ids))
    if longest is not None and most > longest:
        raise ConfigError(
            f"a request to the judge has {most} tokens, and its model knows {longest} positions: "
            "lower data.max_prompt_length or data.max_completion_length."
        )
    return pad_sequences([prompt for prompt in prompts for _ in words], ids * len(requests))


def verdict_ids(tokenizer, words: tuple[str, ...]) -> list[list[int]]:
    """Ids of each word as the answer to a user's turn. ConfigError where the tokenizer cannot tell them apart."""
    said = [Answer([], word, False, f"the verdict '{word}'") for word in words]
    longest = max(len(word.encode()) for word in words) + 1  # at most a token for each byte, and a blank before them
    ids, _ = encode_completion_batch(tokenizer, said, max_length=longest)
    if len({tuple(row) for row in ids}) < len(words):
        raise ConfigError(f"reward.rubric: the judge's tokenizer does not tell {', '.join(words)} apart.")
    return ids
