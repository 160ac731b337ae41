"""The evaluator's exact values, on models whose answers can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rlpref.evaluation.displacement import masses
from rlpref.models.bundle import Models
from rlpref.testbed import exact, measures, optima
from rlpref.testbed.coverage import TiedPairs, coverage, pair_distribution
from rlpref.testbed.duels import TestbedPreference, played
from rlpref.testbed.own import OwnRegret
from rlpref.testbed.task import Testbed, conditionals

FEW = 8  # answers: a bandit with at most so many logs the probability of each


@dataclass
class ExactEvaluator:
    """Holds the enumerated reference of a run; calling it enumerates the policy."""

    task: Testbed
    ref: Tensor  # conditionals of the initial reference
    beta: float | None  # None: the run optimises no KL-regularised objective, so it has no regret
    own_regret: OwnRegret | None = None  # None: the loss aims at the KL-regularised optimum, or at nothing known
    game: Callable[[Tensor], dict[str, float]] | None = None  # None: training asks for no preference

    def __call__(
        self, models: Models, drawn_from: Tensor | TiedPairs | None = None, judged: Tensor | None = None
    ) -> dict[str, float]:
        """Mean over prompts of reward, cost where the task has one, KL to the initial reference, regret, gap to the
        frontier, ...; how well the distribution `drawn_from` of the data's pairs covers the policy as it is now, and
        how probable the answers are that these pairs chose or rejected (`judged`: rlpref.evaluation.displacement). Of a
        bandit, one prompt with at most FEW answers of one token, the probability of each answer.

        What is not defined is left out: efficiency and credit of a policy that has not moved, regret and credit
        without a beta, coefficients of coverage that are infinite because the policy has left the support. So is the
        own regret where it is the regret: see rlpref.testbed.own.
        """
        task, rewards = self.task, self.task.rewards
        policy = self.policy(models)
        reward, ref_reward = float(exact.expectation(task, policy, rewards).mean()), self._ref_reward
        kl = float(exact.sequence_kl(task, policy, self.ref).mean())
        attainable = optima.frontier_reward(task, self.ref, rewards, kl)
        row = {
            "exact/reward": reward,
            "exact/kl": kl,
            "exact/reverse_kl": float(exact.sequence_kl(task, self.ref, policy).mean()),
            "exact/gap": attainable - reward,
            "exact/efficiency": measures.kl_efficiency(reward, ref_reward, attainable, kl),
            "exact/entropy": float(exact.entropy(task, policy).mean()),
            "exact/length": float(exact.expectation(task, policy, exact.lengths(task)).mean()),
        }
        if policy.numel() <= FEW and task.tree.prompts == task.tree.horizon == 1:
            row |= {f"exact/p_{i}": p for i, p in enumerate(policy.flatten().exp().tolist())}
        if task.costs is not None:
            row["exact/cost"] = float(exact.expectation(task, policy, task.costs).mean())
        if drawn_from is not None:
            covered = coverage(task, exact.answer_logps(task, policy), drawn_from)
            row |= {f"exact/coverage_{name}": value for name, value in covered.items() if math.isfinite(value)}
        if judged is not None:
            row |= {f"exact/{name}": mass for name, mass in masses(task, policy, judged).items()}
        if self.own_regret:
            row["exact/own_regret"] = self.own_regret(policy)
        if self.game:
            row |= {f"exact/{name}": value for name, value in self.game(policy).items()}
        if self.beta is not None:
            row["exact/regret"] = float(self._optimum.v[:, 0].mean()) - (reward - self.beta * kl)
            advantage = self._optimum.advantages
            for name, occupancy in (("credit_corr", policy), ("credit_corr_ref", self.ref)):
                row[f"exact/{name}"] = measures.credit_correlation(task, policy, self.ref, advantage, occupancy)
        return {name: value for name, value in row.items() if value is not None}

    @cached_property
    def _optimum(self) -> optima.Optimum:
        return optima.optimum(self.task, self.ref, self.task.rewards, self.beta)

    @cached_property
    def _ref_reward(self) -> float:
        return float(exact.expectation(self.task, self.ref, self.task.rewards).mean())

    def policy(self, models: Models) -> Tensor:
        """Conditionals of the policy as it is now, fp64 on the CPU: what `rlpref.testbed.measures` takes apart by
        position, prompt or support."""
        with torch.no_grad():
            return conditionals(self.task, models.policy, models.temperature).cpu()

    def coverage(self, pairs_from: str, options: Mapping[str, Any]) -> dict[str, float | str]:
        """How well the distribution of the data's pairs covers the optimum of the objective at the run's beta: see
        rlpref.testbed.coverage. JSON knows no infinity, so that is spelt 'infinite'."""
        best = exact.answer_logps(self.task, self._optimum.policy)
        found = coverage(self.task, best, pair_distribution(pairs_from, options)(self.task, self.ref))
        return {name: value if math.isfinite(value) else "infinite" for name, value in found.items()}

    def frontier(self) -> dict[str, list[float]]:
        return optima.frontier(self.task, self.ref, self.task.rewards)


def make_exact(
    task: Testbed,
    models: Models,
    beta: float | None,
    own: Callable[[Testbed, Tensor], OwnRegret | None] = lambda task, ref: None,
) -> ExactEvaluator:
    """`own` makes the own regret of the run's algorithm from task and enumerated reference. Where training asks for the
    testbed's preference, the policy is measured as a player of its game."""
    with models.initial.active() as initial:
        ref = conditionals(task, initial, models.temperature).cpu()
    game = None
    if isinstance(models.preference, TestbedPreference):
        game = partial(played, task, ref=ref, preference=models.preference.preference, tau=beta)
    return ExactEvaluator(task, ref, beta, own(task, ref), game)
