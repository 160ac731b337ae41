"""The exact expected value of a pair loss over all pairs of answers, and the policy that minimises it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlpref.losses.inputs import PairLogps
from rlpref.testbed.duels import PAIRS_AT_ONCE, crossed
from rlpref.testbed.exact import answer_logps, lengths
from rlpref.testbed.preferences import Preference
from rlpref.testbed.task import Testbed, answer_places

PairLoss = Callable[[PairLogps], Tensor]  # one value per pair
CHECK_EVERY = 50  # iterations of `minimise`
PROGRESS = 1e-14  # in units of the loss: CHECK_EVERY iterations that lower it by less are the last


def population_loss(
    task: Testbed,
    loss: PairLoss,
    policy: Tensor,
    ref: Tensor,
    mu: Tensor,
    preference: Preference,
    scores: Tensor | None = None,
) -> Tensor:
    """Expected loss over a uniform prompt, two answers i.i.d. from `mu`, and a label by `preference`.

    A scalar in the loss's own units, differentiable in `policy`. `policy`, `ref` and `mu` are conditionals;
    `scores` [prompts, inner, vocab] goes to losses that read the rewards of both answers. Both draws may be the
    same answer, as in data drawn that way. P(a beats b) + P(b beats a) need not be 1: the first draw is the first
    that the annotator sees. Wherever `mu` has mass, so must the policy and the reference. Pairs come in chunks
    that are computed again in the backward pass, so that memory does not grow with them.
    """
    mass = answer_logps(task, mu).exp().flatten(1).detach()
    answers = answer_places(task)
    answers = answers[(mass[:, answers] > 0).any(0)]
    mass = mass[:, answers]
    # An answer of another prompt's pairs only may have no log-prob here; it must not make 0 times infinity.
    logps, refs = (
        torch.where(mass > 0, answer_logps(task, table).flatten(1)[:, answers], 0.0) for table in (policy, ref)
    )
    sizes = lengths(task).flatten()[answers].expand_as(mass)
    table = None if scores is None else scores.flatten(1)[:, answers]

    def chunk_loss(rows: Tensor, logps: Tensor) -> Tensor:
        first = answers[rows]
        # This one wins over that one: drawn in this order and found better, or in the other and not found better.
        chosen = crossed(task, preference, first, answers) + 1 - crossed(task, preference, answers, first).mT
        weight = mass[:, rows, None] * mass[:, None, :] * chosen / task.tree.prompts

        def won(values: Tensor) -> Tensor:
            return values[:, rows, None].expand_as(weight).flatten()

        def lost(values: Tensor) -> Tensor:
            return values[:, None, :].expand_as(weight).flatten()

        pairs = PairLogps(
            *(side(values) for values in (logps, refs, sizes) for side in (won, lost)),
            *((None, None) if table is None else (won(table), lost(table))),
        )
        return (weight.flatten() * loss(pairs)).sum()

    per_chunk = max(1, PAIRS_AT_ONCE // mass.numel())
    chunks = torch.arange(len(answers)).split(per_chunk)
    if len(chunks) == 1:
        return chunk_loss(chunks[0], logps)
    return torch.stack([checkpoint(chunk_loss, rows, logps, use_reentrant=False) for rows in chunks]).sum()


@dataclass
class Argmin:
    """Where a population loss is smallest among all policies."""

    policy: Tensor  # [prompts, inner, vocab] conditionals
    loss: float
    gradient: float  # Euclidean norm of the gradient by the logits at the end


def population_argmin(
    task: Testbed,
    loss: PairLoss,
    ref: Tensor,
    mu: Tensor,
    preference: Preference,
    scores: Tensor | None = None,
    start: Tensor | None = None,
    max_iter: int = 2000,
) -> Argmin:
    """The minimiser of `population_loss` over tabular logits: L-BFGS with a strong Wolfe line search in fp64.

    Starts at `start` (conditionals of full support), or at the reference without it. There is no tolerance but
    fp64's (see `minimise`); judge it by the gradient it reports. This is how the optimum of DPO and of conservative
    DPO under flipped labels is found, which has no closed form: flipped Bradley-Terry probabilities are not
    Bradley-Terry.
    """
    logits = (ref if start is None else start).detach().clone().requires_grad_()
    value, gradient = minimise(
        lambda: population_loss(task, loss, logits.log_softmax(-1), ref, mu, preference, scores), [logits], max_iter
    )
    return Argmin(logits.detach().log_softmax(-1), value, gradient)


def minimise(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    max_iter: int,
    enough: float = -math.inf,
    history: int = 200,
) -> tuple[float, float]:
    """Moves fp64 parameters to a minimum of `objective`, a scalar of them, by L-BFGS with a strong Wolfe line search;
    returns (its value, the Euclidean norm of its gradient) there. Ends when CHECK_EVERY iterations lower the value by
    at most PROGRESS, when it is at most `enough`, or after `max_iter` iterations."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=CHECK_EVERY,
        max_eval=2 * CHECK_EVERY,
        history_size=history,  # nearly Newton: rare answers curve the loss a thousandfold less than common ones
        tolerance_grad=1e-13,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    value = math.inf
    for _ in range(-(-max_iter // CHECK_EVERY)):
        optimizer.step(closure)
        before, value = value, float(closure().detach())
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        if value <= enough or before - value <= PROGRESS or gradient.abs().max() <= 1e-13:
            break
    return value, float(gradient.norm())
