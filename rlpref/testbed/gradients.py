"""What a policy-gradient estimator estimates: its exact expectation and variance beside the exact gradient.

The objective is J(pi) = E[ r(x, y) ] - beta KL(pi || ref), averaged over prompts; gradients are by the tabular
logits, [prompts, inner, vocab]. One batch is k answers to each prompt, drawn from the policy. On a small tree all
tuples of k answers to a prompt are enumerated with their probabilities, so nothing here is sampled. fp64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpref.testbed.exact import answer_logps, expectation, sequence_kl
from rlpref.testbed.task import Testbed, answer_places, answer_tokens

LARGEST_ENUMERATION = 20_000_000  # numbers in the gradients of all tuples


@dataclass
class Draws:
    """Every tuple of k answers to each prompt, with all that an estimator may look at."""

    beta: float
    chance: Tensor  # [prompts, tuples] probability of the tuple under the policy
    mask: Tensor  # [prompts, tuples, k, horizon] bool: the tokens of each answer, EOS included
    logps: Tensor  # [prompts, tuples, k, horizon] of the policy that sampled, 0 outside the mask
    ref_logps: Tensor  # [prompts, tuples, k, horizon]
    scores: Tensor  # [prompts, tuples, k] reward of the whole answer, without the KL
    values: Tensor  # [prompts, tuples, k, horizon] exact value before each token, 0 outside the mask
    greedy: Tensor  # [prompts, tuples] the answer of the likeliest tokens: its reward less beta log policy/ref


# What is maximised: (logps with gradient, the draws) -> [prompts, tuples], one value for the k answers of a tuple.
Surrogate = Callable[[Tensor, Draws], Tensor]


@dataclass
class Enumeration:
    """All draws of one policy, and the derivative of each log-prob by the logits."""

    draws: Draws
    answers: Tensor  # [tuples, k] which answer each draw is
    derivatives: Tensor  # [prompts, answers, horizon, inner * vocab] of the log-prob of each token


@dataclass
class Quality:
    """An estimator beside the exact gradient, which is 1 long here."""

    bias: float  # |E g - grad J| / |grad J|
    cosine: float | None  # between E g and grad J; None where E g is 0
    scale: float  # length of E g along grad J, in units of |grad J|
    variance: float  # E |g - E g|^2 / |grad J|^2


def objective_gradient(task: Testbed, policy: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """[prompts, inner, vocab] exact gradient of J by the logits of `policy`, by autograd through the whole tree."""
    logits = policy.detach().clone().requires_grad_()
    logps = logits.log_softmax(-1)
    objective = (expectation(task, logps, rewards) - beta * sequence_kl(task, logps, ref)).mean()
    return torch.autograd.grad(objective, logits)[0]


def policy_values(task: Testbed, policy: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """[prompts, inner] V(s): the mean under the policy of what is still to come after each prefix, the reward of
    the answer less beta log policy/ref of each token. V of the empty prefix is J of that prompt."""
    q = torch.where(task.ends, rewards, 0.0) - beta * (policy - ref)
    values = torch.zeros_like(q[:, :, 0])
    for depth in reversed(range(task.tree.horizon)):
        nodes = (task.depth == depth).nonzero()[:, 0]
        if depth < task.tree.horizon - 1:
            children = nodes[:, None] * (task.tree.vocab - 1) + torch.arange(1, task.tree.vocab)
            q[:, nodes, 1:] += values[:, children]
        values[:, nodes] = (policy[:, nodes].exp() * q[:, nodes]).sum(-1)
    return values


def greedy_returns(task: Testbed, policy: Tensor, ref: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """[prompts] reward less beta log policy/ref of the answer that takes the likeliest token each time."""
    vocab, prompts = task.tree.vocab, torch.arange(task.tree.prompts)
    node, place = torch.zeros_like(prompts), torch.full_like(prompts, -1)
    for _ in range(task.tree.horizon):
        token = policy[prompts, node].argmax(-1)
        place = torch.where((place < 0) & task.ends[node, token], node * vocab + token, place)
        node = torch.where(place < 0, node * (vocab - 1) + token, 0)
    log_ratio = answer_logps(task, policy).flatten(1) - answer_logps(task, ref).flatten(1)
    return (rewards.flatten(1) - beta * log_ratio)[prompts, place]


def enumerate_draws(
    task: Testbed, policy: Tensor, ref: Tensor, rewards: Tensor, beta: float, k: int = 2
) -> Enumeration:
    """All tuples of k answers to each prompt. Raises ValueError where k is below 1 or the tuples are too many."""
    tree, places = task.tree, answer_places(task)
    if k < 1:
        raise ValueError(f"a tuple holds at least one answer; got k = {k}")
    size = tree.prompts * len(places) ** k * tree.inner * tree.vocab
    if size > LARGEST_ENUMERATION:
        raise ValueError(f"{len(places)} answers in tuples of {k}: {size:,} numbers; at most {LARGEST_ENUMERATION:,}")
    tokens = answer_tokens(task).flatten(0, 1)[places]
    mask = tokens >= 0
    tokens = tokens.clamp(min=0)
    nodes = _nodes_before(task, tokens, mask)

    def along(table: Tensor) -> Tensor:
        """[prompts, answers, horizon] entries of a table [prompts, inner, vocab] that each answer meets."""
        return torch.where(mask, table[:, nodes, tokens], 0.0)

    values = policy_values(task, policy, ref, rewards, beta)[:, nodes] * mask
    answers = torch.cartesian_prod(*[torch.arange(len(places))] * k).view(-1, k)
    whole = answer_logps(task, policy).flatten(1)[:, places]
    draws = Draws(
        beta=beta,
        chance=whole[:, answers].sum(-1).exp(),
        mask=mask[answers].expand(tree.prompts, -1, -1, -1),
        logps=along(policy)[:, answers],
        ref_logps=along(ref)[:, answers],
        scores=rewards.flatten(1)[:, places][:, answers],
        values=values[:, answers],
        greedy=greedy_returns(task, policy, ref, rewards, beta)[:, None].expand(-1, len(answers)),
    )
    one_hot = torch.eye(tree.vocab, dtype=policy.dtype)
    here = torch.eye(tree.inner, dtype=policy.dtype)[nodes] * mask[:, :, None]
    by_token = one_hot[tokens] - policy.exp()[:, nodes]  # d log softmax: what was drawn less what was expected
    return Enumeration(draws, answers, (here[..., None] * by_token[..., None, :]).flatten(-2))


def _nodes_before(task: Testbed, tokens: Tensor, mask: Tensor) -> Tensor:
    """[answers, horizon] the prefix before each token; 0 beyond the end of an answer."""
    node, nodes = torch.zeros(len(tokens), dtype=torch.long), []
    for t in range(task.tree.horizon):
        nodes.append(torch.where(mask[:, t], node, 0))
        node = node * (task.tree.vocab - 1) + tokens[:, t]
    return torch.stack(nodes, 1)


def tuple_gradients(found: Enumeration, surrogate: Surrogate) -> Tensor:
    """[prompts, tuples, inner * vocab] the gradient that each tuple gives, by the logits of its own prompt.

    A surrogate sees the policy through the log-probs of the drawn tokens only. So its gradient is its derivative
    by each of them, by autograd, times the derivative of that log-prob by the logits.
    """
    logps = found.draws.logps.detach().clone().requires_grad_()
    (weights,) = torch.autograd.grad(surrogate(logps, found.draws).sum(), logps)
    gradients = torch.zeros(*found.draws.chance.shape, found.derivatives.shape[-1], dtype=logps.dtype)
    for draw in range(found.answers.shape[1]):
        of_answer = found.derivatives[:, found.answers[:, draw]]
        gradients += torch.einsum("pnt,pntd->pnd", weights[:, :, draw], of_answer)
    return gradients


def moments(found: Enumeration, surrogate: Surrogate) -> tuple[Tensor, float]:
    """(mean [prompts, inner * vocab], total variance) of the gradient of one batch: k answers to each prompt.
    The batch's gradient is the mean over prompts; answers to different prompts are independent."""
    gradients = tuple_gradients(found, surrogate)
    prompts = len(gradients)
    mean = (found.draws.chance[..., None] * gradients).sum(1)
    spread = (gradients - mean[:, None]).square().sum(-1)
    return mean / prompts, float((found.draws.chance * spread).sum()) / prompts**2


def quality(found: Enumeration, surrogate: Surrogate, exact: Tensor) -> Quality:
    """The estimator beside the exact gradient [prompts, inner, vocab] of what it should estimate.
    Raises ValueError where the exact gradient is 0, as that of the KL at the reference."""
    mean, variance = moments(found, surrogate)
    mean, exact = mean.flatten(), exact.flatten()
    length = exact.norm()
    if length < 1e-12:
        raise ValueError("the exact gradient is 0 here: nothing can be measured relative to it")
    aligned, norm = mean @ exact, mean.norm()
    return Quality(
        bias=float((mean - exact).norm() / length),
        cosine=float(aligned / (norm * length)) if norm > 1e-12 * length else None,
        scale=float(aligned / length**2),
        variance=float(variance / length**2),
    )
