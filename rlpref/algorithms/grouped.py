"""Policy gradients without a critic: k answers to each prompt, each measured by its group, under any registered loss
of rollouts.

GRPO (Shao et al. 2024, 2402.03300), Dr. GRPO (Liu et al. 2025, 2503.20783), DAPO (Yu et al. 2025, 2503.14476), GSPO
(Zheng et al. 2025, 2507.18071), REINFORCE++ (Hu et al. 2025, 2501.03262) and others differ in `loss`, `advantages` and
`kl`. With the KL in the return all advantages vanish at the optimum of E[score] - beta KL, whatever they are divided
by. With the KL in the loss, scores over the spread of their group are weighed against a KL that is not, and a mean over
an answer's tokens against its sum: GRPO ends elsewhere (`experiments/README.md` says where).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rlpref.algorithms import common
from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.resampling import sample_mixed, uniform
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses import RolloutLogps, make_objective, reduced
from rlpref.losses.bounds import counted
from rlpref.losses.modifiers import Objective
from rlpref.models.bundle import Models
from rlpref.ops.baselines import leave_one_out, over_spread
from rlpref.ops.blocks import blocks
from rlpref.types import Rollouts


@dataclass
class Grouped:
    """`advantages` from the return of an answer: less the `mean` of its group; the same over the group's standard
    deviation (`std`); less the mean of the other k - 1 (`leave_one_out`); less the mean of the whole round over its
    standard deviation (`batch_std`). `kl` says where the KL to the reference stands: in the `reward`, or in the `loss`,
    which must have it. `dynamic_sampling`: how often groups of one score are drawn again. `eos_rule` as in PPO."""

    needs_reward: ClassVar[bool] = True
    objective: Objective
    beta: float
    kl: str
    advantages: str
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    eos: tuple[str, float | None]
    lr_scale: float
    dynamic_sampling: int | None

    @property
    def trains(self) -> dict[str, float]:
        return {"policy": self.lr_scale}

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.prompts_per_round * self.k

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        asked = self.prompts_per_round, self.k, round, self.eos, self.beta
        samples, ref_logps, scores = sample_mixed(models, data.prompts, *asked, self.dynamic_sampling or 0)
        returns = common.whole_returns(scores, samples.logps, ref_logps, self.beta) if self.kl == "reward" else scores
        groups = returns.view(-1, self.k)
        advantages = self._advantages(groups, round.runs).flatten()
        round.metrics["objective/advantages_std"] = blocks(advantages, round.runs).std(1, correction=0)
        round.metrics["groups/uniform"] = round.mean(uniform(groups))
        return common.whole_answers(samples, ref_logps, scores, returns, advantages)

    def _advantages(self, groups: Tensor, runs: int) -> Tensor:
        """[prompts, k] from returns [prompts, k]."""
        if self.advantages == "leave_one_out":
            return groups - leave_one_out(groups)
        if self.advantages == "batch_std":
            return over_spread(blocks(groups.flatten(), runs)).view_as(groups)
        return over_spread(groups) if self.advantages == "std" else groups - groups.mean(1, keepdim=True)

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        batch = batch.trimmed()
        mask = batch.sequences.mask
        logps, entropy = models.policy_logps(batch.sequences, entropy=True)
        with counted() as held_back:
            per_token = self.objective(RolloutLogps(logps, batch.logps, batch.advantages, mask, batch.ref_logps))
        metrics = common.ratio_metrics(logps, batch.logps, entropy, held_back, mask)
        return Loss(*reduced(per_token, mask, self.objective.entry.reduce), metrics)

    def check_start(self, models: Models, batch: Rollouts) -> None:
        common.check_rollout_start(models, batch)


def grouped(
    loss: dict,
    beta: float,
    kl: Literal["reward", "loss"],
    advantages: Literal["mean", "std", "leave_one_out", "batch_std"],
    rounds: int,
    epochs: int,
    batch_size: int,
    prompts_per_round: int,
    k: int,
    eos_rule: Literal["replace", "subtract", "none"],
    eos_penalty: float | None,
    lr_scale: float,
    dynamic_sampling: int | None,
) -> Grouped:
    """`loss` is {"name": a loss of rollouts, its hyperparameters}."""
    objective = make_objective(loss, (RolloutLogps,))
    common.check_used_together("eos_rule", eos_rule, eos_rule != "none", eos_penalty=eos_penalty)
    if k < 2:
        raise ConfigError(f"algorithm.k is {k}: an answer is measured by the others to its prompt, so give it two.")
    name, key = objective.entry.name, objective.entry.regularisation or "kl_coef"
    if kl == "reward" and objective.reads_reference:
        raise ConfigError(f"loss '{name}' has a KL to the reference of its own: set algorithm.kl=loss.")
    if kl == "loss" and not objective.reads_reference:
        raise ConfigError(f"loss '{name}' has no KL to the reference: set algorithm.kl=reward.")
    if kl == "loss" and objective.loss.keywords.get(key) != beta:
        raise ConfigError(f"algorithm.loss.{key} is the weight of the KL and must be beta, {beta}: set beta alone.")
    counts = rounds, epochs, batch_size, prompts_per_round, k
    return Grouped(objective, beta, kl, advantages, *counts, (eos_rule, eos_penalty), lr_scale, dynamic_sampling)
