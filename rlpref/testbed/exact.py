"""Exact measures of a policy on the testbed. Policies are conditionals [prompts, inner, vocab]; results are fp64.

The objective is J(pi) = E[ r(x, y) ] - beta KL(pi || ref), averaged over prompts. What maximises this objective
and others is in `optima`, `selection`, `divergences` and `duels`.
"""

from __future__ import annotations

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
    """[prompts] KL(p || q) of whole answers in nats, by the chain rule over prefixes. A token that p never
    takes counts nothing, nor does a prefix that it never reaches; inf where q misses an answer of p."""
    return _over_prefixes(task, p, p - q)


def forward_kls(task: Testbed, policy: Tensor, ref: Tensor) -> Tensor:
    """[prompts, inner, vocab] sum over the tokens of each answer of KL(ref || policy) of the next token, in nats."""
    nodes = torch.where(ref > float("-inf"), ref.exp() * (ref - policy), 0.0).sum(-1)
    before = log_reach(task, nodes[:, :, None].expand_as(ref))  # sums along the answer, whatever is summed
    return (before + nodes)[:, :, None].expand_as(ref)


def entropy(task: Testbed, logps: Tensor) -> Tensor:
    """[prompts] entropy of whole answers in nats."""
    return -_over_prefixes(task, logps, logps)


def _over_prefixes(task: Testbed, logps: Tensor, values: Tensor) -> Tensor:
    """[prompts] expected sum along an answer of a value [prompts, inner, vocab] of each token."""
    reach = log_reach(task, logps).exp()
    steps = torch.where(logps > float("-inf"), logps.exp() * values, 0.0).sum(-1)
    return torch.where(reach > 0, reach * steps, 0.0).sum(1)


def lengths(task: Testbed) -> Tensor:
    """[inner, vocab] tokens of each finished answer, EOS included."""
    return (task.depth[:, None] + 1).double().expand(task.ends.shape)


def regret(task: Testbed, policy: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> float:
    """beta log Z - J(policy) = beta KL(policy || pi*), averaged over prompts; computed as the former, with
    Z = sum over answers of ref exp(r/beta). Rafailov et al. 2023 (2305.18290), appendix A.1."""
    objective = expectation(task, policy, rewards) - beta * sequence_kl(task, policy, ref)
    log_z = (answer_logps(task, ref) + rewards / beta).flatten(1).logsumexp(1)
    return float((beta * log_z - objective).mean())
