"""A2C on answers: policy gradient less the critic's value of each state, one update on the fresh answers of a round.

Mnih et al. 2016 (1602.01783), without its asynchrony. It is PPO with one epoch of one minibatch, where every ratio is
1 and no bound is met: Huang et al. 2022 (2205.09123). The advantage is the return to come less the value (`gae_lambda`
1) or what `gae_lambda` makes of it; the loss is the mean over the tokens of the round.
"""

from __future__ import annotations

from typing import Literal

from rlpref.algorithms.actor_critic import ActorCritic, one_update
from rlpref.algorithms.shaping import Shaping


def a2c(
    beta: float,
    rounds: int,
    prompts_per_round: int,
    k: int,
    gae_lambda: float,
    gamma: float,
    entropy_coef: float,
    vf_coef: float,
    eos_rule: Literal["none", "subtract", "replace", "bootstrap"],
    eos_penalty: float | None,
    critic: Literal["separate", "shared"],
    critic_init: Literal["auto", "reward_model", "policy", "random"],
    lr_scale: float,
    critic_lr_scale: float,
) -> ActorCritic:
    """A round is one update."""
    return ActorCritic(
        beta,
        Shaping(gamma, gae_lambda, eos_rule=eos_rule, eos_penalty=eos_penalty),
        *one_update(rounds, prompts_per_round, k),
        *(vf_coef, lr_scale, critic_lr_scale, critic, critic_init),
        entropy_coef=entropy_coef,
    )
