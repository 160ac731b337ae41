"""Who beats whom, and the optima of objectives that are win rates: IPO, SFT on chosen answers, Nash.

A preference (rlpref.testbed.preferences) is complementary here: P(a beats b) + P(b beats a) = 1. Answers are named
by their place in a flattened [inner, vocab] table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.testbed.exact import answer_logps, expectation, sequence_kl
from rlpref.testbed.optima import BETAS, conditionals_of, frontier, optimum
from rlpref.testbed.preferences import Preference, preference_model
from rlpref.testbed.task import Testbed, answer_places, places
from rlpref.types import Sequences

PAIRS_AT_ONCE = 2**18  # 2 MB: what stays in a cache is several times faster


@dataclass
class TestbedPreference:
    """A preference of the task's answers as one of token sequences."""

    __test__ = False

    task: Testbed
    preference: Preference
    name: str

    def __call__(self, first: Sequences, second: Sequences) -> Tensor:
        """[B] fp32 P(first beats second). Raises ValueError for a row that is no finished answer, and for two answers
        to different prompts."""
        (prompt, one), (same, other) = (places(self.task.tree, answers) for answers in (first, second))
        if (prompt != same).any():
            raise ValueError("a preference compares two answers to one prompt")
        return self.preference(prompt.cpu(), one.cpu(), other.cpu()).float().to(first.ids.device)


def preference_of(task: Testbed, name: str, options: Mapping[str, Any] | None) -> TestbedPreference:
    """The preference of that name as one of token sequences. Raises ConfigError for one that drops ties: whoever asks
    it gets an answer."""
    preference = preference_model(name, options)(task)
    if preference.decided:
        raise ConfigError(
            f"data.preference '{name}' leaves pairs undecided: no reward can be made of it. Take another."
        )
    return TestbedPreference(task, preference, name)


def crossed(task: Testbed, preference: Preference, first: Tensor, second: Tensor) -> Tensor:
    """[prompts, A, B] P(each of `first` [A] beats each of `second` [B] | x), answers by their places.

    Raises ValueError for a preference that leaves pairs undecided: it changes which pairs there are.
    """
    if preference.decided:
        raise ValueError("this preference drops ties; exact solutions need every pair decided: use rule 'half'")
    prompts = torch.arange(task.tree.prompts)
    return preference(prompts[:, None, None], first[:, None], second)


def win_probability(task: Testbed, opponents: Tensor, preference: Preference) -> Tensor:
    """[prompts, inner, vocab] p(y beats opponents) = sum_y' opponents(y') P(y beats y'); 0 where no answer
    ends. `opponents` are conditionals. Answers are compared in chunks, never all with all at once."""
    mass = answer_logps(task, opponents).exp().flatten(1)
    answers = answer_places(task)
    rivals = answers[(mass[:, answers] > 0).any(0)]
    beats = torch.zeros_like(mass)
    for chunk in answers.split(max(1, PAIRS_AT_ONCE // (len(mass) * len(rivals)))):
        beats[:, chunk] = torch.einsum("xab,xb->xa", crossed(task, preference, chunk, rivals), mass[:, rivals])
    return beats.view_as(opponents)


def ipo_optimum(task: Testbed, ref: Tensor, mu: Tensor, preference: Preference, tau: float) -> Tensor:
    """Conditionals of IPO's own optimum, ref exp(p(y beats mu)/tau)/Z: the largest win rate against `mu` less
    tau KL(pi || ref). Azar et al. 2024 (2310.12036), section 5.

    The loss on pairs drawn i.i.d. from `mu` has it as its minimum where `mu` has full support; elsewhere the
    loss leaves the answers outside the support open, and the objective does not.
    """
    return optimum(task, ref, win_probability(task, mu, preference), tau).policy


def ipo_frontier(
    task: Testbed, ref: Tensor, mu: Tensor, preference: Preference, taus: Sequence[float] = tuple(BETAS)
) -> dict[str, list[float]]:
    """IPO's own frontier {"tau", "kl", "win_rate"}: the largest win rate against `mu` at each mean KL to the
    reference in nats, KL rising, averaged over prompts. Its slope is tau."""
    points = frontier(task, ref, win_probability(task, mu, preference), taus)
    return {"tau": points["beta"], "kl": points["kl"], "win_rate": points["reward"]}


def chosen_policy(task: Testbed, mu: Tensor, preference: Preference) -> Tensor:
    """Conditionals of 2 mu(y) p(y beats mu): the winner of a pair drawn i.i.d. from `mu`, which SFT on chosen
    answers imitates. With deterministic labels (ties by coin) it is best-of-2 of `mu`. It sums to 1 because a
    complementary preference wins half its pairs against itself."""
    wins = win_probability(task, mu, preference)
    return conditionals_of(task, answer_logps(task, mu) + wins.log(), elsewhere=mu)


@dataclass
class Nash:
    """The symmetric equilibrium of a preference with a KL penalty to the reference."""

    policy: Tensor  # [prompts, inner, vocab] conditionals
    residual: float  # largest L1 distance over prompts between the policy and the best reply to it
    steps: int


def nash(
    task: Testbed,
    ref: Tensor,
    preference: Preference,
    tau: float,
    tolerance: float = 1e-12,
    max_steps: int = 200_000,
) -> Nash:
    """The policy that is its own best reply: pi = ref exp(p(y beats pi)/tau)/Z. Munos et al. 2023 (2312.00886):
    the symmetric equilibrium of the game with payoff P(pi beats pi') - tau KL(pi || ref) + tau KL(pi' || ref).

    Damped iteration log pi <- (1 - s) log pi + s log reply(pi). P - 1/2 is skew, so near the equilibrium the
    eigenvalues are 1 - s + i s w/tau with |w| <= L = max |P - 1/2|; s = 1/(1 + L^2/tau^2) makes their squared
    modulus at most 1 - s. The whole matrix is held: 8 prompts answers^2 bytes. Raises RuntimeError if
    `tolerance` (of the residual) is not reached in `max_steps`.
    """
    answers = answer_places(task)
    log_ref = answer_logps(task, ref).flatten(1)[:, answers]
    beats = crossed(task, preference, answers, answers)
    # A step of 1 would multiply a log-prob of -inf by 0.
    step = min(0.999, 1 / (1 + float((beats - 0.5).abs().max()) ** 2 / tau**2))
    logps, steps = log_ref, 0
    while True:
        reply = (log_ref + torch.einsum("xab,xb->xa", beats, logps.exp()) / tau).log_softmax(1)
        residual = float((reply.exp() - logps.exp()).abs().sum(1).max())
        if residual <= tolerance:
            break
        if steps == max_steps:
            raise RuntimeError(f"no equilibrium after {steps} steps: the residual is {residual:.1e}; raise tau")
        logps, steps = ((1 - step) * logps + step * reply).log_softmax(1), steps + 1
    whole = answer_logps(task, ref).flatten(1)
    whole[:, answers] = logps
    return Nash(conditionals_of(task, whole.view_as(ref), elsewhere=ref), residual, steps)


def exploitability(task: Testbed, policy: Tensor, ref: Tensor, preference: Preference, tau: float) -> Tensor:
    """[prompts] what the best reply to a policy gains in the game of `nash`: tau log Z, the closed form of
    max E[p(y beats policy)] - tau KL(. || ref), less the policy's own value of that. >= 0; 0 at the equilibrium."""
    wins = win_probability(task, policy, preference)
    own = expectation(task, policy, wins) - tau * sequence_kl(task, policy, ref)
    return optimum(task, ref, wins, tau).v[:, 0] - own


def played(task: Testbed, policy: Tensor, ref: Tensor, preference: Preference, tau: float | None) -> dict[str, float]:
    """Means over prompts of what the best reply to a policy gains: `exploitability` in the game with a KL to the
    reference of weight tau (None: left out), `exploitability_free` in the game without, max p(y beats policy) - 1/2."""
    free = win_probability(task, policy, preference).flatten(1).amax(1) - 0.5
    found = {"exploitability_free": float(free.mean())}
    if tau is not None:
        found["exploitability"] = float(exploitability(task, policy, ref, preference, tau).mean())
    return found
