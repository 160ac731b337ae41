"""Tasks of realistic length, exact without enumeration: the past matters only through a small state.

The reference sees the last few tokens, the reward is a sum of n-gram weights, of an automaton's rewards and of
a term for the length. Then (last `window` tokens, automaton state) says all about an answer so far, and every
exact quantity is a recursion over [prompts, states, vocab] tables. A policy is such a table of next-token
log-probs, or one for each time step: [horizon, prompts, states, vocab]. Everything is fp64.

Token 0 is EOS, as on the enumerated testbed; in a window it stands for "before the start". A state is
window * automaton states + automaton state, the newest token being the window's last digit in base `vocab`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.testbed.task import Testbed, make_testbed

LARGEST_TABLE = 20_000_000  # entries over all time steps: 160 MB for a policy


@dataclass
class Automaton:
    """A deterministic automaton over answer tokens; it starts in state 0 and does not read EOS."""

    moves: Tensor  # [states, vocab] int: the next state; column 0 is not read
    step: Tensor  # [states, vocab] reward of reading a token; column 0 is not read
    end: Tensor  # [states] reward of an answer that ends in this state


@dataclass
class WindowedTask:
    """A task and its truth. Prompts are equally likely; an answer ends with EOS or after `horizon` tokens."""

    vocab: int
    horizon: int
    prompts: int
    after: Tensor  # [states, vocab] int: the state after a token; EOS leaves it alone
    ref: Tensor  # [prompts, states, vocab] log-probs of the reference
    step: Tensor  # [prompts, states, vocab] reward of each token
    end: Tensor  # [prompts, states] reward of an answer that ends in this state
    length: Tensor  # [prompts, horizon] reward of an answer of 1, 2, ... tokens, EOS counted


def make_windowed(
    vocab: int, horizon: int, prompts: int, seed: int, context: int, ngram: int, automaton: Automaton, length: Tensor
) -> WindowedTask:
    """The task of that seed: a random reference of the last `context` tokens, random weights of the `ngram`s of
    the answer (those that reach back before its start too; 0: none), `automaton`, and `length` [horizon] as the reward
    of the number of tokens. Rewards have mean 0 and variance 1 per prompt under the reference.

    Raises ConfigError for sizes that make no task or no table.
    """
    window, states = max(context, ngram - 1), len(automaton.moves)
    if vocab < 2 or min(horizon, prompts) < 1 or min(context, ngram) < 0:
        raise ConfigError("a windowed task needs vocab >= 2, horizon and prompts >= 1, context and ngram >= 0.")
    if horizon * prompts * states * vocab ** (window + 1) > LARGEST_TABLE:
        raise ConfigError(f"a windowed task of these sizes has more than {LARGEST_TABLE:,} table entries.")
    generator = torch.Generator().manual_seed(seed)

    def random(tokens: int) -> Tensor:
        """[prompts, window states, vocab], a function of the last `tokens` tokens and the next one."""
        drawn = torch.randn(prompts, 1, vocab**tokens, vocab, generator=generator, dtype=torch.float64)
        return drawn.expand(-1, vocab ** (window - tokens), -1, -1).flatten(1, 2)

    # Spread 0.5, as on the enumerated testbed: every token stays likely.
    ref, weights = (0.5 * random(context)).log_softmax(-1), random(max(ngram - 1, 0)) * (ngram > 0)
    weights[:, :, 0] = 0  # EOS ends an answer and is not part of it
    step = weights[:, :, None] + automaton.step * (torch.arange(vocab) > 0)
    windows = torch.arange(vocab**window)[:, None, None]
    shifted = (windows * vocab + torch.arange(vocab)) % vocab**window
    after = shifted * states + automaton.moves
    after[:, :, 0] = windows[:, :, 0] * states + torch.arange(states)
    task = WindowedTask(
        vocab=vocab,
        horizon=horizon,
        prompts=prompts,
        after=after.flatten(0, 1),
        ref=ref.repeat_interleave(states, 1),
        step=step.flatten(1, 2),
        end=automaton.end.double().repeat(prompts, vocab**window),
        length=length.double().repeat(prompts, 1),
    )
    mean, variance = moments(task, task.ref)
    if (variance < 1e-12).any():
        raise ConfigError("the reward is the same for every answer; use another seed, automaton or more tokens.")
    sd = variance.sqrt()
    return replace(
        task,
        step=task.step / sd[:, None, None],
        end=task.end / sd[:, None],
        length=(task.length - mean[:, None]) / sd[:, None],
    )


def token_rewards(task: WindowedTask, t: int) -> Tensor:
    """[prompts, states, vocab] reward that arrives with a token at step t, that of the end included."""
    if t == task.horizon - 1:
        return task.step + task.end[:, task.after] + task.length[:, t, None, None]
    rewards = task.step.clone()
    rewards[:, :, 0] += task.end + task.length[:, t, None]  # EOS leaves the state alone
    return rewards


def to_come(task: WindowedTask, values: Tensor) -> Tensor:
    """[prompts, states, vocab] the next step's `values` [prompts, states] as each token leads to them; 0 for EOS."""
    after = values[:, task.after]
    after[:, :, 0] = 0
    return after


def at(policy: Tensor, t: int) -> Tensor:
    """[prompts, states, vocab] a policy's table at step t."""
    return policy[t] if policy.dim() == 4 else policy


@dataclass
class WindowedOptimum:
    """The KL-regularised optimum at one beta."""

    policy: Tensor  # [horizon, prompts, states, vocab] log-probs of pi*
    v: Tensor  # [horizon, prompts, states] soft values
    v0: Tensor  # [prompts] beta log Z, the best attainable E[r] - beta KL


def solve(task: WindowedTask, beta: float) -> WindowedOptimum:
    """Soft Bellman backward induction, as in `optima.optimum`: V(s) = beta log sum_a ref(a|s) exp(Q(s,a)/beta),
    Q(s,a) = r(s,a) + V(sa), V = 0 after the end; pi*(a|s) = ref(a|s) exp((Q - V)/beta)."""
    policy = task.ref.new_empty(task.horizon, *task.ref.shape)
    v = task.ref.new_empty(policy.shape[:-1])
    for t in reversed(range(task.horizon)):
        q = token_rewards(task, t)
        if t < task.horizon - 1:
            q += to_come(task, v[t + 1])
        tilted = q.div_(beta).add_(task.ref)
        log_z = tilted.logsumexp(-1, keepdim=True)
        torch.sub(tilted, log_z, out=policy[t])
        v[t] = beta * log_z[..., 0]
    return WindowedOptimum(policy, v, v[0, :, 0])


def occupancy(task: WindowedTask, policy: Tensor) -> Iterator[Tensor]:
    """For each step the probability [prompts, states] that the answer is unfinished and in that state before
    the token of that step."""
    reach = torch.zeros(task.prompts, len(task.after), dtype=torch.float64)
    reach[:, 0] = 1
    for t in range(task.horizon):
        yield reach
        mass = (reach[:, :, None] * at(policy, t).exp())[:, :, 1:]
        reach = torch.zeros_like(reach).index_add_(1, task.after[:, 1:].flatten(), mass.flatten(1))


@dataclass
class WindowedValues:
    """What a policy is worth, exactly; all [prompts]."""

    reward: Tensor
    kl: Tensor  # KL(policy || reference) of whole answers, nats
    entropy: Tensor  # of whole answers, nats
    length: Tensor  # tokens, EOS counted


def evaluate(task: WindowedTask, policy: Tensor) -> WindowedValues:
    """Mean reward, KL to the reference, entropy and length of a policy, by the forward recursion."""
    totals = []
    for t, reach in enumerate(occupancy(task, policy)):
        logps = at(policy, t)
        p = logps.exp()
        own, cross = torch.where(p > 0, p * logps, 0.0).sum(-1), (p * task.ref).sum(-1)
        terms = (p * token_rewards(task, t)).sum(-1), own - cross, -own, torch.ones_like(reach)
        totals.append(torch.stack([(reach * term).sum(1) for term in terms]))
    return WindowedValues(*torch.stack(totals).sum(0))


def moments(task: WindowedTask, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [prompts] of the reward under a policy, by the backward recursion of its first two
    moments: E[(x + G)^2] = x^2 + 2 x E[G] + E[G^2] with x a token's reward and G the reward still to come."""
    for t in reversed(range(task.horizon)):
        p, x = at(policy, t).exp(), token_rewards(task, t)
        if t == task.horizon - 1:
            first, second = (p * x).sum(-1), (p * x**2).sum(-1)
        else:
            g, g2 = to_come(task, first), to_come(task, second)
            first, second = (p * (x + g)).sum(-1), (p * (x * (x + 2 * g) + g2)).sum(-1)
    return first[:, 0], second[:, 0] - first[:, 0] ** 2


def regret_by_position(task: WindowedTask, policy: Tensor, best: WindowedOptimum, beta: float) -> Tensor:
    """[prompts, horizon] beta E_{s_t ~ policy} KL(policy(.|s_t) || pi*(.|s_t)); row sums are V_0 - J(policy)."""
    columns = []
    for t, reach in enumerate(occupancy(task, policy)):
        logps = at(policy, t)
        p = logps.exp()
        kl = torch.where(p > 0, p * (logps - best.policy[t]), 0.0).sum(-1)
        columns.append(beta * (reach * kl).sum(1))
    return torch.stack(columns, 1)


def draw(task: WindowedTask, policy: Tensor, prompt: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One answer of a policy to each prompt [B]: tokens [B, horizon], 0 after the end, and log-probs [B]."""
    rows, state = torch.arange(len(prompt)), torch.zeros_like(prompt)
    tokens, logps = prompt.new_zeros(len(prompt), task.horizon), torch.zeros(len(prompt), dtype=torch.float64)
    for t in range(task.horizon):
        step = at(policy, t)[prompt[rows], state]
        cdf = step.exp().cumsum(-1)
        uniform = torch.rand(len(rows), 1, generator=generator, dtype=torch.float64) * cdf[:, -1:]
        token = torch.searchsorted(cdf, uniform, right=True).clamp(max=task.vocab - 1)
        tokens[rows, t] = token[:, 0]
        logps[rows] += step.gather(1, token)[:, 0]
        alive = token[:, 0] > 0
        rows, state = rows[alive], task.after[state[alive], token[alive, 0]]
    return tokens, logps


def score(task: WindowedTask, prompt: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(rewards [B], reference log-probs [B]) of answers to prompts [B]. `tokens` [B, T] are read up to the
    first EOS or for `horizon` tokens; what stands behind them is not. Raises ValueError for an unfinished answer."""
    state, alive = torch.zeros_like(prompt), torch.ones_like(prompt, dtype=torch.bool)
    rewards = torch.zeros(len(prompt), dtype=torch.float64)
    logps = torch.zeros_like(rewards)
    for t in range(min(task.horizon, tokens.shape[1])):
        rows, token = alive.nonzero()[:, 0], tokens[alive, t]
        at_row = prompt[rows], state[rows], token
        state[rows] = task.after[at_row[1:]]
        over = (token == 0) | (t == task.horizon - 1)
        rewards[rows] += task.step[at_row] + over * (task.end[prompt[rows], state[rows]] + task.length[prompt[rows], t])
        logps[rows] += task.ref[at_row]
        alive[rows] = ~over
    if alive.any():
        raise ValueError(f"row {int(alive.nonzero()[0])} is not a finished answer")
    return rewards, logps


def regret_estimate(v0: Tensor, rewards: Tensor, logps: Tensor, ref_logps: Tensor, beta: float) -> tuple[float, float]:
    """(estimate, standard error) of a policy's regret V_0 - J from its own answers, for policies that no table
    holds. All [B], `v0` the best attainable objective of each answer's prompt (or one number for all).

    The summand V_0 - r + beta log policy/ref is 0 for every answer of pi*: the error vanishes with the regret.
    """
    terms = v0 - rewards.double() + beta * (logps.double() - ref_logps.double())
    return float(terms.mean()), float(terms.std() / len(terms) ** 0.5)


def enumerated(task: WindowedTask, seed: int = 0) -> tuple[Testbed, Tensor]:
    """The same task as an enumerated testbed, for small sizes, and the state [inner] of each of its prefixes.
    The table of a policy at step t gives its conditionals at depth t: `at(policy, t)[:, states]`. `seed` is the
    testbed's own, from which a tiny model takes its first weights."""
    small = make_testbed(task.vocab, task.horizon, task.prompts, seed, "ngram")
    level = torch.zeros(1, dtype=torch.long)
    earned = torch.zeros(task.prompts, 1, dtype=torch.float64)
    states, worth = [], []
    for t in range(task.horizon):
        states.append(level)
        worth.append(earned[:, :, None] + token_rewards(task, t)[:, level])
        earned = (earned[:, :, None] + task.step[:, level])[:, :, 1:].flatten(1)
        level = task.after[level, 1:].flatten()
    rewards, state = torch.cat(worth, 1) * small.ends, torch.cat(states)
    return replace(small, reward="windowed", ref=task.ref[:, state], rewards=rewards), state
