"""How the scores of answers become rewards of their tokens and, with a critic, advantages: PPO, A2C and TRPO alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlpref.algorithms import carried, common
from rlpref.algorithms.algorithm import Round
from rlpref.binding import ConfigError
from rlpref.models.bundle import Models, in_chunks
from rlpref.models.heads import answer_scores, state_values
from rlpref.ops.blocks import blocks, spread
from rlpref.ops.gae import explained_variance, gae, penalised_rewards
from rlpref.ops.kl import k1, k2, k3
from rlpref.ops.masked import whiten_runs
from rlpref.rollout.sampler import ends_with_eos
from rlpref.types import Prompts, Rollouts, Samples

KL = {"k1": k1, "k2": k2, "k3": k3}
PENALISED = ("subtract", "replace")  # EOS rules that want a penalty


@dataclass(frozen=True)
class Shaping:
    """What is None is off.

    - `kl`: beta times `kl_estimator` of log policy/ref is taken off each token's `reward`, or added to its `loss`.
      There the gradient of k1 has mean 0, that of k2 is the KL's, that of k3 is not (rlpref.ops.kl)
    - `kl_target`: beta is where the weight of the KL starts; after each round rlpref.ops.kl.controlled moves it by the
      round's KL with the gain (answers of the round) / `kl_horizon`. Where it settles is the optimum of another beta
    - `gae_lambda_critic`: of the critic's targets; None: as for the advantages (VAPO, Yue et al. 2025, 2504.05118)
    - `scale_scores`: over the standard deviation of all scores so far, this round's included (`running_std`), and less
      their mean (`running_mean_std`); then `reward_clip` holds them between +- this. The KL is not scaled with them
    - `whiten_rewards`: rewards of tokens over their standard deviation in the round; `whiten_advantages`: and mean 0
    - `eos_rule`: what becomes of the score of an answer that was cut before its EOS. `none` keeps it, `subtract` takes
      `eos_penalty` off, `replace` puts -eos_penalty in its place, `bootstrap` the critic's value of the state after its
      last token: it has not ended (Pardo et al. 2018, 1712.00378)
    """

    gamma: float
    gae_lambda: float
    gae_lambda_critic: float | None = None
    kl: str = "reward"
    kl_estimator: str = "k1"
    kl_target: float | None = None
    kl_horizon: float | None = None
    scale_scores: str = "none"
    reward_clip: float | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool = False
    eos_rule: str = "none"
    eos_penalty: float | None = None

    def __post_init__(self):
        penalised = self.eos_rule in PENALISED
        common.check_used_together("eos_rule", self.eos_rule, penalised, eos_penalty=self.eos_penalty)
        if (self.kl, self.kl_estimator) == ("loss", "k1"):
            raise ConfigError("algorithm.kl_estimator 'k1' holds nothing back in the loss: choose k2 or k3.")
        for key in ("reward_clip", "kl_target", "kl_horizon"):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise ConfigError(f"algorithm.{key} must be above 0, not {value}.")
        if (self.kl_target is None) != (self.kl_horizon is None):
            raise ConfigError("algorithm.kl_target and algorithm.kl_horizon are used together: set both, or both null.")
        if self.kl_target is not None and self.kl == "loss":
            raise ConfigError("algorithm.kl_target steers the KL in the reward: set algorithm.kl=reward.")

    def rollouts(self, models: Models, prompts: Prompts, k: int, beta: float | Tensor, round: Round) -> Rollouts:
        """k answers to each prompt, scored, with the critic's values and their advantages; writes the round's metrics
        and what is carried to the next."""
        coef = beta if self.kl_target is None else carried.kl_coef(beta, round, models.device)
        eos = self.eos_rule, self.eos_penalty
        samples, ref_logps, scores = common.sample_and_score(models, prompts, k, round, eos, coef)
        if self.kl_target is not None:
            carried.steer_kl_coef(round, self.kl_target, len(scores) / round.runs / self.kl_horizon)
        sequences, mask = samples.sequences, samples.sequences.mask
        values = in_chunks(partial(state_values, models.critic), sequences, models.chunk)
        weight = spread(coef, len(scores)) if self.kl == "reward" else 0.0
        kl = KL[self.kl_estimator](samples.logps - ref_logps)
        rewards = penalised_rewards(self._final(models, samples, scores, round), kl, mask, weight)
        if self.whiten_rewards:
            rewards = whiten_runs(rewards, mask, round.runs, shift_mean=False)
        advantages, returns = self._advantages(rewards, values, mask)
        by_run = (blocks(tokens, round.runs) for tokens in (returns, values, mask))
        round.metrics["val/explained_var"] = explained_variance(*by_run)
        if self.whiten_advantages:
            advantages = whiten_runs(advantages, mask, round.runs)
        return Rollouts(sequences, samples.logps, ref_logps, values, advantages, returns, scores)

    def _advantages(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] advantages, and the returns that the critic is to learn."""
        advantages = gae(rewards, values, mask, self.gamma, self.gae_lambda)
        decoupled = self.gae_lambda_critic is not None
        to_go = gae(rewards, values, mask, self.gamma, self.gae_lambda_critic) if decoupled else advantages
        return advantages, torch.where(mask, to_go + values, 0.0)

    def _final(self, models: Models, samples: Samples, scores: Tensor, round: Round) -> Tensor:
        """[B] what comes with the last token of each answer."""
        if self.scale_scores != "none":
            scores = carried.scaled(scores, round, less_mean=self.scale_scores == "running_mean_std")
        if self.reward_clip is not None:
            round.metrics["objective/scores_clipped"] = round.mean(scores.abs() > self.reward_clip)
            scores = scores.clamp(-self.reward_clip, self.reward_clip)
        if self.eos_rule != "bootstrap":
            return scores
        after = in_chunks(partial(answer_scores, models.critic), samples.sequences, models.chunk)
        return torch.where(ends_with_eos(samples.sequences, models.eos_token_id), scores, self.gamma * after)
