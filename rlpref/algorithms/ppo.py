"""PPO on answers: per-token KL in the reward, GAE with a critic, clipped policy and value losses.

Schulman et al. 2017 (1707.06347); for language models Ziegler et al. 2019 (1909.08593), Ouyang et al. 2022
(2203.02155). The reward of token t is -beta log policy/ref; the last token also gets the score of the answer.
Whitening, the mean over the tokens of a minibatch, and lambda below 1 with an inexact critic each bias the gradient:
`testbed.estimators` says why and `experiments/README.md` by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import check_rollout_start, check_used_together, sample_and_score
from rlpref.data.preferences import PreferenceData
from rlpref.losses import ppo_clip, reduced, value_clip
from rlpref.losses.bounds import counted
from rlpref.losses.inputs import RolloutLogps
from rlpref.models.bundle import Models, in_chunks
from rlpref.models.heads import state_values
from rlpref.ops.blocks import blocks, spread
from rlpref.ops.gae import gae, penalised_rewards
from rlpref.ops.masked import masked_mean, masked_variance, masked_whiten
from rlpref.types import Rollouts


@dataclass
class PPO:
    """`eos_rule` says what becomes of the score of an answer that was cut before its EOS: `none` keeps it,
    `subtract` takes `eos_penalty` off, `replace` puts -eos_penalty in its place."""

    needs_reward: ClassVar[bool] = True
    beta: float
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    gamma: float
    gae_lambda: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    whiten_advantages: bool
    eos_rule: Literal["replace", "subtract", "none"]
    eos_penalty: float | None
    lr_scale: float
    critic_lr_scale: float

    def __post_init__(self):
        check_used_together("ppo", "eos_rule", self.eos_rule, self.eos_rule != "none", eos_penalty=self.eos_penalty)

    @property
    def trains(self) -> dict[str, float]:
        return {"policy": self.lr_scale, "critic": self.critic_lr_scale}

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.prompts_per_round * self.k

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        size, eos = (self.prompts_per_round, self.k), (self.eos_rule, self.eos_penalty)
        samples, ref_logps, scores = sample_and_score(models, data, round, size, eos, self.beta)
        sequences, mask = samples.sequences, samples.sequences.mask
        values = in_chunks(lambda part: state_values(models.critic, part), sequences, models.chunk)
        beta = spread(self.beta, len(scores))
        rewards = penalised_rewards(scores, samples.logps - ref_logps, mask, beta)
        advantages = gae(rewards, values, mask, self.gamma, self.gae_lambda)
        returns = torch.where(mask, advantages + values, 0.0)
        by_run = (blocks(tokens, round.runs) for tokens in (returns, values, mask))
        round.metrics["val/explained_var"] = explained_variance(*by_run)
        if self.whiten_advantages:
            advantages = masked_whiten(blocks(advantages, round.runs), blocks(mask, round.runs)).flatten(0, 1)
        return Rollouts(sequences, samples.logps, ref_logps, values, advantages, returns, scores)

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        batch = batch.trimmed()
        mask = batch.sequences.mask
        logps, entropy = models.policy_logps(batch.sequences, entropy=True)
        values = state_values(models.critic, batch.sequences)
        with counted() as held_back:
            policy = ppo_clip(RolloutLogps(logps, batch.logps, batch.advantages, mask), self.cliprange)
        value = value_clip(values, batch.values, batch.returns, self.cliprange_value)
        log_ratio = (logps - batch.logps).detach()
        ratio = log_ratio.exp()
        tokens = {
            "loss/policy": policy.detach(),
            "loss/value": value.detach(),
            "objective/entropy": entropy.detach(),
            "policy/clipfrac": ((ratio - 1).abs() > self.cliprange).to(ratio),
            "policy/approxkl": 0.5 * log_ratio**2,
            "policy/ratio": ratio,
            "loss/clamped": torch.stack(held_back).any(0).to(ratio),
        }
        metrics = {name: masked_mean(per_token, mask, dim=1) for name, per_token in tokens.items()}
        return Loss(*reduced(policy + self.vf_coef * value, mask, "token_mean"), metrics)

    def check_start(self, models: Models, batch: Rollouts) -> None:
        check_rollout_start(models, batch)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """[..] 1 - Var(returns - values) / Var(returns) over the masked tokens of each batch [.., B, T]: 1 for a perfect
    critic, 0 for a constant one, and worse below."""
    return 1 - masked_variance(returns - values, mask) / masked_variance(returns, mask).clamp(min=1e-12)
