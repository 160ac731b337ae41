"""Prompts and answers in one row without padding, a prompt that several answers share read once.

A row of the batch is a prompt (what stands before its first completion token) and an answer (the rest). Rows with equal
prompts are one group: the prompt, then each answer, which sees the prompt and itself alone and counts its positions
from the prompt's end. A pair with prompt P and answers C, R costs P + C + R tokens in place of 2P + C + R and padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from rlpref.ops.attention import Span, span_attention
from rlpref.types import Sequences

PACKED = "packed"  # the name of the attention implementation
QUERIES = 256  # at most twice as many in one span where blocks are cut: scores that stay in a processor's cache


@dataclass
class Packed:
    """N tokens in one row; the rows of the batch it was made of are B."""

    ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N] in each token's own sequence
    spans: list[Span]
    read: Tensor  # [M] the place of the token that each scored token follows
    last: Tensor  # [B] the place of each row's last token that was packed
    row: Tensor  # [M] where each scored token stands in the batch
    column: Tensor  # [M]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[1, N, heads, d] from query [1, heads, N, d] and key, value [1, kv heads, N, d]."""
        return span_attention(query, key, value, self.spans, scaling)


def is_packed(model: nn.Module) -> bool:
    """Whether the model's attention takes layouts (rlpref.models.attention)."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == PACKED


def decode(decoder: nn.Module, packed: Packed) -> Tensor:
    """[N, d] the last hidden states of a HF decoder that attends by layouts (rlpref.models.attention)."""
    layout = with_layout(packed, packed.ids.device)
    read = decoder(input_ids=packed.ids, position_ids=packed.position_ids, use_cache=False, **layout)
    return read.last_hidden_state[0]


def with_layout(layout, device: torch.device) -> dict:
    """Arguments of a forward pass under `layout`; a mask of four dimensions keeps HF from making one."""
    return {"layout": layout, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


def scattered(packed: Packed, values: Tensor, shape: torch.Size) -> Tensor:
    """[B, T] from values [M] of the scored tokens, 0 elsewhere."""
    places = packed.row * shape[1] + packed.column
    return values.new_zeros(shape[0] * shape[1]).index_copy(0, places, values).view(shape)


def by_prompt(sequences: Sequences) -> Tensor:
    """[B] an order of the rows [B, T] in which equal prompts stand together, short ones first."""
    prompt = sequences.attention_mask & (sequences.mask.cumsum(1) == 0)
    _, which = torch.unique(torch.where(prompt, sequences.ids, -1), dim=0, return_inverse=True)
    return (prompt.sum(1) * len(which) + which).argsort(stable=True)


def pack(sequences: Sequences, last: bool = False) -> Packed:
    """The rows of `sequences` [B, T] packed. The last token of an answer scores nothing and is left out unless `last`.

    Raises ValueError for a row whose first token is a completion token: nothing comes before it.
    """
    ids, real, scored = (tensor.cpu().numpy() for tensor in (sequences.ids, sequences.attention_mask, sequences.mask))
    columns = [np.flatnonzero(row) for row in real]
    tokens = [row[own] for row, own in zip(ids, columns)]
    counted = [row[own] for row, own in zip(scored, columns)]
    opening = [int(own.argmax()) if own.any() else len(own) for own in counted]
    together: dict[bytes, list[int]] = {}
    for row, (own, length) in enumerate(zip(tokens, opening)):
        if length == 0:
            raise ValueError(f"row {row} has no prompt: nothing comes before its first completion token")
        together.setdefault(own[:length].tobytes(), []).append(row)

    packed, positions, spans, read, rows, at = [], [], [], [], [], 0
    ends = np.zeros(len(ids), dtype=np.int64)
    where: list[np.ndarray] = []
    for members in together.values():
        length = opening[members[0]]
        packed.append(tokens[members[0]][:length])
        positions.append(np.arange(length))
        starts = [at, at + length]
        for row in members:
            answer = tokens[row][length:] if last else tokens[row][length:-1]
            packed.append(answer)
            positions.append(length + np.arange(len(answer)))
            begin = starts[-1]
            starts.append(begin + len(answer))
            # what stands before each token of the answer: the prompt's end, then the answer's own tokens
            before = np.concatenate([[starts[1] - 1], begin + np.arange(len(tokens[row]) - length)])
            ends[row] = before[len(answer)]
            kept = counted[row][length:]
            read.append(before[:-1][kept])
            where.append(columns[row][length:][kept])
            rows.append(np.full(int(kept.sum()), row))
        spans += _spans(starts, sequences.ids.device)
        at = starts[-1]
    device = sequences.ids.device

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    return Packed(
        ids=tensor(packed)[None],
        position_ids=tensor(positions)[None],
        spans=spans,
        read=tensor(read),
        last=torch.from_numpy(ends).to(device),
        row=tensor(rows),
        column=tensor(where),
    )


def _spans(starts: list[int], device: torch.device) -> list[Span]:
    """Of one group: the places where its prompt and its answers start, and its end. All of it in one product where that
    is at most twice the work, else the prompt and every answer apart."""
    prompt, end = slice(starts[0], starts[1]), starts[-1]
    answers = [slice(start, stop) for start, stop in pairwise(starts[1:]) if start < stop]
    lengths = [one.stop - one.start for one in answers]
    whole = (end - starts[0]) ** 2
    width = starts[1] - starts[0]
    apart = width**2 + sum(length * (width + length) for length in lengths)

    def causal(rows: int, columns: int) -> Tensor:
        return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)

    if whole <= 2 * apart:
        sees = causal(end - starts[0], end - starts[0])
        for start, stop in pairwise(starts[1:]):
            sees[stop - starts[0] :, start - starts[0] : stop - starts[0]] = False
        return _blocks(starts[0], sees)
    own = [Span(one, prompt, causal(length, width + length)) for one, length in zip(answers, lengths)]
    return [*_blocks(starts[0], causal(width, width)), *own]


def _blocks(start: int, sees: Tensor) -> list[Span]:
    """Spans of the tokens from `start` on, where no token sees a later one: long ones are cut, which leaves out
    half of what nobody sees."""
    cuts = list(range(0, len(sees) - QUERIES, QUERIES)) or [0]
    return [
        Span(slice(start + at, start + upto), slice(start, start + at) if at else None, sees[at:upto, :upto])
        for at, upto in pairwise([*cuts, len(sees)])
    ]
