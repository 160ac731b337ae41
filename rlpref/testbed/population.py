"""The exact expected value of a pair loss over all pairs of answers, and the policy that minimises it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlpref.losses.inputs import PairLogps
from rlpref.losses.registry import LOSSES, columns_read
from rlpref.testbed.duels import PAIRS_AT_ONCE, crossed
from rlpref.testbed.exact import answer_logps, forward_kls, lengths
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

    A scalar in the loss's own units, differentiable in `policy`. `policy`, `ref` and `mu` are conditionals; the loss
    gets those columns of PairLogps that it reads: `scores` [prompts, inner, vocab] as the rewards of both answers, the
    preference as the soft label, the sums of KL(ref || policy). Both draws may be the same answer, as in data drawn
    that way. P(a beats b) + P(b beats a) need not be 1: the first draw is the first that the annotator sees. Wherever
    `mu` has mass, so must the policy and the reference. Pairs come in chunks that are computed again in the backward
    pass, so that memory does not grow with them.

    Raises ValueError for a loss that takes its minibatch as a whole, which has no value per pair to expect, and for one
    that reads what is not there.
    """
    return expected_loss(task, loss, ref, mu, preference, scores)(policy)


def expected_loss(
    task: Testbed, loss: PairLoss, ref: Tensor, mu: Tensor, preference: Preference, scores: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """`population_loss` as a function of the policy alone: what does not depend on it is computed once."""
    reads = _columns(loss, scores)
    mass = answer_logps(task, mu).exp().flatten(1).detach()
    answers = answer_places(task)
    answers = answers[(mass[:, answers] > 0).any(0)]
    mass = mass[:, answers]

    def of_answers(table: Tensor) -> Tensor:
        # An answer of another prompt's pairs only may have no log-prob here; it must not make 0 times infinity.
        return torch.where(mass > 0, table.flatten(1)[:, answers], 0.0)

    fixed = {"ref_{}": of_answers(answer_logps(task, ref)), "{}_len": lengths(task).flatten()[answers].expand_as(mass)}
    if "chosen_score" in reads:
        fixed["{}_score"] = scores.flatten(1)[:, answers]

    def labelled(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weights [prompts, rows, answers] of pairs and the columns of theirs that no policy changes."""
        first = answers[rows]
        # This one wins over that one: drawn in this order and found better, or in the other and not found better.
        chosen = crossed(task, preference, first, answers) + 1 - crossed(task, preference, answers, first).mT
        label = {"soft_label": (chosen / 2).flatten()} if "soft_label" in reads else {}
        weight = mass[:, rows, None] * mass[:, None, :] * chosen / task.tree.prompts
        return weight, label | _sides(fixed, rows)

    def chunk_loss(rows: Tensor, *moving: Tensor) -> Tensor:
        weight, columns = whole if whole is not None else labelled(rows)
        return (weight.flatten() * loss(PairLogps(**columns, **_sides(dict(zip(("{}", "{}_kl"), moving)), rows)))).sum()

    chunks = torch.arange(len(answers)).split(max(1, PAIRS_AT_ONCE // mass.numel()))
    whole = labelled(chunks[0]) if len(chunks) == 1 else None

    def expected(policy: Tensor) -> Tensor:
        moving = [of_answers(answer_logps(task, policy))]
        if "chosen_kl" in reads:
            moving.append(of_answers(forward_kls(task, policy, ref)))
        if whole is not None:
            return chunk_loss(chunks[0], *moving)
        return torch.stack([checkpoint(chunk_loss, rows, *moving, use_reentrant=False) for rows in chunks]).sum()

    return expected


def _sides(tables: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Columns for pairs of each answer of `rows` that wins with each that loses, from tables [prompts, answers]; '{}'
    in a name stands for the side."""
    columns = {}
    for name, table in tables.items():
        shape = (len(table), len(rows), table.shape[1])
        columns[name.format("chosen")] = table[:, rows, None].expand(shape).flatten()
        columns[name.format("rejected")] = table[:, None, :].expand(shape).flatten()
    return columns


def _columns(loss: PairLoss, scores: Tensor | None) -> frozenset[str]:
    """The columns of PairLogps that a loss reads, all of which there are."""
    entry = getattr(loss, "entry", None) or LOSSES.get(getattr(getattr(loss, "func", None), "__name__", ""))
    if entry is not None and entry.coupled:
        raise ValueError(f"loss '{entry.name}' takes its minibatch as a whole: it has no expectation over single pairs")
    reads = loss.reads if hasattr(loss, "reads") else columns_read(loss)  # an Objective knows; it is no bare function
    absent = reads & {"chosen_confidence", "rejected_confidence", "weight"}
    if scores is None:
        absent |= reads & {"chosen_score", "rejected_score"}
    if absent:
        raise ValueError(f"the population of pairs has no columns {sorted(absent)}, which this loss reads")
    return reads


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
    return argmin(expected_loss(task, loss, ref, mu, preference, scores), ref if start is None else start, max_iter)


def argmin(expected: Callable[[Tensor], Tensor], start: Tensor, max_iter: int = 2000) -> Argmin:
    """`population_argmin` of any expected loss, a function of conditionals."""
    logits = start.detach().clone().requires_grad_()
    value, gradient = minimise(lambda: expected(logits.log_softmax(-1)), [logits], max_iter)
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
