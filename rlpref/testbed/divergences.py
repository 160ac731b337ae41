"""Optima under other divergences than the reverse KL: argmax of E[r] - beta D_f(pi || ref).

D_f(pi || ref) = sum_y ref(y) f(pi(y)/ref(y)). Its stationarity condition is r(y) - lambda = beta f'(pi/ref), so
pi = ref (f')^{-1}((r - lambda)/beta) with lambda the one number per prompt that makes it sum to 1
(Wang et al. 2023, 2309.16240). Here f(1) = f'(1) = 0: terms linear in the ratio do not change D_f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.testbed.exact import answer_logps, log_reach
from rlpref.testbed.optima import conditionals_of
from rlpref.testbed.task import Testbed, answer_places

LARGE = 700.0  # stands for infinity where a root is sought


@dataclass(frozen=True)
class Divergence:
    """A convex f of the ratio u = pi/ref, with f(1) = f'(1) = 0 and f'(0) = -inf (no answer is given up)."""

    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]  # f'
    log_ratio: Callable[[Tensor], Tensor]  # log of the inverse of f'
    supremum: float  # of f': the inverse runs to infinity there


def alpha_divergence(alpha: float) -> Divergence:
    """f(u) = (u^(1 - alpha) - (1 - alpha) u - alpha)/(alpha (alpha - 1)), f' = (1 - u^-alpha)/alpha. Tends to
    the reverse KL as alpha -> 0 and to the forward KL as alpha -> 1. Wang et al. 2023 (2309.16240).

    Raises ValueError unless 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"the alpha divergence needs 0 < alpha < 1; got {alpha}")
    return Divergence(
        f=lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
        slope=lambda u: (1 - u**-alpha) / alpha,
        log_ratio=lambda v: -torch.log1p(-alpha * v) / alpha,
        supremum=1 / alpha,
    )


def _log_of_root(u: Tensor) -> Tensor:
    """w with exp(w) + w = u, the log of Lambert's W(e^u): Newton on a convex rising function, from above."""
    w = torch.where(u > 1, u.clamp(min=1).log(), u)
    for _ in range(8):  # quadratic, and a step or two to come near
        w = w - (w.exp() + w - u) / (w.exp() + 1)
    return w


REVERSE_KL = Divergence(
    f=lambda u: torch.xlogy(u, u) - u + 1, slope=torch.log, log_ratio=lambda v: v, supremum=math.inf
)
FORWARD_KL = Divergence(
    f=lambda u: u - 1 - u.log(), slope=lambda u: 1 - 1 / u, log_ratio=lambda v: -torch.log1p(-v), supremum=1.0
)
# Twice the Jensen-Shannon divergence: KL(pi || m) + KL(ref || m) with m their mean.
JENSEN_SHANNON = Divergence(
    f=lambda u: torch.xlogy(u, u) - (1 + u) * ((1 + u) / 2).log(),
    slope=lambda u: (2 * u / (1 + u)).log(),
    log_ratio=lambda v: v - torch.log1p(-torch.expm1(v)),
    supremum=math.log(2),
)
# chi-PO: (1/2) chi-squared + reverse KL, whose f' is u + log u up to a constant (Huang et al. 2024, 2407.13399).
CHI_SQUARED_KL = Divergence(
    f=lambda u: 0.5 * (u - 1) ** 2 + torch.xlogy(u, u) - u + 1,
    slope=lambda u: u - 1 + u.log(),
    log_ratio=lambda v: _log_of_root(v + 1),
    supremum=math.inf,
)


def f_divergence(task: Testbed, policy: Tensor, ref: Tensor, divergence: Divergence) -> Tensor:
    """[prompts] D_f(policy || ref) of whole answers; answers outside the reference's support are left out."""
    p, q = (answer_logps(task, table).flatten(1) for table in (policy, ref))
    supported = q > float("-inf")
    ratio = torch.where(supported, p - q, 0.0).exp()
    return torch.where(supported, q.exp() * divergence.f(ratio), 0.0).sum(1)


def token_f_divergence(task: Testbed, policy: Tensor, ref: Tensor, divergence: Divergence) -> Tensor:
    """[prompts] expected sum, along the policy's answers, of D_f of the next token; the reference has full support.

    It is D_f of whole answers for the reverse KL alone, by the chain rule: other divergences have none."""
    steps = (ref.exp() * divergence.f((policy - ref).exp())).sum(-1)
    return (log_reach(task, policy).exp() * steps).sum(1)


def f_optimum(task: Testbed, ref: Tensor, rewards: Tensor, beta: float, divergence: Divergence) -> Tensor:
    """Conditionals of argmax E[r] - beta D_f(pi || ref)."""
    mass = answer_logps(task, ref).flatten(1)
    logps = torch.stack([_optimal(*prompt, beta, divergence) for prompt in zip(mass, rewards.flatten(1))])
    return conditionals_of(task, logps.view_as(ref), elsewhere=ref)


@dataclass(frozen=True)
class Path:
    """What the optima of one score are worth for a row of betas, averaged over prompts. fp64."""

    kl: Tensor  # [betas] KL(pi || ref) in nats
    entropy: Tensor  # [betas] of whole answers in nats
    divergences: Tensor  # [betas, measured] D_f(pi || ref)
    means: Tensor  # [betas, values]


def f_path(
    task: Testbed,
    ref: Tensor,
    scores: Tensor,
    betas: Sequence[float],
    divergence: Divergence,
    values: Sequence[Tensor],
    measured: Sequence[Divergence] = (),
) -> Path:
    """The optima of E[scores] - beta D_f(pi || ref), their divergences by all `measured` ones, and what they are worth
    by functions of finished answers. The reference must have full support."""
    answers = answer_places(task)
    mass, scores = answer_logps(task, ref).flatten(1)[:, answers], scores.flatten(1)[:, answers]
    of_answers = torch.stack([value.flatten(1)[:, answers] for value in values])
    rows = []
    for beta in betas:
        logps = torch.stack([_optimal(*prompt, beta, divergence) for prompt in zip(mass, scores)]).log_softmax(1)
        p, ratio = logps.exp(), (logps - mass).exp()
        own = (
            torch.stack([(mass.exp() * each.f(ratio)).sum(1).mean() for each in measured])
            if measured
            else p.new_zeros(0)
        )
        entropy = -torch.xlogy(p, p).sum(1).mean()
        kl = torch.where(p > 0, p * (logps - mass), 0.0).sum(1).mean()
        rows.append((kl, entropy, own, (p * of_answers).sum(2).mean(1)))
    return Path(*(torch.stack(column) for column in zip(*rows)))


def _optimal(mass: Tensor, rewards: Tensor, beta: float, divergence: Divergence) -> Tensor:
    """[answers] log-probs, up to rounding of their sum, of the optimum of one prompt from the reference's.

    At lambda = max r no ratio exceeds 1 and at min r none is below it, so lambda lies between them; and above
    max r - beta sup f', where the best answer's ratio runs to infinity.
    """
    from scipy.optimize import brentq  # half a second to import, which the first step of a run need not wait for

    supported = mass > float("-inf")
    # Rewards below the best, so that lambda, too, is counted from there and keeps its digits.
    gaps = torch.where(supported, rewards - rewards[supported].max(), 0.0)

    def tilted(multiplier: float) -> Tensor:
        return mass + divergence.log_ratio((gaps - multiplier) / beta)

    def excess(multiplier: float) -> float:
        total = float(tilted(multiplier).logsumexp(0))
        return min(total, LARGE) if total == total else LARGE

    low, high = max(float(gaps.min()), -beta * divergence.supremum), 0.0
    if excess(high) >= 0:  # all rewards are equal
        return tilted(high)
    return tilted(brentq(excess, low, high, xtol=1e-300, rtol=1e-15) if excess(low) > 0 else low)
