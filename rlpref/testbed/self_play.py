"""Exact updates of methods that play against themselves, one step of the whole policy at a time.

Policies are conditionals [prompts, inner, vocab]; a preference is complementary (see rlpref.testbed.duels, which has
the equilibrium that these steps go to, and what a policy loses to its best reply).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.testbed.duels import win_probability
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.optima import conditionals_of, optimum
from rlpref.testbed.preferences import Preference
from rlpref.testbed.task import Testbed


def geometric(task: Testbed, policy: Tensor, other: Tensor, share: float) -> Tensor:
    """Conditionals of policy^(1 - share) other^share / Z over whole answers: the opponent of Nash-MD and IPO-MD, with
    the reference as the other. Munos et al. 2023 (2312.00886); Calandriello et al. 2024 (2403.08635)."""
    logps = [torch.where(task.ends, answer_logps(task, each), 0.0) for each in (policy, other)]
    mixed = (1 - share) * logps[0] + share * logps[1]
    return conditionals_of(task, mixed.masked_fill(~task.ends, float("-inf")), elsewhere=policy)


def self_play_step(task: Testbed, policy: Tensor, preference: Preference, eta: float) -> Tensor:
    """Conditionals of policy exp(eta p(y beats policy))/Z: one round of SPPO in the population, multiplicative weights
    of the game without a KL. Wu et al. 2024 (2405.00675). The mean of its iterates goes to the equilibrium, the
    last one need not."""
    return optimum(task, policy, win_probability(task, policy, preference), 1 / eta).policy


def nash_md_step(task: Testbed, policy: Tensor, ref: Tensor, preference: Preference, tau: float, eta: float) -> Tensor:
    """Conditionals of argmax_pi eta P(pi beats m) - KL(pi || m) with m = policy^(1 - eta tau) ref^(eta tau): mirror
    descent around the mixture. Munos et al. 2023 (2312.00886); with eta = 2/(tau (t + 2)) in step t the last
    iterate goes to `duels.nash` (theorem 1)."""
    return self_play_step(task, geometric(task, policy, ref, eta * tau), preference, eta)
