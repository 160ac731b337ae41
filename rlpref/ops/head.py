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

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlpref.ops.scores import Scores
from rlpref.ops.tiles import TILES, Gradients, Place, Readout, Tile, tiles, widened


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
        for at, logits in tiles(readout, plan.tile):
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
        gradients = Gradients(readout, ctx.needs_input_grad)
        zero = torch.zeros_like(log_z)
        by_logp, by_entropy, by_p2 = (zero if by is None else by for by in (by_logp, by_entropy, by_p2))
        level = -by_logp - 2 * by_p2 - (0 if entropy is None else by_entropy * entropy)
        square = None if log_p2 is None else 2 * by_p2 * (-log_p2).exp()
        for at, logits in tiles(readout, ctx.plan.tile):
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
        gradients = Gradients(policy, ctx.needs_input_grad)
        zero = torch.zeros_like(log_z)
        by_logp, by_kl = (zero if by is None else by for by in (by_logp, by_kl))
        for (at, logits), (_, ref_logits) in zip(tiles(policy, ctx.plan.tile), tiles(ctx.ref, ctx.plan.tile)):
            p = logits.sub_(log_z[at.rows, None]).exp_().mul_((by_kl - by_logp)[at.rows, None])
            ref_p = ref_logits.sub_(ref_log_z[at.rows, None]).exp_().mul_(by_kl[at.rows, None])
            gradients.add(at, at.add_(p.sub_(ref_p), targets, by_logp))
        return *gradients.all(), None, None, None


class _Sums:
    """Sums over the vocabulary of exp(logit - top), `top` the largest logit so far; all [N]."""

    def __init__(self, readout: Readout, targets: Tensor, entropy: bool = False, p2: bool = False) -> None:
        wide = widened(readout.hidden.dtype)
        zero = torch.zeros(len(targets), dtype=wide, device=targets.device)
        self.targets = targets
        self.top = torch.full_like(zero, torch.finfo(wide).min)
        self.chosen, self.total = zero, zero.clone()
        self.gaps = zero.clone() if entropy else None  # of exp(logit - top) (logit - top)
        self.squares = zero.clone() if p2 else None  # of exp(logit - top)^2

    def add(self, at: Place, logits: Tensor, keep: bool = False) -> tuple[Tensor, Tensor, Tensor]:
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
    for (at, logits), (_, others) in zip(tiles(first, tile), tiles(second, tile)):
        odds, moved, before = ours.add(at, logits, keep=True)
        _, others_moved, _ = theirs.add(at, others, keep=True)
        inner = logits.sub_(others).mul_(odds).sum(1)
        gaps[at.rows] = gaps[at.rows] * moved.exp() + before * (moved - others_moved) + inner
    return ours, theirs, gaps / ours.total - ours.total.log() + theirs.total.log()


def _check(targets: Tensor, *readouts: Readout) -> None:
    first = readouts[0]
    if targets.dtype != torch.long or targets.shape != first.hidden.shape[:1]:
        raise ValueError(f"targets [{len(first.hidden)}] int64 wanted, not {[*targets.shape]} {targets.dtype}.")
    for readout in readouts[1:]:
        if len(readout.hidden) != len(first.hidden) or len(readout.weight) != len(first.weight):
            raise ValueError("policy and reference need the same rows and the same vocabulary.")
    if len(targets) and (targets.min() < 0 or targets.max() >= len(first.weight)):
        raise IndexError(f"a token is outside of the vocabulary of {len(first.weight)}.")


def _tile_for(readout: Readout) -> Tile:
    return TILES.get(readout.hidden.device.type, TILES["cuda"])
