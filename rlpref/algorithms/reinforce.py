"""REINFORCE on answers: score times the gradient of log policy, with the KL in the score and a choice of baselines.

Williams 1992; for language models Ahmadian et al. 2024 (2402.14740). The return of an answer is its score less
beta log policy/ref of the whole answer, the same for all its tokens. At the optimum that is beta log Z whatever the
answer, so the variance of the gradient vanishes there; what is still to come after each token varies with the prefix.
A round is one update on fresh answers, and the loss is the mean over answers of the sum over tokens: unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlpref.algorithms import carried, common
from rlpref.algorithms.algorithm import Loss, Round
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses import reduced, reinforce
from rlpref.losses.inputs import RolloutLogps
from rlpref.models.bundle import Models, in_chunks
from rlpref.ops.baselines import leave_one_out
from rlpref.ops.blocks import blocks, spread
from rlpref.types import Prompts, Rollouts


@dataclass
class Reinforce:
    """`baseline`: `none`, `moving` (the running mean of all returns of the rounds before, by `baseline_rate`; 0 at
    first), `leave_one_out` (the mean return of the other k - 1 answers to the prompt), or `greedy` (the return of the
    answer of the likeliest token each time: ReMax, Li et al. 2023, 2310.10505). `eos_rule` as in PPO."""

    needs_reward: ClassVar[bool] = True
    beta: float
    rounds: int
    prompts_per_round: int
    k: int
    baseline: Literal["none", "moving", "leave_one_out", "greedy"]
    baseline_rate: float | None
    eos_rule: Literal["replace", "subtract", "none"]
    eos_penalty: float | None
    lr_scale: float
    epochs: int = field(default=1, init=False)

    def __post_init__(self):
        cuts, moving = self.eos_rule != "none", self.baseline == "moving"
        common.check_used_together("eos_rule", self.eos_rule, cuts, eos_penalty=self.eos_penalty)
        common.check_used_together("baseline", self.baseline, moving, baseline_rate=self.baseline_rate)
        if moving and not 0 < self.baseline_rate <= 1:
            raise ConfigError(f"algorithm.baseline_rate must be above 0 and at most 1, not {self.baseline_rate}.")
        common.check_others(self.baseline, self.k)

    @property
    def trains(self) -> dict[str, float]:
        return {"policy": self.lr_scale}

    @property
    def batch_size(self) -> int:
        """All answers of a round: a second update on them would no longer be on-policy."""
        return self.prompts_per_round * self.k

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.batch_size

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        prompts = common.choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        eos = self.eos_rule, self.eos_penalty
        samples, ref_logps, scores = common.sample_and_score(models, prompts, self.k, round, eos, self.beta)
        returns = common.whole_returns(scores, samples.logps, ref_logps, self.beta)
        greedy = self.baseline == "greedy"
        baselines = self._greedy(models, prompts, round) if greedy else self._baselines(returns, round)
        round.metrics["objective/advantages_std"] = blocks(returns - baselines, round.runs).std(1, correction=0)
        return common.whole_answers(samples, ref_logps, scores, returns, returns - baselines)

    def _greedy(self, models: Models, prompts: Prompts, round: Round) -> Tensor:
        """[B] for each answer the return of the greedy one to its prompt."""
        answers = common.sample_answers(models, prompts, 1, round, greedy=True).sequences
        _, _, scores = common.score_by_rule(models, answers, round, (self.eos_rule, self.eos_penalty))
        logps = in_chunks(lambda part: models.policy_logps(part)[0], answers, models.chunk)
        return common.whole_returns(scores, logps, models.ref_logps(answers), self.beta).repeat_interleave(self.k)

    def _baselines(self, returns: Tensor, round: Round) -> Tensor:
        """[B] what is taken off each return; nothing of it depends on the answer itself."""
        if self.baseline == "leave_one_out":
            return leave_one_out(returns.view(-1, self.k)).flatten()
        if self.baseline == "moving":
            return spread(carried.baseline(returns, round, self.baseline_rate), len(returns))
        return torch.zeros_like(returns)

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        batch = batch.trimmed()
        logps, _ = models.policy_logps(batch.sequences)
        mask = batch.sequences.mask
        per_token = reinforce(RolloutLogps(logps, batch.logps, batch.advantages, mask))
        return Loss(*reduced(per_token, mask, "sequence_sum"), {})

    def check_start(self, models: Models, batch: Rollouts) -> None:
        common.check_rollout_start(models, batch)
