"""Where and why a policy falls short on the testbed. Policies are conditionals [prompts, inner, vocab] in fp64.

A token that a policy never gives (log-prob -inf) counts for nothing where the policy is the one that samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlpref.testbed.exact import answer_logps, log_reach
from rlpref.testbed.task import Testbed, places
from rlpref.types import Sequences

SMALLEST_KL = 1e-6  # nats: below it the gain at this KL is within the rounding of an fp32 policy


def kl_by_position(task: Testbed, p: Tensor, q: Tensor) -> Tensor:
    """[prompts, horizon] share of each token position in KL(p || q), in nats: sum over prefixes s of that
    length of p(s) KL(p(.|s) || q(.|s)). By the chain rule the row sums are the KL of whole answers."""
    given = p.exp()
    nodes = log_reach(task, p).exp() * torch.where(given > 0, given * (p - q), 0.0).sum(-1)
    return torch.zeros(len(p), task.tree.horizon, dtype=p.dtype).index_add_(1, task.depth, nodes)


def regret_by_position(task: Testbed, policy: Tensor, best: Tensor, beta: float) -> Tensor:
    """[prompts, horizon] regret in units of reward: beta sum_t E_{s_t ~ policy} KL(policy(.|s_t) || best(.|s_t)).

    `best` is the policy of `optimum` at the same beta. Row sums are the regret by prompt, V_0 - J(policy); their
    mean is the regret. Rafailov et al. 2024 (2404.12358) for the token level.
    """
    return beta * kl_by_position(task, policy, best)


def kl_efficiency(reward: float, ref_reward: float, frontier_reward: float, kl: float) -> float | None:
    """(E_pi r - E_ref r) / (R*(KL) - E_ref r): the share of what its KL could have bought that a policy got.

    `frontier_reward` is R*(kl), the largest mean reward at that KL (nats). 1 on the frontier, below 0 for a
    policy worse than the reference. None below SMALLEST_KL, where the quotient is 0/0.
    """
    if kl < SMALLEST_KL:
        return None
    return (reward - ref_reward) / (frontier_reward - ref_reward)


def out_of_support_mass(task: Testbed, policy: Tensor, support: Tensor) -> Tensor:
    """[prompts] probability that the policy answers outside `support`, a mask of finished answers
    [inner, vocab] or [prompts, inner, vocab]: what data of that support says nothing about."""
    return (answer_logps(task, policy).exp() * ~support).sum((1, 2))


def support(task: Testbed, sequences: Sequences) -> Tensor:
    """[prompts, inner, vocab] bool: the answers that occur among `sequences`, such as both sides of a data set's
    pairs. Raises ValueError for a sequence that is no finished answer."""
    seen = torch.zeros_like(task.rewards, dtype=torch.bool)
    seen.view(task.tree.prompts, -1)[places(task.tree, sequences)] = True
    return seen


def credit_correlation(
    task: Testbed, policy: Tensor, ref: Tensor, advantage: Tensor, occupancy: Tensor
) -> float | None:
    """Correlation of the implicit token reward log policy/ref with the exact advantage A* = Q* - V*.

    Over all (prompt, prefix, token), each weighted by how often the policy `occupancy` (conditionals as the
    others) goes there. 1 for pi*, where log pi*/ref = A*/beta. None where either side does not vary, as for
    policy = ref. Rafailov et al. 2024 (2404.12358).
    """
    weight = (log_reach(task, occupancy)[:, :, None] + occupancy).exp()
    weight = weight / weight.sum()
    implicit = torch.where(weight > 0, policy - ref, 0.0)
    implicit, exact = (values - (weight * values).sum() for values in (implicit, advantage))
    variances = [float((weight * values**2).sum()) for values in (implicit, exact)]
    # An fp32 policy equal to the reference differs from it by rounding only: 1e-7 per log-prob.
    if min(variances) < 1e-12:
        return None
    return float((weight * implicit * exact).sum()) / math.sqrt(variances[0] * variances[1])
