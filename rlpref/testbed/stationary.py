"""Where descent comes to rest on losses that L-BFGS with a strong Wolfe line search cannot minimise: those with kinks
(hinges), and those with a stop-gradient, whose "gradient" is the gradient of nothing. For small tasks: dense matrices.

And whether a rest is one at all, or the loss falls for ever as some answers' probabilities go to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import root
from torch import Tensor

from rlpref.testbed.exact import answer_logps
from rlpref.testbed.optima import conditionals_of
from rlpref.testbed.population import CHECK_EVERY, Argmin, argmin
from rlpref.testbed.task import Testbed

Expected = Callable[[Tensor], Tensor]  # conditionals [prompts, inner, vocab] -> a scalar: `population.expected_loss`
ENOUGH_DESCENT, ENOUGH_SLOPE = 1e-4, 0.5  # the constants of the weak Wolfe conditions
NUDGE = 1e-3  # of logits
STEP = 1e-5  # of a numerical derivative
SETTLED = 1e-11  # in units of the loss: CHECK_EVERY iterations on a kink that lower it by less are the last
HALVINGS = 60  # of a bracket: below that a step is rounding
UNBOUNDED = -1e3  # in units of the loss: one that was followed down to here has no minimum
KINK = 1e-6  # a larger gradient at the end of L-BFGS: it was stopped by a kink, or by a gradient that is none
PUSH = 3.0  # nats


@dataclass
class Rest:
    """Where descent comes to rest, and as what. "fixed point": of a stop-gradient; "jump": the loss is not continuous
    there; "unbounded below": it was left on its way down."""

    argmin: Argmin
    kind: Literal["minimum", "kink", "jump", "fixed point", "unbounded below"]


class Bottomless(Exception):
    """A policy at which the loss is below UNBOUNDED."""

    def __init__(self, policy: Tensor):
        self.policy = policy.detach()


def rest(expected: Expected, start: Tensor, max_iter: int = 2000) -> Rest:
    """Where descent on an expected loss from `start` (conditionals) comes to rest, by the method that its shape needs:
    L-BFGS where it is smooth, `kinked_argmin` where that stops short, `fixed_point` for a stop-gradient."""

    def watched(policy: Tensor) -> Tensor:
        value = expected(policy)
        if value < UNBOUNDED:
            raise Bottomless(policy)
        return value

    try:
        found = argmin(watched, start, max_iter)
        if detaches(expected, start):
            return Rest(fixed_point(expected, found.policy), "fixed point")
        if found.gradient <= KINK:
            return Rest(found, "minimum")
        if _jumps(expected, found.policy):
            return Rest(found, "jump")
        found = kinked_argmin(watched, start, max_iter)  # from where L-BFGS stands it would start on a kink
    except Bottomless as fall:
        value, gradient = _slope(expected, fall.policy.flatten(), start.shape)
        return Rest(Argmin(fall.policy, value, float(gradient.norm())), "unbounded below")
    return Rest(found, "minimum" if found.gradient <= KINK else "kink")


def kinked_argmin(expected: Expected, start: Tensor, max_iter: int = 2000) -> Argmin:
    """The minimiser of an expected loss that may have kinks there, from `start` (conditionals): BFGS with a weak Wolfe
    line search, which asks nothing of the slope beyond a kink. Lewis & Overton 2013, "Nonsmooth optimization via
    quasi-Newton methods", algorithm 2.1 and 2.6.

    It sets out a step of NUDGE from there: on a kink, as DPOP's at the reference, no slope can be trusted. At a kink
    the gradient that it reports is that of one side and need not vanish; two starts that end at one value are what
    tells that it is the minimum.
    """
    generator = torch.Generator().manual_seed(0)
    x = start.flatten() + NUDGE * torch.randn(start.numel(), generator=generator, dtype=start.dtype)
    inverse = torch.eye(len(x), dtype=x.dtype)  # of the Hessian
    value, gradient = _slope(expected, x, start.shape)
    checked = math.inf
    for iteration in range(max_iter):
        if iteration % CHECK_EVERY == 0:
            if checked - value <= SETTLED:
                break
            checked = value
        direction = -inverse @ gradient
        step = _weak_wolfe(expected, x, start.shape, direction, value, float(gradient @ direction))
        if step is None:
            break
        x, moved, before = x + step * direction, step * direction, gradient
        value, gradient = _slope(expected, x, start.shape)
        bend = gradient - before
        curvature = float(moved @ bend)
        if curvature <= 0:  # rounding: the weak Wolfe conditions make it positive
            break
        if iteration == 0:  # to the scale of the loss: Nocedal & Wright 2006, eq. 6.20
            inverse *= curvature / float(bend @ bend)
        keep = torch.eye(len(x), dtype=x.dtype) - torch.outer(moved, bend) / curvature
        inverse = keep @ inverse @ keep.T + torch.outer(moved, moved) / curvature
    return Argmin(x.view_as(start).log_softmax(-1), value, float(gradient.norm()))


def _slope(expected: Expected, x: Tensor, shape: torch.Size) -> tuple[float, Tensor]:
    """(value, gradient) of the expected loss by the flattened logits `x`."""
    logits = x.detach().clone().requires_grad_()
    value = expected(logits.view(shape).log_softmax(-1))
    return float(value.detach()), torch.autograd.grad(value, logits)[0]


def _weak_wolfe(
    expected: Expected, x: Tensor, shape: torch.Size, direction: Tensor, value: float, slope: float
) -> float | None:
    """A step that lowers the loss in proportion to the slope and ends where the slope is at most half as steep, by
    bisection; None where rounding leaves none."""
    low, high, step = 0.0, math.inf, 1.0
    for _ in range(HALVINGS):
        reached, gradient = _slope(expected, x + step * direction, shape)
        if not reached < value + ENOUGH_DESCENT * step * slope:
            high = step
        elif float(gradient @ direction) < ENOUGH_SLOPE * slope:
            low = step
        else:
            return step
        step = (low + high) / 2 if high < math.inf else 2 * low
    return None


def fixed_point(expected: Expected, start: Tensor) -> Argmin:
    """Where what autograd takes for the gradient vanishes, next to `start` (conditionals), by Levenberg-Marquardt on
    it: the rest of a loss with a stop-gradient, which need not be a minimum of anything."""
    solved = root(
        lambda x: _slope(expected, torch.from_numpy(x), start.shape)[1].numpy(),
        start.flatten().numpy(),
        method="lm",
        options={"xtol": 1e-15, "ftol": 1e-15, "maxiter": 100 * (start.numel() + 1)},
    )
    value, gradient = _slope(expected, torch.from_numpy(solved.x), start.shape)
    return Argmin(torch.from_numpy(solved.x).view_as(start).log_softmax(-1), value, float(gradient.norm()))


def detaches(expected: Expected, near: Tensor) -> bool:
    """Whether what autograd takes for the gradient is another one than that of the values: in a random direction, at
    random logits near those of a policy (conditionals), where a loss has no kink."""
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn(2, near.numel(), generator=generator, dtype=near.dtype)
    x = near.flatten() + x
    claimed = float(_slope(expected, x, near.shape)[1] @ direction)
    above, below = (_slope(expected, x + side * STEP * direction, near.shape)[0] for side in (1, -1))
    return abs((above - below) / (2 * STEP) - claimed) > 10 * STEP * (1 + abs(claimed))


def _jumps(expected: Expected, at: Tensor) -> bool:
    """Whether policies next to one (conditionals) have quite another loss."""
    generator = torch.Generator().manual_seed(0)
    near = (at + 1e-9 * torch.randn(8, *at.shape, generator=generator, dtype=at.dtype)).log_softmax(-1)
    return max(abs(float(expected(policy) - expected(at))) for policy in near) > 1e-6


def gain_beyond(task: Testbed, expected: Expected, policy: Tensor, ref: Tensor, support: Tensor) -> float:
    """By how much the loss falls if the answers that a policy has turned down most are turned down PUSH nats more: the
    largest gain over all prompts and numbers of answers. Below 0 where the policy is a minimum; 0 or more where the
    loss is smallest at a probability of 0. `support` [prompts, inner, vocab] are the answers that the loss sees; all
    conditionals."""
    logps = answer_logps(task, policy).flatten(1)
    ratio = torch.where(support.flatten(1), logps - answer_logps(task, ref).flatten(1), math.inf)
    value, best = float(expected(policy)), -math.inf
    for x in range(len(logps)):
        order = ratio[x].argsort()
        for count in range(1, int(support[x].sum())):
            pushed = logps.clone()
            pushed[x, order[:count]] -= PUSH
            beyond = conditionals_of(task, pushed.view_as(policy), elsewhere=policy)
            best = max(best, value - float(expected(beyond)))
    return best
