"""Logits one tile (some rows, some of the vocabulary) at a time, and the way of their gradients back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """How many logits are held at once."""

    rows: int
    vocab: int


TILES = {"cpu": Tile(1024, 2048), "cuda": Tile(4096, 16384)}  # a CPU wants what its cache holds, a GPU long kernels


@dataclass(frozen=True)
class Readout:
    """The logits (hidden @ weight.T + bias) / temperature, not made."""

    hidden: Tensor  # [N, d]
    weight: Tensor  # [V, d], in any precision; its gradient has the same
    bias: Tensor | None = None  # [V]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """ValueError for what does not fit together."""
        hidden, weight, bias = self.hidden, self.weight, self.bias
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
            raise ValueError(f"hidden [N, d] and weight [V, d] wanted, not {[*hidden.shape]} and {[*weight.shape]}.")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias [{len(weight)}] wanted, not {[*bias.shape]}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}.")

    def logits(self) -> Tensor:
        """[N, V], made; at least fp32."""
        kind = self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        made = torch.nn.functional.linear(self.hidden, self.weight.to(kind), bias)
        return made.to(widened(kind)) / self.temperature


class Place(NamedTuple):
    """Which rows and columns of the logits a tile is."""

    rows: slice
    vocab: slice

    def column(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows' tokens: the column in this tile (any, where there is none), and whether there is one."""
        column = targets[self.rows] - self.vocab.start
        last = self.vocab.stop - self.vocab.start - 1
        return column.clamp(0, last), (column >= 0) & (column <= last)

    def add_(self, tile: Tensor, targets: Tensor, amount: Tensor) -> Tensor:
        """`amount` [N] added where the rows' tokens are."""
        column, inside = self.column(targets)
        row = torch.arange(len(column), device=column.device)
        tile[row, column] += torch.where(inside, amount[self.rows], 0)
        return tile


def tiles(readout: Readout, tile: Tile) -> Iterator[tuple[Place, Tensor]]:
    """Every tile of the logits, [rows, vocab] and the caller's to overwrite until the next, all rows of some vocabulary
    before the next: the gradient of those columns of the weight is then done."""
    hidden, weight, bias, scale = readout.hidden, readout.weight, readout.bias, 1 / readout.temperature
    kind = hidden.dtype
    direct = kind == widened(kind) or hidden.is_cuda
    held = min(tile.rows, len(hidden)) * min(tile.vocab, len(weight))
    made = torch.empty(held, dtype=widened(kind) if direct else kind, device=hidden.device)
    wide = made if direct else torch.empty(held, dtype=widened(kind), device=hidden.device)
    extra = {"out_dtype": made.dtype} if made.dtype != kind else {}
    for vocab in _slices(len(weight), tile.vocab):
        columns = weight[vocab].to(kind).t()
        for rows in _slices(len(hidden), tile.rows):
            shape = (rows.stop - rows.start, vocab.stop - vocab.start)
            product, logits = (buffer[: shape[0] * shape[1]].view(shape) for buffer in (made, wide))
            added = product if bias is None else bias[vocab].to(made.dtype).expand(shape)
            beta = 0 if bias is None else scale
            torch.addmm(added, hidden[rows], columns, beta=beta, alpha=scale, out=product, **extra)
            yield Place(rows, vocab), logits if direct else logits.copy_(product)


class Gradients:
    """Of hidden states, weight and bias, from gradients of the logits that come tile by tile in the order of `tiles`;
    None where none is needed."""

    def __init__(self, readout: Readout, needed: tuple[bool, ...]) -> None:
        hidden, weight, bias = readout.hidden, readout.weight, readout.bias
        wide = widened(hidden.dtype)
        self.readout = readout
        self.hidden = torch.zeros_like(hidden, dtype=wide) if needed[0] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if needed[2] else None
        self.weight = torch.empty_like(weight) if needed[1] else None
        if needed[1]:
            self.transposed = hidden.t().contiguous()  # the product with it is twice as fast as that with a tile's
            self.columns = torch.empty(0, dtype=wide, device=hidden.device)

    def add(self, at: Place, by_logits: Tensor) -> None:
        if self.readout.temperature != 1:
            by_logits = by_logits.mul_(1 / self.readout.temperature)
        if self.bias is not None:
            self.bias[at.vocab] += by_logits.sum(0)
        by_logits = by_logits.to(self.readout.hidden.dtype)
        if self.hidden is not None:
            _add_product(self.hidden[at.rows], by_logits, self.readout.weight[at.vocab].to(by_logits.dtype))
        if self.weight is not None:
            self._add_weight(at, by_logits)

    def _add_weight(self, at: Place, by_logits: Tensor) -> None:
        """Sums over the rows in a buffer [d, vocab of a tile], which is done when the last rows have come."""
        if at.rows.start == 0:
            self.columns = self.columns.new_zeros(len(self.transposed), by_logits.shape[1])
        _add_product(self.columns, self.transposed[:, at.rows], by_logits)
        if at.rows.stop == len(self.readout.hidden):
            self.weight[at.vocab] = self.columns.to(self.weight.dtype).t()  # a transposing cast is slow

    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the precision of what they are gradients of."""
        if self.weight is not None and not len(self.readout.hidden):
            self.weight.zero_()
        hidden = None if self.hidden is None else self.hidden.to(self.readout.hidden.dtype)
        return hidden, self.weight, None if self.bias is None else self.bias.to(self.readout.bias.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the product in the precision of its factors, the sum in that of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_((left @ right).to(total.dtype))  # adding two dtypes is four times as slow as both steps


def widened(kind: torch.dtype) -> torch.dtype:
    """Of sums: fp64 for fp64, else fp32."""
    return torch.promote_types(kind, torch.float32)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
