"""TRPO on answers: each round one step along the natural gradient, as far as a bound on the mean KL lets it go.

Schulman et al. 2015 (1502.05477), with the advantages of PPO and its critic, which the optimizer trains. Exact at the
size of the testbed: larger models are refused. The passes that conjugate gradients and line search make through the
policy are no minibatch, and `cost/tokens` does not count them.
"""

from __future__ import annotations

from typing import Literal

from rlpref.algorithms.actor_critic import ActorCritic, one_update
from rlpref.algorithms.natural import NaturalStep
from rlpref.algorithms.shaping import Shaping


def trpo(
    beta: float,
    rounds: int,
    prompts_per_round: int,
    k: int,
    delta: float,
    damping: float,
    cg_iterations: int,
    backtracks: int,
    gamma: float,
    gae_lambda: float,
    eos_rule: Literal["none", "subtract", "replace", "bootstrap"],
    eos_penalty: float | None,
    vf_coef: float,
    critic_init: Literal["auto", "reward_model", "policy", "random"],
    critic_lr_scale: float,
) -> ActorCritic:
    """A round is one step of the policy, of the critic an update. No learning rate is the policy's: `delta` is."""
    shaping = Shaping(gamma, gae_lambda, eos_rule=eos_rule, eos_penalty=eos_penalty)
    return ActorCritic(
        beta,
        shaping,
        *one_update(rounds, prompts_per_round, k),
        vf_coef,
        lr_scale=0.0,
        critic_lr_scale=critic_lr_scale,
        critic="separate",
        critic_init=critic_init,
        natural=NaturalStep(delta, damping, cg_iterations, backtracks),
    )
