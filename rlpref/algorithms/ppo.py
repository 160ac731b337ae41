"""PPO on answers: KL of each token, GAE with a critic, clipped policy and value losses.

Schulman et al. 2017 (1707.06347); for language models Ziegler et al. 2019 (1909.08593), Ouyang et al. 2022
(2203.02155). The reward of token t is -beta log policy/ref; the last token also gets the score of the answer. What
projects call PPO differs in every option here: a run's card has them all.
Whitening, the mean over the tokens of a minibatch, and lambda below 1 with an inexact critic each bias the gradient:
`testbed.estimators` says why and `experiments/README.md` by how much.
"""

from __future__ import annotations

from typing import Literal

from rlpref.algorithms.actor_critic import ActorCritic
from rlpref.algorithms.shaping import Shaping
from rlpref.binding import ConfigError


def ppo(
    beta: float,
    rounds: int,
    epochs: int,
    batch_size: int,
    prompts_per_round: int,
    k: int,
    kl: Literal["reward", "loss"],
    kl_estimator: Literal["k1", "k2", "k3"],
    kl_target: float | None,
    kl_horizon: float | None,
    gamma: float,
    gae_lambda: float,
    gae_lambda_critic: float | None,
    scale_scores: Literal["none", "running_std", "running_mean_std"],
    reward_clip: float | None,
    whiten_rewards: bool,
    whiten_advantages: bool,
    eos_rule: Literal["none", "subtract", "replace", "bootstrap"],
    eos_penalty: float | None,
    cliprange: float | None,
    dual_clip: float | None,
    cliprange_value: float | None,
    entropy_coef: float,
    vf_coef: float,
    critic: Literal["separate", "shared"],
    critic_init: Literal["auto", "reward_model", "policy", "random"],
    critic_warmup: int,
    lr_scale: float,
    critic_lr_scale: float,
) -> ActorCritic:
    """What each option does: rlpref.algorithms.shaping, rlpref.algorithms.actor_critic, rlpref.build_rewards."""
    if kl_target is not None and not beta > 0:
        raise ConfigError(f"beta is {beta}: a weight that is multiplied towards algorithm.kl_target starts above 0.")
    if kl_horizon is not None and prompts_per_round * k > kl_horizon:  # from five times on the weight changes its sign
        asked = f"{prompts_per_round * k} answers of a round: the weight of the KL would jump. Raise it."
        raise ConfigError(f"algorithm.kl_horizon is {kl_horizon}, less than the {asked}")
    scores = scale_scores, reward_clip, whiten_rewards, whiten_advantages, eos_rule, eos_penalty
    return ActorCritic(
        beta,
        Shaping(gamma, gae_lambda, gae_lambda_critic, kl, kl_estimator, kl_target, kl_horizon, *scores),
        *(rounds, epochs, batch_size, prompts_per_round, k),
        *(vf_coef, lr_scale, critic_lr_scale),
        *(critic, critic_init, critic_warmup),
        *(cliprange, dual_clip, cliprange_value, entropy_coef),
    )
