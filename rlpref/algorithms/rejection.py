"""Rejection sampling: draw k answers to each prompt, keep the good ones, imitate them, and again from the new policy.

RAFT (Dong et al. 2023, 2304.06767); Llama 2 (Touvron et al. 2023, 2307.09288, section 3.2.3), which keeps the best
answer of each prompt, from all stages so far; ReST (Gulcehre et al. 2023, 2308.08998), which keeps what is above a
threshold that grows. Fitted to the best of k of the last round alone, round K is best-of-k^K of the first policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import check_used_together, choose_prompts, sample_answers, score
from rlpref.algorithms.selection import ONE_EACH, one_of_each
from rlpref.algorithms.sft import check_imitation_start, imitation_loss
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.models.bundle import Models
from rlpref.ops.blocks import Unstackable, blocks
from rlpref.types import Answers, cat_blocks


@dataclass
class Rejection:
    """`keep`: of each prompt the answer of the highest score (`max`), the lower `median`, or any one (`random`); or of
    all answers of the round the best `top` share, or those above `threshold` + `growth` * round. `stages`: imitated is
    what the `last` round kept, or what `all` rounds so far did. `temperature`: answers are drawn from softmax(logits /
    temperature); null: from the policy. Another one draws off-policy, which imitation may: round 1 is then fitted to
    the best of k of the tempered policy."""

    needs_reward: ClassVar[bool] = True
    rounds: int
    epochs: int
    batch_size: int
    prompts_per_round: int
    k: int
    keep: str
    stages: str
    top: float | None
    threshold: float | None
    growth: float | None
    temperature: float | None
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        one_each, share = self.keep in ONE_EACH, 1.0 if self.top is None else self.top
        kept = self.prompts_per_round if one_each else max(1, int(share * self.prompts_per_round * self.k))
        return kept * (index + 1 if self.stages == "all" else 1)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Answers:
        prompts = choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        drawing = models if self.temperature is None else replace(models, temperature=self.temperature)
        samples = sample_answers(drawing, prompts, self.k, round)
        scores = score(models, samples.sequences, round)
        kept = self._kept(scores, round)
        round.metrics |= {
            "objective/scores": round.mean(scores),
            "objective/scores_kept": round.mean(scores[kept]),
            "answers/kept": round.mean(torch.zeros_like(scores).index_fill(0, kept, 1.0)),
        }
        desirable = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
        answers = Answers(samples.sequences[kept], desirable, score=scores[kept])
        if self.stages == "all" and round.previous is not None:
            answers = cat_blocks([round.previous, answers], round.runs)
        return answers

    def _kept(self, scores: Tensor, round: Round) -> Tensor:
        """Rows of the answers that are kept, run after run."""
        if self.keep in ONE_EACH:
            return one_of_each(scores, self.k, self.keep)
        by_run = blocks(scores, round.runs)
        if self.keep == "top":
            best = by_run.argsort(1, descending=True)[:, : max(1, int(self.top * by_run.shape[1]))]
            start = torch.arange(round.runs, device=scores.device)[:, None] * by_run.shape[1]
            return (start + best.sort(1).values).flatten()
        bar = self.threshold + self.growth * round.index
        above = by_run > bar
        counts = above.sum(1).tolist()
        if 0 in counts:
            best = float(by_run[counts.index(0)].max())
            mend = "Lower algorithm.threshold or algorithm.growth."
            raise ValueError(f"round {round.index}: no answer scores above {bar}, the highest is {best:.4g}. {mend}")
        if len(set(counts)) > 1:
            raise Unstackable(f"the threshold left the runs {counts} answers")
        return above.flatten().nonzero()[:, 0]

    def loss(self, models: Models, batch: Answers) -> Loss:
        return imitation_loss(models, batch)

    def check_start(self, models: Models, batch: Answers) -> None:
        check_imitation_start(models, batch)


def rejection(
    rounds: int,
    epochs: int,
    batch_size: int,
    prompts_per_round: int,
    k: int,
    keep: Literal["max", "median", "random", "top", "threshold"],
    stages: Literal["last", "all"],
    top: float | None,
    threshold: float | None,
    growth: float | None,
    temperature: float | None,
) -> Rejection:
    """Raises ConfigError for an option that `keep` does not use, or lacks."""
    for key, value in {"top": top, "threshold": threshold, "growth": growth}.items():
        wanted = key == keep or (key == "growth" and keep == "threshold")
        check_used_together("keep", keep, wanted, **{key: value})
    if top is not None and not 0 < top <= 1:
        raise ConfigError(f"algorithm.top must be above 0 and at most 1, not {top}.")
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"algorithm.temperature must be above 0, not {temperature}; null: the policy's own.")
    counts = rounds, epochs, batch_size, prompts_per_round, k
    return Rejection(*counts, keep, stages, top, threshold, growth, temperature)
