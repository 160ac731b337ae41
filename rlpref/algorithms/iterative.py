"""Any pair loss on the policy's own answers, in rounds: sample k, score, label pairs, train.

With `reference=initial` every round aims at the optimum of the same beta; with `previous` each round starts
from where the last one ended, and T rounds aim at beta / T (population limit). Xiong et al. 2023 (2312.11456);
Guo et al. 2024 (2402.04792)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import choose_prompts, sample_answers, score
from rlpref.algorithms.objective import check_objective_start, objective_loss, require_no_lone_row, with_reference
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.models.bundle import Models
from rlpref.ops.blocks import Unstackable, uniform
from rlpref.types import Pairs, Samples, cat_blocks


@dataclass
class Iterative:
    """Rounds of fresh pairs."""

    needs_reward: ClassVar[bool] = True
    objective: Objective
    scale: float
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    pairing: Callable[[Tensor, list[torch.Generator]], tuple[Tensor, Tensor, Tensor]]
    data: str
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        per_prompt = 1 if self.pairing is best_worst else self.k // 2
        rounds = index + 1 if self.data == "aggregated" else 1
        return self.prompts_per_round * per_prompt * rounds

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Pairs:
        prompts = choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        samples = sample_answers(models, prompts, self.k, round)
        scores = score(models, samples.sequences, round).view(len(prompts), self.k)
        round.metrics |= {
            "objective/scores": round.mean(scores.mean(1)),
            "objective/scores_best": round.mean(scores.amax(1)),
        }
        pairs = with_reference(models, self.objective, self._pairs(samples, scores, round))
        require_no_lone_row(self.objective, len(pairs) // round.runs, self.batch_size)
        if self.data == "fresh" or round.previous is None:
            return pairs
        earlier = round.previous
        both = [with_reference(models, self.objective, earlier) if models.rule.moves else earlier, pairs]
        return cat_blocks(both, round.runs)

    def _pairs(self, samples: Samples, scores: Tensor, round: Round) -> Pairs:
        prompt, chosen, rejected = self.pairing(scores, round.generators)
        if len(prompt) == 0:
            raise ValueError("no pair can be formed: all answers to every prompt of the round have equal scores")
        kept = torch.bincount(prompt // (len(scores) // round.runs), minlength=round.runs)
        if (kept != kept[0]).any():
            raise Unstackable(f"pairing dropped ties and left the runs {kept.tolist()} pairs")
        per_prompt = 1 if self.pairing is best_worst else self.k // 2
        round.metrics["pairs/ties_dropped"] = 1 - kept / (len(scores) // round.runs * per_prompt)
        first, second = prompt * self.k + chosen, prompt * self.k + rejected
        flat = scores.flatten()
        return Pairs(
            chosen=samples.sequences[first],
            rejected=samples.sequences[second],
            chosen_score=flat[first],
            rejected_score=flat[second],
        )

    def loss(self, models: Models, batch: Pairs) -> Loss:
        return objective_loss(models, self.objective, self.scale, batch)

    def check_start(self, models: Models, batch: Pairs) -> None:
        check_objective_start(models, self.objective, batch)


def best_worst(scores: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
    """One pair per prompt: highest against lowest score [prompts, k]; prompts whose answers all tie are dropped.
    Returns row, chosen column, rejected column."""
    rows = (scores.amax(1) > scores.amin(1)).nonzero()[:, 0]
    return rows, scores.argmax(1)[rows], scores.argmin(1)[rows]


def bradley_terry(scores: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
    """k // 2 disjoint pairs per prompt; the first wins with probability sigmoid(score difference)."""
    prompts, k = scores.shape
    first, second = torch.arange(0, k - 1, 2), torch.arange(1, k, 2)
    rows = torch.arange(prompts, device=scores.device).repeat_interleave(len(first))
    first, second = (columns.to(scores.device).repeat(prompts) for columns in (first, second))
    difference = scores[rows, first] - scores[rows, second]
    wins = uniform(generators, len(difference), dtype=scores.dtype) < difference.sigmoid()
    return rows, torch.where(wins, first, second), torch.where(wins, second, first)


PAIRINGS = {"best_worst": best_worst, "bradley_terry": bradley_terry}


def iterative(
    loss: dict,
    rounds: int,
    epochs: int,
    batch_size: int,
    prompts_per_round: int,
    k: int,
    pairing: Literal["best_worst", "bradley_terry"],
    data: Literal["fresh", "aggregated"],
    modifiers: dict | None = None,
) -> Iterative:
    """`loss` is {"name": a pair loss, its hyperparameters}; `modifiers` are those of rlpref.losses.modifiers."""
    if k < 2:
        raise ConfigError(f"algorithm.k is {k}: a pair needs two answers to a prompt.")
    objective = make_objective(loss, (PairLogps,), make_modifiers(modifiers or {}))
    if "soft_label" in objective.reads:
        raise ConfigError(f"loss '{objective.entry.name}' reads soft labels, which scored answers do not have.")
    counts = rounds, epochs, batch_size, prompts_per_round, k
    return Iterative(objective, objective.scale, *counts, PAIRINGS[pairing], data)
