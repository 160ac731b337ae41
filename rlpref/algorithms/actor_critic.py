"""A policy and a critic of its states on the same answers: what PPO, A2C and TRPO are cases of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlpref.algorithms import common
from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.natural import NaturalStep
from rlpref.algorithms.shaping import KL, Shaping
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses import make_loss, reduced, value_clip
from rlpref.losses.bounds import counted
from rlpref.losses.inputs import RolloutLogps, per_row
from rlpref.models.bundle import Models
from rlpref.models.heads import state_values
from rlpref.ops.blocks import Unstackable, spread
from rlpref.types import Rollouts


@dataclass
class ActorCritic:
    """`shaping` makes advantages of scores. None is off: without `cliprange` a ratio counts whatever it is, without
    `cliprange_value` so does a value; `dual_clip` is c of rlpref.losses.rollouts.dual_clip. `entropy_coef` times the
    entropy comes off the loss. `critic`, `critic_init`: see rlpref.build_rewards; in the first `critic_warmup` rounds
    nothing but the critic is trained. `natural`: the policy takes this step in the optimizer's place."""

    needs_reward: ClassVar[bool] = True
    beta: float
    shaping: Shaping
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    vf_coef: float
    lr_scale: float
    critic_lr_scale: float
    critic: str
    critic_init: str
    critic_warmup: int = 0
    cliprange: float | None = None
    dual_clip: float | None = None
    cliprange_value: float | None = None
    entropy_coef: float = 0.0
    natural: NaturalStep | None = None

    def __post_init__(self):
        if self.critic == "shared" and self.critic_init == "reward_model":
            raise ConfigError("algorithm.critic 'shared' reads the policy's decoder: critic_init=reward_model is none.")
        if not 0 <= self.critic_warmup < self.rounds:
            raise ConfigError(f"algorithm.critic_warmup must be 0 to {self.rounds - 1}, not {self.critic_warmup}.")
        if self.cliprange is None and self.dual_clip is not None:
            raise ConfigError("algorithm.dual_clip bounds what algorithm.cliprange leaves: set both, or it to null.")
        name = "cpi" if self.cliprange is None else "ppo_clip" if self.dual_clip is None else "dual_clip"
        bounds = {"cliprange": self.cliprange, "dual_clip": self.dual_clip}
        self.surrogate = make_loss(name, **{key: value for key, value in bounds.items() if value is not None})

    @property
    def trains(self) -> dict[str, float]:
        return {"policy": 0.0 if self.natural else self.lr_scale, "critic": self.critic_lr_scale}

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.prompts_per_round * self.k

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        if self.natural and round.runs > 1:
            raise Unstackable("the line search of a natural gradient is one run's own")
        prompts = common.choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        return self.shaping.rollouts(models, prompts, self.k, self.beta, round)

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        batch = batch.trimmed()
        mask = batch.sequences.mask
        logps, entropy = models.policy_logps(batch.sequences, entropy=True)
        values = state_values(models.critic, batch.sequences)
        with counted() as held_back:
            policy = self.surrogate(RolloutLogps(logps, batch.logps, batch.advantages, mask))
        value = value_clip(values, batch.values, batch.returns, self.cliprange_value)
        more = {"loss/policy": policy.detach(), "loss/value": value.detach()}
        if self.cliprange is not None:
            ratio = (logps - batch.logps).detach().exp()
            more["policy/clipfrac"] = ((ratio - 1).abs() > self.cliprange).to(ratio)
        metrics = common.ratio_metrics(logps, batch.logps, entropy, held_back, mask, **more)
        total = policy + self.vf_coef * value
        if self.entropy_coef:  # else nothing is differentiated through it
            total = total - self.entropy_coef * entropy
        if self.shaping.kl == "loss":
            beta = per_row(spread(self.beta, len(batch)))
            total = total + beta * KL[self.shaping.kl_estimator](torch.where(mask, logps - batch.ref_logps, 0.0))
        return Loss(*reduced(total, mask, "token_mean"), metrics)

    def before_step(self, models: Models, batch: Rollouts, index: int) -> dict[str, torch.Tensor]:
        """The optimizer moves no policy while the critic warms up, nor one that takes a step of its own here."""
        found = {}
        if self.natural and index >= self.critic_warmup:
            found = self.natural(models, batch, lambda: self.loss(models, batch))
        if self.natural or index < self.critic_warmup:
            for parameter in models.policy.parameters():
                parameter.grad = None
        return found

    def check_start(self, models: Models, batch: Rollouts) -> None:
        common.check_rollout_start(models, batch)


def one_update(rounds: int, prompts_per_round: int, k: int) -> tuple[int, int, int, int, int]:
    """The counts of an ActorCritic, rounds to k, whose rounds are one minibatch seen once."""
    return rounds, 1, prompts_per_round * k, prompts_per_round, k
