"""Scores of tokens from hidden states and the head's weight; the logits [N, V] are never held.

Logits are made one tile (some rows, some of the vocabulary) at a time, in buffers that are used again, and made anew in
the backward pass. Sums over the vocabulary run over the tiles of a row with a running maximum, as in the online softmax
of Milakov and Gimelshein 2018 (1805.02867). Beside the hidden states, the weight and their gradients there is one tile
and a few numbers per row, whatever the vocabulary. What is computed say the functions of the same names in `scores`, on
`Readout.logits`.

Matrix products are in the dtype of the hidden states, all else in fp32 (fp64 for fp64). A product of bf16 is summed in
fp32 and, on a CPU, rounded to bf16 once; CUDA writes it in fp32. There are no second derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlpref.ops.scores import Scores


class Tile(NamedTuple):
    """How many logits are held at once."""

    rows: int
    vocab: int


TILES = {"cpu": Tile(512, 4096), "cuda": Tile(4096, 16384)}  # a CPU wants what its cache holds, a GPU long kernels


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
        return made.to(_wide(kind)) / self.temperature


def score(
    readout: Readout, targets: Tensor, *, entropy: bool = False, p2: bool = False, tile: Tile | None = None
) -> Scores:
    """`scores.score` for tokens `targets` [N] int64, with gradients of all that is asked for.

    `tile`: how much is held at once; None for what suits the device. IndexError for a token that is no column.
    """
    _check(targets, readout)
    plan = _Plan(readout.temperature, tile or _tile_for(readout), entropy, p2)
    return Scores(*_Score.apply(readout.hidden, readout.weight, readout.bias, targets, plan))


@torch.no_grad()
def compare(
    policy: Readout, ref: Readout, targets: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`scores.compare`, without gradient: (logps, ref_logps, KL(policy || ref), entropy of the policy), each [N]."""
    _check(targets, policy, ref)
    ours, theirs, kl = _divergence(policy, ref, targets, tile or _tile_for(policy), entropy=True)
    return ours.logps(), theirs.logps(), kl, ours.entropy()


def forward_kl(policy: Readout, ref: Readout, targets: Tensor, *, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """`scores.forward_kl`: (logps, KL(ref || policy)), each [N]; gradients go to the policy alone."""
    _check(targets, policy, ref)
    plan = _Plan(policy.temperature, tile or _tile_for(policy))
    return _ForwardKL.apply(policy.hidden, policy.weight, policy.bias, targets, ref, plan)


class _Plan(NamedTuple):
    temperature: float
    tile: Tile
    entropy: bool = False
    p2: bool = False


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, plan):
        readout = Readout(hidden, weight, bias, plan.temperature)
        sums = _Sums(readout, targets, plan.entropy, plan.p2)
        for at, logits in _tiles(readout, plan.tile):
            sums.add(at, logits)
        entropy, log_p2 = sums.entropy(), sums.log_p2()
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets, sums.log_z(), entropy, log_p2)
        return sums.logps(), entropy, log_p2

    @staticmethod
    @once_differentiable
    def backward(ctx, by_logp, by_entropy, by_p2):
        """With p of a row: d logp / d logit_j = [j is the token] - p_j, d entropy = -p_j (log p_j + entropy), and
        d log_p2 = 2 p_j^2 / exp(log_p2) - 2 p_j."""
        hidden, weight, bias, targets, log_z, entropy, log_p2 = ctx.saved_tensors
        readout = Readout(hidden, weight, bias, ctx.plan.temperature)
        gradients = _Gradients(readout, ctx.needs_input_grad)
        zero = torch.zeros_like(log_z)
        by_logp, by_entropy, by_p2 = (zero if by is None else by for by in (by_logp, by_entropy, by_p2))
        level = -by_logp - 2 * by_p2 - (0 if entropy is None else by_entropy * entropy)
        square = None if log_p2 is None else 2 * by_p2 * (-log_p2).exp()
        for at, logits in _tiles(readout, ctx.plan.tile):
            logits.sub_(log_z[at.rows, None])
            p = logits.exp() if entropy is not None else logits.exp_()
            factor = level[at.rows, None]
            if entropy is not None:
                factor = logits.mul_(-by_entropy[at.rows, None]).add_(factor)
            if square is not None:
                factor = torch.addcmul(factor, p, square[at.rows, None])
            gradients.add(at, at.add_(p.mul_(factor), targets, by_logp))
        return *gradients.all(), None, None


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, ref, plan):
        theirs, ours, kl = _divergence(ref, Readout(hidden, weight, bias, plan.temperature), targets, plan.tile)
        ctx.ref, ctx.plan = ref, plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets, ours.log_z(), theirs.log_z())
        return ours.logps(), kl

    @staticmethod
    @once_differentiable
    def backward(ctx, by_logp, by_kl):
        """d logp / d logit_j = [j is the token] - p_j and d KL(ref || policy) / d logit_j = p_j - ref_j."""
        hidden, weight, bias, targets, log_z, ref_log_z = ctx.saved_tensors
        policy = Readout(hidden, weight, bias, ctx.plan.temperature)
        gradients = _Gradients(policy, ctx.needs_input_grad)
        zero = torch.zeros_like(log_z)
        by_logp, by_kl = (zero if by is None else by for by in (by_logp, by_kl))
        for (at, logits), (_, ref_logits) in zip(_tiles(policy, ctx.plan.tile), _tiles(ctx.ref, ctx.plan.tile)):
            p = logits.sub_(log_z[at.rows, None]).exp_().mul_((by_kl - by_logp)[at.rows, None])
            ref_p = ref_logits.sub_(ref_log_z[at.rows, None]).exp_().mul_(by_kl[at.rows, None])
            gradients.add(at, at.add_(p.sub_(ref_p), targets, by_logp))
        return *gradients.all(), None, None, None


class _Place(NamedTuple):
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


def _tiles(readout: Readout, tile: Tile) -> Iterator[tuple[_Place, Tensor]]:
    """Every tile of the logits, [rows, vocab] and the caller's to overwrite until the next, all rows of some vocabulary
    before the next: the gradient of those columns of the weight is then done."""
    hidden, weight, bias, scale = readout.hidden, readout.weight, readout.bias, 1 / readout.temperature
    kind = hidden.dtype
    direct = kind == _wide(kind) or hidden.is_cuda
    held = min(tile.rows, len(hidden)) * min(tile.vocab, len(weight))
    made = torch.empty(held, dtype=_wide(kind) if direct else kind, device=hidden.device)
    wide = made if direct else torch.empty(held, dtype=_wide(kind), device=hidden.device)
    extra = {"out_dtype": made.dtype} if made.dtype != kind else {}
    for vocab in _slices(len(weight), tile.vocab):
        columns = weight[vocab].to(kind).t()
        for rows in _slices(len(hidden), tile.rows):
            shape = (rows.stop - rows.start, vocab.stop - vocab.start)
            product, logits = (buffer[: shape[0] * shape[1]].view(shape) for buffer in (made, wide))
            added = product if bias is None else bias[vocab].to(made.dtype).expand(shape)
            beta = 0 if bias is None else scale
            torch.addmm(added, hidden[rows], columns, beta=beta, alpha=scale, out=product, **extra)
            yield _Place(rows, vocab), logits if direct else logits.copy_(product)


class _Sums:
    """Sums over the vocabulary of exp(logit - top), `top` the largest logit so far; all [N]."""

    def __init__(self, readout: Readout, targets: Tensor, entropy: bool = False, p2: bool = False) -> None:
        wide = _wide(readout.hidden.dtype)
        zero = torch.zeros(len(targets), dtype=wide, device=targets.device)
        self.targets = targets
        self.top = torch.full_like(zero, torch.finfo(wide).min)
        self.chosen, self.total = zero, zero.clone()
        self.gaps = zero.clone() if entropy else None  # of exp(logit - top) (logit - top)
        self.squares = zero.clone() if p2 else None  # of exp(logit - top)^2

    def add(self, at: _Place, logits: Tensor, keep: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Takes a tile in and overwrites it, with logit - top if `keep`. Returns exp(logit - top); and of the rows, by
        how much the top has moved and the total before, in terms of the new top: what a sum that others keep needs."""
        rows = at.rows
        column, inside = at.column(self.targets)
        self.chosen[rows] += torch.where(inside, logits.gather(1, column[:, None])[:, 0], 0)
        top = torch.maximum(self.top[rows], logits.amax(1))
        moved = self.top[rows] - top
        self.top[rows] = top
        before = self.total[rows] * moved.exp()
        logits.sub_(top[:, None])
        odds = logits.exp() if keep or self.gaps is not None else logits.exp_()
        self.total[rows] = before + odds.sum(1)
        if self.gaps is not None:
            self.gaps[rows] = self.gaps[rows] * moved.exp() + before * moved + (odds * logits).sum(1)
        if self.squares is not None:
            self.squares[rows] = self.squares[rows] * (2 * moved).exp() + odds.square().sum(1)
        return odds, moved, before

    def log_z(self) -> Tensor:
        return self.top + self.total.log()

    def logps(self) -> Tensor:
        return (self.chosen - self.top) - self.total.log()

    def entropy(self) -> Tensor | None:
        return None if self.gaps is None else self.total.log() - self.gaps / self.total

    def log_p2(self) -> Tensor | None:
        return None if self.squares is None else self.squares.log() - 2 * self.total.log()


def _divergence(
    first: Readout, second: Readout, targets: Tensor, tile: Tile, entropy: bool = False
) -> tuple[_Sums, _Sums, Tensor]:
    """Sums of both, and KL(first || second) [N]."""
    ours, theirs = _Sums(first, targets, entropy), _Sums(second, targets)
    gaps = torch.zeros_like(ours.total)  # of exp(logit - top) times how much higher logit - top is than the other's
    for (at, logits), (_, others) in zip(_tiles(first, tile), _tiles(second, tile)):
        odds, moved, before = ours.add(at, logits, keep=True)
        _, others_moved, _ = theirs.add(at, others, keep=True)
        inner = logits.sub_(others).mul_(odds).sum(1)
        gaps[at.rows] = gaps[at.rows] * moved.exp() + before * (moved - others_moved) + inner
    return ours, theirs, gaps / ours.total - ours.total.log() + theirs.total.log()


class _Gradients:
    """Of hidden states, weight and bias, from gradients of the logits that come tile by tile in the order of `_tiles`;
    None where none is needed."""

    def __init__(self, readout: Readout, needed: tuple[bool, ...]) -> None:
        hidden, weight, bias = readout.hidden, readout.weight, readout.bias
        wide = _wide(hidden.dtype)
        self.readout = readout
        self.hidden = torch.zeros_like(hidden, dtype=wide) if needed[0] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if needed[2] else None
        self.weight = torch.empty_like(weight) if needed[1] else None
        if needed[1]:
            self.transposed = hidden.t().contiguous()  # the product with it is twice as fast as that with a tile's
            self.columns = torch.empty(0, dtype=wide, device=hidden.device)

    def add(self, at: _Place, by_logits: Tensor) -> None:
        by_logits = by_logits.mul_(1 / self.readout.temperature)
        if self.bias is not None:
            self.bias[at.vocab] += by_logits.sum(0)
        by_logits = by_logits.to(self.readout.hidden.dtype)
        if self.hidden is not None:
            _add_product(self.hidden[at.rows], by_logits, self.readout.weight[at.vocab].to(by_logits.dtype))
        if self.weight is not None:
            self._add_weight(at, by_logits)

    def _add_weight(self, at: _Place, by_logits: Tensor) -> None:
        """Sums over the rows in a buffer [d, vocab of a tile], which is done when the last rows have come."""
        if at.rows.start == 0:
            self.columns = self.columns.new_zeros(len(self.transposed), by_logits.shape[1])
        _add_product(self.columns, self.transposed[:, at.rows], by_logits)
        if at.rows.stop == len(self.readout.hidden):
            self.weight[at.vocab].copy_(self.columns.t())

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


def _check(targets: Tensor, *readouts: Readout) -> None:
    first = readouts[0]
    if targets.dtype != torch.long or targets.shape != first.hidden.shape[:1]:
        raise ValueError(f"targets [{len(first.hidden)}] int64 wanted, not {[*targets.shape]} {targets.dtype}.")
    for readout in readouts[1:]:
        if len(readout.hidden) != len(first.hidden) or len(readout.weight) != len(first.weight):
            raise ValueError("policy and reference need the same rows and the same vocabulary.")
    if len(targets) and (targets.min() < 0 or targets.max() >= len(first.weight)):
        raise IndexError(f"a token is outside of the vocabulary of {len(first.weight)}.")


def _wide(kind: torch.dtype) -> torch.dtype:
    """Of sums: fp64 for fp64, else fp32."""
    return torch.promote_types(kind, torch.float32)


def _tile_for(readout: Readout) -> Tile:
    return TILES.get(readout.hidden.device.type, TILES["cuda"])


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
