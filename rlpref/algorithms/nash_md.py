"""Nash-MD: REINFORCE on the probability to beat a mixture of the policy and its reference.

Munos et al. 2023 (2312.00886), section 7: the gradient of E[P(y beats y')] - tau KL(pi || ref), y of the policy and y'
of the geometric mixture policy^(1 - share) ref^share, through y alone. Where it vanishes the policy is the best reply
to the mixture, ref exp(P(y beats mixture)/tau)/Z: at share 0 (self-play) the Nash equilibrium of the regularised game,
and near it where the share is small; the shares 2/(round + 2) of the paper's theorem 1 fall, and end there. tau is the
beta of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import (
    check_others,
    check_rollout_start,
    choose_prompts,
    sample_answers,
    whole_answers,
    whole_returns,
)
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses import RolloutLogps, reduced, reinforce
from rlpref.models.bundle import Models
from rlpref.models.mixture import Mixture
from rlpref.ops.baselines import leave_one_out
from rlpref.ops.blocks import blocks
from rlpref.types import Prompts, Rollouts, Sequences


@dataclass
class NashMD:
    """`share` is the reference's in the mixture; None: 2/(round + 2). `baseline`: `half`, the probability to beat
    oneself, as in the paper, or `leave_one_out`, the mean return of the other k - 1 answers."""

    needs_reward: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    beta: float
    rounds: int
    prompts_per_round: int
    k: int
    share: float | None
    baseline: Literal["half", "leave_one_out"]
    lr_scale: float
    epochs: int = field(default=1, init=False)
    trains: dict[str, float] = field(init=False)
    batch_size: int = field(init=False)

    def __post_init__(self):
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"algorithm.share must be from 0 to 1, not {self.share}.")
        check_others(self.baseline, self.k)
        self.trains = {"policy": self.lr_scale}
        self.batch_size = self.prompts_per_round * self.k  # one update: the gradient is the sampling policy's

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.batch_size

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        prompts = choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        samples = sample_answers(models, prompts, self.k, round)
        answers = samples.sequences
        round.charge(labels=len(answers))
        beats = models.preference(answers, self._rivals(models, prompts, round)).to(samples.logps)
        ref_logps = models.ref_logps(answers)
        gained = whole_returns(beats - 0.5, samples.logps, ref_logps, self.beta)
        loo = self.baseline == "leave_one_out"
        baseline = leave_one_out(gained.view(-1, self.k)).flatten() if loo else torch.zeros_like(gained)
        round.metrics |= {
            "objective/win_rate": round.mean(beats),
            "objective/kl": round.mean((samples.logps - ref_logps).sum(1)),
            "objective/advantages_std": blocks(gained - baseline, round.runs).std(1, correction=0),
            "objective/share": torch.full((round.runs,), self._share(round.index)),
        }
        return whole_answers(samples, ref_logps, beats, gained, gained - baseline)

    def _share(self, index: int) -> float:
        return 2 / (index + 2) if self.share is None else self.share

    def _rivals(self, models: Models, prompts: Prompts, round: Round) -> Sequences:
        """For each answer one of the mixture to the same prompt."""
        share = self._share(round.index)
        mixture = Mixture(models.policy, models.ref, share) if share else models.policy
        return sample_answers(replace(models, policy=mixture), prompts, self.k, round).sequences

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        batch = batch.trimmed()
        logps, mask = models.policy_logps(batch.sequences)[0], batch.sequences.mask
        of_tokens = reinforce(RolloutLogps(logps, batch.logps, batch.advantages, mask))
        return Loss(*reduced(of_tokens, mask, "sequence_sum"), {})

    def check_start(self, models: Models, batch: Rollouts) -> None:
        check_rollout_start(models, batch)
