"""Policies made by drawing answers and keeping some by rank: best-of-n, order statistics, rejection sampling.

Each is known through the distribution F of the score under the policy drawn from. Answers of equal score are
one level: they share its mass as the policy drawn from does. Equal is what differs by less than TIE, since
sums of the same token weights in another order differ in their last digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.special import betainc
from torch import Tensor

from rlpref.testbed.exact import answer_logps
from rlpref.testbed.optima import conditionals_of
from rlpref.testbed.task import Testbed, answer_places

TIE = 1e-9  # in units of the score

# (mass of each level, log F up to and including it), both [levels], lowest level first -> [levels] its new log-mass
Selection = Callable[[Tensor, Tensor], Tensor]


def best_of_n(task: Testbed, ref: Tensor, scores: Tensor, n: float) -> Tensor:
    """Conditionals of "draw n answers of `ref`, keep the one of the highest score": a level has mass
    F(s)^n - F(s-)^n. `n` >= 1 may be fractional. Beirami et al. 2024 (2401.01879), section 2.

    `scores` [prompts, inner, vocab]; raises ValueError for n < 1.
    """
    _at_least_one(n)
    return _reweighted(task, ref, scores, lambda mass, log_f: _log_best(mass, log_f, n))


def best_of_n_kl(task: Testbed, ref: Tensor, scores: Tensor, n: float) -> Tensor:
    """[prompts] exact KL(best-of-n || ref) in nats; it depends on the levels alone."""
    _at_least_one(n)
    values = []
    for _, mass, log_f in _levels(task, ref, scores):
        logs = _log_best(mass, log_f, n)
        values.append(torch.where(logs > float("-inf"), logs.exp() * (logs - mass.log()), 0.0).sum())
    return torch.stack(values)


def best_of_n_path(
    task: Testbed, ref: Tensor, scores: Tensor, ns: Sequence[float], values: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What best-of-n is worth for many n at once: (exact KL to `ref` [ns] in nats, means [ns, values] of functions of
    finished answers), averaged over prompts. The scores are ranked once: a level's mass changes with n, and within
    it answers keep their shares."""
    _at_least_one(min(ns))
    answers, n = answer_places(task), torch.tensor(ns, dtype=ref.dtype)[:, None]
    within = answer_logps(task, ref).flatten(1)[:, answers].exp()
    kls, means = [], []
    for x, (level, mass, log_f) in enumerate(_levels(task, ref, scores)):
        logs = _log_best(mass, log_f, n)
        kls.append(torch.where(logs > float("-inf"), logs.exp() * (logs - mass.log()), 0.0).sum(1))
        of_answers = torch.stack([value.flatten(1)[x, answers] * within[x] for value in values])
        of_levels = of_answers.new_zeros(len(values), len(mass)).index_add(1, level, of_answers)
        means.append(logs.exp() @ torch.where(mass > 0, of_levels / mass, 0.0).T)
    return torch.stack(kls).mean(0), torch.stack(means).mean(0)


def best_of_n_kl_bound(n: float) -> float:
    """log n - (n - 1)/n nats: the KL of best-of-n if no two answers tie and none has mass, and never less than
    the exact one. Beirami et al. 2024 (2401.01879), section 3."""
    _at_least_one(n)
    return math.log(n) - (n - 1) / n


def order_statistic(task: Testbed, ref: Tensor, scores: Tensor, k: int, n: int) -> Tensor:
    """Conditionals of "draw n answers of `ref`, keep the k-th lowest score" (k = n is best-of-n, k = 1 the worst).

    The k-th of n uniforms is Beta(k, n - k + 1) distributed, so a level has mass I(F(s)) - I(F(s-)) with I the
    regularised incomplete beta function (David & Nagaraja, Order Statistics, section 2.1). Raises ValueError
    unless 1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"the k-th of n answers needs 1 <= k <= n; got k={k}, n={n}")

    def kept(mass: Tensor, log_f: Tensor) -> Tensor:
        upto = torch.from_numpy(betainc(k, n - k + 1, log_f.exp().numpy()))
        return upto.diff(prepend=upto.new_zeros(1)).clamp(min=0).log()

    return _reweighted(task, ref, scores, kept)


def truncated(task: Testbed, ref: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Conditionals of "draw from `ref` until the score is at least `threshold`": ref(y) 1[s(y) >= threshold]/Z, what a
    policy becomes that is fitted to all answers above a threshold, as in ReST (Gulcehre et al. 2023, 2308.08998,
    section 3). Rounds with thresholds that grow end at the truncation of the first policy by the last threshold.

    Raises ValueError for a threshold (in units of the score) that no answer of some prompt reaches.
    """
    kept = torch.where(scores >= threshold - TIE, answer_logps(task, ref), float("-inf"))
    return conditionals_of(task, kept, elsewhere=ref)


def rejection_rounds(task: Testbed, ref: Tensor, scores: Tensor, n: float, rounds: int, keep_all: bool) -> Tensor:
    """Conditionals after `rounds` of "draw best-of-n from the latest policy, fit the policy to what was kept",
    as in RAFT (Dong et al. 2023, 2304.06767) and Llama 2 (Touvron et al. 2023, 2307.09288, section 3.2.3).

    Fitted to the last round alone, round K is best-of-n^K of `ref`: each round raises F to the power n.
    `keep_all` fits to the answers kept in all rounds so far, equally many of each: round K is then the mixture
    D_1..D_K with D_j best-of-n of the policy after round j - 1. No closed form is needed: it is K steps.
    """
    if rounds < 1:
        raise ValueError(f"rejection sampling needs at least one round; got {rounds}")
    if not keep_all:
        return best_of_n(task, ref, scores, n**rounds)
    policy, stages = ref, []
    for _ in range(rounds):
        stages.append(best_of_n(task, policy, scores, n))
        policy = mixture(task, stages)
    return policy


def mixture(task: Testbed, policies: list[Tensor]) -> Tensor:
    """Conditionals of "draw one of the policies, then one of its answers", all equally likely."""
    logps = torch.stack([answer_logps(task, policy) for policy in policies])
    return conditionals_of(task, logps.logsumexp(0), elsewhere=policies[0])


def _at_least_one(n: float) -> None:
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1; got {n}")


def _levels(task: Testbed, ref: Tensor, scores: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per prompt: the level [answers] of each answer, the mass [levels] of each level, lowest first, and log F."""
    answers = answer_places(task)
    mass, scores = answer_logps(task, ref).flatten(1)[:, answers].exp(), scores.flatten(1)[:, answers]
    levels = []
    for x in range(len(mass)):
        ranked, order = scores[x].sort()
        level = torch.empty_like(order)
        level[order] = (ranked.diff(prepend=ranked[:1]) > TIE).cumsum(0)
        total = torch.zeros(int(level.max()) + 1, dtype=mass.dtype).index_add(0, level, mass[x])
        total = total / total.sum()
        # Near 1, F counts by what is above it: a rounding error of F would grow n-fold in F^n.
        above = total.flip(0).cumsum(0).flip(0) - total
        log_f = torch.where(above < 0.5, torch.log1p(-above.clamp(min=0, max=0.5)), total.cumsum(0).log())
        levels.append((level, total, log_f))
    return levels


def _log_best(mass: Tensor, log_f: Tensor, n: float) -> Tensor:
    """log(F^n - (F - mass)^n), without the cancellation of the difference."""
    share = torch.where(mass > 0, mass / log_f.exp(), 0.0).clamp(max=1)
    return n * log_f + (-torch.expm1(n * torch.log1p(-share))).log()


def _reweighted(task: Testbed, ref: Tensor, scores: Tensor, selection: Selection) -> Tensor:
    """Conditionals of the reference with the mass of each level of its scores replaced."""
    answers = answer_places(task)
    logps = answer_logps(task, ref).flatten(1)
    for x, (level, mass, log_f) in enumerate(_levels(task, ref, scores)):
        gain = torch.where(mass > 0, selection(mass, log_f) - mass.log(), 0.0)
        logps[x, answers] += gain[level]
    return conditionals_of(task, logps.view_as(ref), elsewhere=ref)
