"""PPO on answers: KL of each token, GAE with a critic, clipped policy and value losses.

Schulman et al. 2017 (1707.06347); for language models Ziegler et al. 2019 (1909.08593), Ouyang et al. 2022
(2203.02155). The reward of token t is -beta log policy/ref; the last token also gets the score of the answer. What
projects call PPO differs in every option here: a run's card has them all.
Whitening, the mean over the tokens of a minibatch, and lambda below 1 with an inexact critic each bias the gradient:
`testbed.estimators` says why and `experiments/README.md` by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlpref.algorithms import common
from rlpref.algorithms.algorithm import Loss, Round
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses import make_loss, reduced, value_clip
from rlpref.losses.bounds import counted
from rlpref.losses.inputs import RolloutLogps, per_row
from rlpref.models.bundle import Models, in_chunks
from rlpref.models.heads import state_values
from rlpref.ops.blocks import blocks, spread
from rlpref.ops.gae import explained_variance, gae, penalised_rewards
from rlpref.ops.kl import k1, k2, k3
from rlpref.ops.masked import whiten_runs
from rlpref.types import Rollouts

KL = {"k1": k1, "k2": k2, "k3": k3}


@dataclass
class PPO:
    """- `kl`: beta times `kl_estimator` of log policy/ref is taken off each token's `reward`, or added to its `loss`.
      There the gradient of k1 has mean 0, that of k2 is the KL's, that of k3 is not (rlpref.ops.kl)
    - `gae_lambda_critic`: of the critic's targets; null: as for the advantages (VAPO, Yue et al. 2025, 2504.05118)
    - `reward_clip`: scores are held between +- this; `whiten_rewards`: rewards over their standard deviation in a round
    - `dual_clip`: c of rlpref.losses.rollouts.dual_clip; null: none. `entropy_coef`: times the entropy, off the loss
    - `eos_rule`: what becomes of the score of an answer that was cut before its EOS: `none` keeps it, `subtract` takes
      `eos_penalty` off, `replace` puts -eos_penalty in its place
    """

    needs_reward: ClassVar[bool] = True
    beta: float
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    kl: Literal["reward", "loss"]
    kl_estimator: Literal["k1", "k2", "k3"]
    gamma: float
    gae_lambda: float
    gae_lambda_critic: float | None
    reward_clip: float | None
    whiten_rewards: bool
    cliprange: float
    dual_clip: float | None
    entropy_coef: float
    cliprange_value: float
    vf_coef: float
    whiten_advantages: bool
    eos_rule: Literal["replace", "subtract", "none"]
    eos_penalty: float | None
    lr_scale: float
    critic_lr_scale: float

    def __post_init__(self):
        common.check_used_together(
            "ppo", "eos_rule", self.eos_rule, self.eos_rule != "none", eos_penalty=self.eos_penalty
        )
        if (self.kl, self.kl_estimator) == ("loss", "k1"):
            raise ConfigError("algorithm.kl_estimator 'k1' holds nothing back in the loss: choose k2 or k3.")
        if self.reward_clip is not None and not self.reward_clip > 0:
            raise ConfigError(f"algorithm.reward_clip must be above 0, not {self.reward_clip}.")
        dual = {"name": "ppo_clip"} if self.dual_clip is None else {"name": "dual_clip", "dual_clip": self.dual_clip}
        self.surrogate = make_loss(cliprange=self.cliprange, **dual)

    @property
    def trains(self) -> dict[str, float]:
        return {"policy": self.lr_scale, "critic": self.critic_lr_scale}

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.prompts_per_round * self.k

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        prompts = common.choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        eos = self.eos_rule, self.eos_penalty
        samples, ref_logps, scores = common.sample_and_score(models, prompts, self.k, round, eos, self.beta)
        sequences, mask = samples.sequences, samples.sequences.mask
        values = in_chunks(lambda part: state_values(models.critic, part), sequences, models.chunk)
        kl = KL[self.kl_estimator](samples.logps - ref_logps)
        beta = spread(self.beta, len(scores)) if self.kl == "reward" else 0.0
        rewards = penalised_rewards(self._held(scores, round), kl, mask, beta)
        if self.whiten_rewards:
            rewards = whiten_runs(rewards, mask, round.runs, shift_mean=False)
        advantages = gae(rewards, values, mask, self.gamma, self.gae_lambda)
        decoupled = self.gae_lambda_critic is not None
        to_go = gae(rewards, values, mask, self.gamma, self.gae_lambda_critic) if decoupled else advantages
        returns = torch.where(mask, to_go + values, 0.0)
        by_run = (blocks(tokens, round.runs) for tokens in (returns, values, mask))
        round.metrics["val/explained_var"] = explained_variance(*by_run)
        if self.whiten_advantages:
            advantages = whiten_runs(advantages, mask, round.runs)
        return Rollouts(sequences, samples.logps, ref_logps, values, advantages, returns, scores)

    def _held(self, scores: Tensor, round: Round) -> Tensor:
        """[B] scores within `reward_clip`; how many were not is logged."""
        if self.reward_clip is None:
            return scores
        round.metrics["objective/scores_clipped"] = round.mean(scores.abs() > self.reward_clip)
        return scores.clamp(-self.reward_clip, self.reward_clip)

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        batch = batch.trimmed()
        mask = batch.sequences.mask
        logps, entropy = models.policy_logps(batch.sequences, entropy=True)
        values = state_values(models.critic, batch.sequences)
        with counted() as held_back:
            policy = self.surrogate(RolloutLogps(logps, batch.logps, batch.advantages, mask))
        value = value_clip(values, batch.values, batch.returns, self.cliprange_value)
        ratio = (logps - batch.logps).detach().exp()
        more = {
            "loss/policy": policy.detach(),
            "loss/value": value.detach(),
            "policy/clipfrac": ((ratio - 1).abs() > self.cliprange).to(ratio),
        }
        metrics = common.ratio_metrics(logps, batch.logps, entropy, held_back, mask, **more)
        total = policy + self.vf_coef * value
        if self.entropy_coef:  # else nothing is differentiated through it
            total = total - self.entropy_coef * entropy
        if self.kl == "loss":
            beta = per_row(spread(self.beta, len(batch)))
            total = total + beta * KL[self.kl_estimator](torch.where(mask, logps - batch.ref_logps, 0.0))
        return Loss(*reduced(total, mask, "token_mean"), metrics)

    def check_start(self, models: Models, batch: Rollouts) -> None:
        common.check_rollout_start(models, batch)
