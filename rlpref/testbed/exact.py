"""Exact solutions on the testbed. Policies are conditionals [prompts, inner, vocab]; results are fp64.

The objective is J(pi) = E[ r(x, y) ] - beta KL(pi || ref), averaged over prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.testbed.task import Testbed


def log_reach(task: Testbed, logps: Tensor) -> Tensor:
    """[prompts, inner] log-probability that an answer begins with each prefix."""
    level = logps.new_zeros(len(logps), 1)
    reach = [level]
    for depth in range(task.tree.horizon - 1):
        level = (level[:, :, None] + logps[:, task.depth == depth, 1:]).flatten(1)
        reach.append(level)
    return torch.cat(reach, 1)


def answer_logps(task: Testbed, logps: Tensor) -> Tensor:
    """[prompts, inner, vocab] log-probability of each finished answer; -inf where no answer ends."""
    whole = log_reach(task, logps)[:, :, None] + logps
    return whole.masked_fill(~task.ends, float("-inf"))


def expectation(task: Testbed, logps: Tensor, values: Tensor) -> Tensor:
    """[prompts] mean under the policy of a function of finished answers."""
    return (answer_logps(task, logps).exp() * torch.where(task.ends, values, 0.0)).sum((1, 2))


def sequence_kl(task: Testbed, p: Tensor, q: Tensor) -> Tensor:
    """[prompts] KL(p || q) of whole answers in nats, by the chain rule over prefixes."""
    return (log_reach(task, p).exp() * (p.exp() * (p - q)).sum(-1)).sum(1)


def entropy(task: Testbed, logps: Tensor) -> Tensor:
    """[prompts] entropy of whole answers in nats."""
    return -(log_reach(task, logps).exp() * (logps.exp() * logps).sum(-1)).sum(1)


@dataclass
class Optimum:
    """The KL-regularised optimum of one reward at one beta."""

    policy: Tensor  # [prompts, inner, vocab] conditionals of pi*
    q: Tensor  # [prompts, inner, vocab] soft action values
    v: Tensor  # [prompts, inner] soft values; v[:, 0] = beta log Z is the best attainable J


def optimum(task: Testbed, ref: Tensor, rewards: Tensor, beta: float) -> Optimum:
    """Soft Bellman backward induction: V(s) = beta log sum_a ref(a|s) exp(Q(s,a)/beta), Q(s,a) = r at the end
    of an answer, else V(sa); pi*(a|s) = ref(a|s) exp((Q - V)/beta). Equals ref exp(r/beta)/Z over answers
    (Rafailov et al. 2023, eq. 4; token level: Rafailov et al. 2024, 2404.12358)."""
    tree = task.tree
    q = torch.where(task.ends, rewards, 0.0)
    v = torch.zeros_like(q[:, :, 0])
    for depth in reversed(range(tree.horizon)):
        nodes = (task.depth == depth).nonzero()[:, 0]
        if depth < tree.horizon - 1:
            children = nodes[:, None] * (tree.vocab - 1) + torch.arange(1, tree.vocab)
            q[:, nodes, 1:] = v[:, children]
        v[:, nodes] = beta * (ref[:, nodes] + q[:, nodes] / beta).logsumexp(-1)
    return Optimum(policy=ref + (q - v[:, :, None]) / beta, q=q, v=v)


def regret(task: Testbed, policy: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> float:
    """V_0 - J(policy) = beta KL(policy || pi*), averaged over prompts; computed as the former."""
    objective = expectation(task, policy, rewards) - beta * sequence_kl(task, policy, ref)
    return float((optimum(task, ref, rewards, beta).v[:, 0] - objective).mean())


BETAS = torch.logspace(3, -3, 121, dtype=torch.float64).tolist()


def frontier(task: Testbed, ref: Tensor, rewards: Tensor, betas=BETAS) -> dict[str, list[float]]:
    """The exact reward-KL Pareto frontier: {"beta", "kl", "reward"} of pi*_beta, KL rising, averaged over
    prompts. One beta for all prompts traces the frontier of the mean KL and the mean reward."""
    points = [tilted(task, ref, rewards, beta) for beta in betas]
    return {"beta": list(betas), "kl": [kl for kl, _ in points], "reward": [reward for _, reward in points]}


def tilted(task: Testbed, ref: Tensor, rewards: Tensor, beta: float) -> tuple[float, float]:
    """(mean KL to the reference, mean reward) of pi*_beta, straight from ref exp(r/beta)/Z over answers."""
    mass, scaled = answer_logps(task, ref).flatten(1), (rewards / beta).flatten(1)
    logps = (mass + scaled).log_softmax(1)
    p = logps.exp()
    kl = torch.where(p > 0, p * (logps - mass), 0.0).sum(1).mean()
    return float(kl), float((p * rewards.flatten(1)).sum(1).mean())


def frontier_reward(task: Testbed, ref: Tensor, rewards: Tensor, kl: float) -> float:
    """The largest mean reward at a mean KL of at most `kl` nats, by bisection on log beta."""
    low, high = -12.0, 12.0  # log beta
    for _ in range(60):
        middle = (low + high) / 2
        if tilted(task, ref, rewards, math.exp(middle))[0] > kl:
            low = middle
        else:
            high = middle
    beta = math.exp(high)
    # V_0(beta) + beta kl bounds the reward at this KL from above for every beta and touches it at the right one.
    return float(optimum(task, ref, rewards, beta).v[:, 0].mean()) + beta * kl


def win_probability(task: Testbed, opponents: Tensor, rewards: Tensor) -> Tensor:
    """[prompts, inner, vocab] probability that each answer beats one of the policy `opponents` under
    Bradley-Terry with `rewards`; 0 where no answer ends."""
    flat, mass = rewards.flatten(1), answer_logps(task, opponents).exp().flatten(1)
    answers = task.ends.flatten().nonzero()[:, 0]
    beats = torch.zeros_like(flat)
    for chunk in answers.split(1024):
        margins = flat[:, chunk, None] - flat[:, None, answers]
        beats[:, chunk] = (margins.sigmoid() * mass[:, None, answers]).sum(-1)
    return beats.view_as(rewards)


def ipo_optimum(task: Testbed, ref: Tensor, rewards: Tensor, tau: float) -> Tensor:
    """Conditionals of IPO's own optimum for pairs drawn from the reference: ref exp(p(y beats ref)/tau)/Z.
    Azar et al. 2024 (2310.12036), section 5."""
    return optimum(task, ref, win_probability(task, ref, rewards), tau).policy
