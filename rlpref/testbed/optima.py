"""What maximises E[r] - beta KL(pi || ref) on the testbed: soft values, pi*, its frontier, and its variants.

Policies are conditionals, log-probs [prompts, inner, vocab]; a function of finished answers has the same shape
and is read where `task.ends` holds. fp64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.testbed.exact import answer_logps, lengths
from rlpref.testbed.task import Testbed, answer_places

BETAS = torch.logspace(3, -3, 121, dtype=torch.float64).tolist()


@dataclass
class Optimum:
    """The KL-regularised optimum of one reward at one beta."""

    policy: Tensor  # [prompts, inner, vocab] conditionals of pi*
    q: Tensor  # [prompts, inner, vocab] soft action values, in units of reward
    v: Tensor  # [prompts, inner] soft values; v[:, 0] = beta log Z is the best attainable J

    @property
    def advantages(self) -> Tensor:
        """[prompts, inner, vocab] A* = Q* - V* = beta log pi*/ref: what each token is worth.
        Rafailov et al. 2024 (2404.12358), "From r to Q*"."""
        return self.q - self.v[:, :, None]


def optimum(task: Testbed, ref: Tensor, rewards: Tensor, beta: float) -> Optimum:
    """Soft Bellman backward induction: V(s) = beta log sum_a ref(a|s) exp(Q(s,a)/beta), Q(s,a) = r at the end
    of an answer, else V(sa); pi*(a|s) = ref(a|s) exp((Q - V)/beta). Equals ref exp(r/beta)/Z over answers
    (Rafailov et al. 2023, eq. 4; token level: Rafailov et al. 2024, 2404.12358)."""
    q, v = _soft_values(task, ref, rewards, beta)
    return Optimum(policy=ref + (q - v[:, :, None]) / beta, q=q, v=v)


def _soft_values(task: Testbed, weights: Tensor, at_ends: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Q [prompts, inner, vocab] and V [prompts, inner] with V(s) = beta log sum_a exp(weights + Q/beta)."""
    tree = task.tree
    q = torch.where(task.ends, at_ends, 0.0)
    v = torch.zeros_like(q[:, :, 0])
    for depth in reversed(range(tree.horizon)):
        nodes = (task.depth == depth).nonzero()[:, 0]
        if depth < tree.horizon - 1:
            children = nodes[:, None] * (tree.vocab - 1) + torch.arange(1, tree.vocab)
            q[:, nodes, 1:] = v[:, children]
        v[:, nodes] = beta * (weights[:, nodes] + q[:, nodes] / beta).logsumexp(-1)
    return q, v


def conditionals_of(task: Testbed, logps: Tensor, elsewhere: Tensor | None = None) -> Tensor:
    """Conditionals of the policy whose answers have these log-probs (up to a constant per prompt).

    `logps` [prompts, inner, vocab] is read where answers end. A prefix that begins no answer of the support
    has no conditionals of its own: it gets those of the policy `elsewhere`, or uniform ones without it. They
    never matter to an expectation. Raises ValueError if a prompt has no answer at all.
    """
    mass, begun = _soft_values(task, torch.zeros_like(logps), logps, 1.0)
    if (begun[:, 0] == float("-inf")).any():
        raise ValueError("a distribution over answers without any mass has no conditionals")
    unseen = (begun == float("-inf"))[:, :, None]
    if elsewhere is None:
        elsewhere = torch.full_like(mass, -math.log(task.tree.vocab))
    return torch.where(unseen, elsewhere, mass - begun[:, :, None])


def tilted(task: Testbed, ref: Tensor, rewards: Tensor, beta: float) -> tuple[float, float]:
    """(mean KL to the reference in nats, mean reward) of pi*_beta, straight from ref exp(r/beta)/Z over answers."""
    return _tilted(answer_logps(task, ref).flatten(1), rewards.flatten(1), beta)


def _tilted(mass: Tensor, rewards: Tensor, beta: float) -> tuple[float, float]:
    """`tilted` where the reference's answers [prompts, places] are known."""
    logps = (mass + rewards / beta).log_softmax(1)
    p = logps.exp()
    kl = torch.where(p > 0, p * (logps - mass), 0.0).sum(1).mean()
    return float(kl), float((p * rewards).sum(1).mean())


def frontier(
    task: Testbed, ref: Tensor, rewards: Tensor, betas: Sequence[float] = tuple(BETAS)
) -> dict[str, list[float]]:
    """The exact reward-KL Pareto frontier: {"beta", "kl", "reward"} of pi*_beta, KL rising, averaged over
    prompts. One beta for all prompts traces the frontier of the mean KL and the mean reward; its slope
    d reward / d KL is beta, because d reward = Var(r) d(1/beta) and d KL = Var(r)/beta d(1/beta)."""
    mass = answer_logps(task, ref).flatten(1)
    points = [_tilted(mass, rewards.flatten(1), beta) for beta in betas]
    return {"beta": list(betas), "kl": [kl for kl, _ in points], "reward": [reward for _, reward in points]}


def tilted_path(
    task: Testbed, ref: Tensor, scores: Tensor, betas: Sequence[float], values: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What ref exp(scores/beta)/Z is worth for each beta: (KL to `ref` [betas] in nats, means [betas, values] of
    functions of finished answers), averaged over prompts. With the scores among the values it is `frontier`; with the
    gold reward, the path of a policy that optimises a proxy."""
    answers = answer_places(task)
    mass, scores = answer_logps(task, ref).flatten(1)[:, answers], scores.flatten(1)[:, answers]
    of_answers = torch.stack([value.flatten(1)[:, answers] for value in values])
    kls, means = [], []
    for beta in betas:
        logps = (mass + scores / beta).log_softmax(1)
        p = logps.exp()
        kls.append(torch.where(p > 0, p * (logps - mass), 0.0).sum(1).mean())
        means.append((p * of_answers).sum(2).mean(1))
    return torch.stack(kls), torch.stack(means)


def frontier_reward(task: Testbed, ref: Tensor, rewards: Tensor, kl: float) -> float:
    """The largest mean reward at a mean KL of at most `kl` nats."""
    mass, flat = answer_logps(task, ref).flatten(1), rewards.flatten(1)

    def beyond(log_beta: float) -> float:
        return _tilted(mass, flat, math.exp(log_beta))[0] - kl

    low, high = -12.0, 12.0
    if beyond(low) <= 0:
        log_beta = low
    elif beyond(high) >= 0:  # before the first step
        log_beta = high
    else:
        from scipy.optimize import brentq  # half a second to import, which the first step need not wait for

        log_beta = brentq(beyond, low, high, xtol=1e-6)
    beta = math.exp(log_beta)
    # V_0(beta) + beta kl bounds the reward at this KL from above for every beta and touches it at the right one.
    return float(optimum(task, ref, rewards, beta).v[:, 0].mean()) + beta * kl


def length_penalised(task: Testbed, ref: Tensor, rewards: Tensor, beta: float, alpha: float) -> Optimum:
    """The optimum of r - alpha |y|: ref exp((r - alpha |y|)/beta)/Z. `alpha` is reward per token, EOS counted.
    The regulariser of Park et al. 2024 (2403.19159) seen as a reward."""
    return optimum(task, ref, rewards - alpha * lengths(task), beta)


@dataclass
class Constrained:
    """The KL-regularised optimum of a reward under a limit on the mean cost."""

    policy: Tensor  # [prompts, inner, vocab] conditionals
    multiplier: float  # reward per unit of cost; 0 where the limit does not bind


def constrained(task: Testbed, ref: Tensor, rewards: Tensor, costs: Tensor, beta: float, limit: float) -> Constrained:
    """argmax of E[r] - beta KL(pi || ref) subject to E[c] <= limit, both averaged over prompts.

    The Lagrangian's optimum is ref exp((r - lambda c)/beta)/Z. Its mean cost falls with lambda (the derivative
    is -Var(c)/beta), so lambda >= 0 follows by bisection. It is what a Lagrangian method must find (Dai et al.
    2023, 2310.12773). Raises ValueError where no policy of the reference's support costs less than `limit`.
    """
    mass = answer_logps(task, ref).flatten(1)
    cheapest = costs.flatten(1).masked_fill(mass == float("-inf"), float("inf")).amin(1).mean()
    if limit <= cheapest:
        raise ValueError(f"no policy costs less than {limit}: the cheapest answers cost {float(cheapest)} on average")

    def cost(multiplier: float) -> float:
        p = (mass + ((rewards - multiplier * costs) / beta).flatten(1)).softmax(1)
        return float((p * costs.flatten(1)).sum(1).mean())

    low, high = 0.0, 0.0
    if cost(0.0) > limit:
        high = 1.0
        while cost(high) > limit:
            low, high = high, 2 * high
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) > limit else (low, middle)
    return Constrained(optimum(task, ref, rewards - high * costs, beta).policy, high)
