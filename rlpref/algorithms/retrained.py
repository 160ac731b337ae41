"""Iterative DPO under a reward model that is trained along: it ranks the policy's answers, and learns from the truth.

A reward model that is fitted to the reference's answers is wrong where the policy goes (Gao et al. 2022, 2210.10760).
So in each round the reward model, as it is, pairs k answers of the policy, which learns from these pairs; and a judge,
the reward of the run, says which answer of each pair is better, from which the reward model learns before it is asked
again: the iterated online training of Bai et al. 2022 (2204.05862), section 4.5, with a pair loss in PPO's place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import above, choose_prompts, sample_answers
from rlpref.algorithms.objective import check_objective_start, objective_loss, require_no_lone_row, with_reference
from rlpref.algorithms.pair_rules import PAIRINGS, Rule
from rlpref.algorithms.pairing import form_pairs
from rlpref.algorithms.reward_model import score_pairs
from rlpref.binding import ConfigError, choose
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.losses.rewards import bt_soft
from rlpref.models.bundle import Models
from rlpref.ops.blocks import uniform
from rlpref.rewards.learned import LearnedReward
from rlpref.types import Pairs

BY_SCORE = {name: rule for name, rule in PAIRINGS.items() if not rule.compares}


@dataclass
class Retrained:
    """Order and scores of a pair are the reward model's, `soft_label` is the judge's: `drawn` 0 or 1 with its
    probability that the chosen answer is the better one, or that probability itself, `soft`. In the first `warmup`
    rounds, on pairs of any two answers, nothing but the reward model is trained. `head_std`: see ScalarHead."""

    needs_reward: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    objective: Objective
    scale: float
    warmup: int
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    labels: str
    pairing: Rule
    head_std: float | None
    trains: dict[str, float]  # factors on the learning rates of policy and reward_model

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.prompts_per_round * self._rule(index).most(self.k)

    def _rule(self, index: int) -> Rule:
        """The best by a reward model that has learned nothing means nothing, and its scores may all tie."""
        return PAIRINGS["bradley_terry"] if index < self.warmup else self.pairing

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        prompts = choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        answers = sample_answers(models, prompts, self.k, round).sequences
        scores = LearnedReward(models.reward_model, models.chunk)(answers)
        pairs, _ = form_pairs(models, self._rule(round.index), answers, self.k, round, scores)
        round.charge(labels=len(pairs))
        p = models.preference(pairs.chosen, pairs.rejected).to(models.device)
        round.metrics["pairs/agreement"] = round.mean(p)
        judged = p if self.labels == "soft" else (uniform(round.generators, len(p), dtype=p.dtype) < p).to(p)
        require_no_lone_row(self.objective, len(pairs) // round.runs, self.batch_size)
        return with_reference(models, self.objective, replace(pairs, soft_label=judged))

    def loss(self, models: Models, batch: Pairs) -> Loss:
        """The sum of both: neither has a gradient with respect to the other's parameters."""
        policy = objective_loss(models, self.objective, self.scale, batch)
        seen, _ = score_pairs(models.reward_model, batch)
        fit, right = bt_soft(seen), above(seen.chosen, seen.rejected).detach()
        right = batch.soft_label * right + (1 - batch.soft_label) * (1 - right)
        policy.metrics |= {"loss/reward_model": fit.detach(), "reward_model/accuracies": right}
        return Loss(policy.value + fit, policy.weight, policy.metrics)

    def before_step(self, models: Models, batch: Pairs, index: int) -> dict[str, Tensor]:
        """The optimizer moves no policy while the reward model warms up."""
        for parameter in models.policy.parameters() if index < self.warmup else ():
            parameter.grad = None
        return {}

    def check_start(self, models: Models, batch: Pairs) -> None:
        check_objective_start(models, self.objective, batch)


def retrained(
    loss: dict,
    warmup: int,
    rounds: int,
    epochs: int,
    batch_size: int,
    prompts_per_round: int,
    k: int,
    labels: Literal["drawn", "soft"],
    pairing: str,
    head_std: float | None,
    reward_lr_scale: float,
    modifiers: dict | None = None,
) -> Retrained:
    """`loss` is {"name": a pair loss, its hyperparameters}; `modifiers` are those of rlpref.losses.modifiers."""
    if k < 2:
        raise ConfigError(f"algorithm.k is {k}: a pair needs two answers to a prompt.")
    if not 0 <= warmup < rounds:
        raise ConfigError(f"algorithm.warmup must be 0 to {rounds - 1}, not {warmup}.")
    rule = choose(BY_SCORE, pairing, "algorithm.pairing of a reward model's scores")
    objective = make_objective(loss, (PairLogps,), make_modifiers(modifiers or {}))
    if "soft_label" in objective.reads:
        raise ConfigError(f"{objective.reader_of('soft_label')} reads 'soft_label', the judge's word: choose another.")
    trains = {"policy": 1.0, "reward_model": reward_lr_scale}
    counts = warmup, rounds, epochs, batch_size, prompts_per_round, k
    return Retrained(objective, objective.scale, *counts, labels, rule, head_std, trains)
