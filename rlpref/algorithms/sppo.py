"""Self-play preference optimisation: k answers of the policy against each other, each fitted to how often it wins.

Wu et al. 2024 (2405.00675). With `reference=previous`, the paper's, a round is a step of multiplicative weights with
payoff P(y beats pi_t) and rate 1/beta: the *mean* of the iterates nears the Nash equilibrium of the game without a KL,
the last one circles it where preferences do. With `reference=initial` a policy that one update a round keeps close to
its answers ends where log pi/ref = P(y beats pi)/beta + const: at the equilibrium with a KL to the reference of weight
beta. The win probability is the mean over the other k - 1 answers, which is unbiased; the paper counts the answer
itself as a half, too, which makes its eta smaller by (k - 1)/k.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlpref.algorithms.algorithm import Loss, Round
from rlpref.algorithms.common import choose_prompts, sample_answers
from rlpref.algorithms.objective import check_objective_start, objective_loss, with_reference
from rlpref.algorithms.pair_rules import contest
from rlpref.algorithms.pairing import preferring
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses.inputs import AnswerLogps
from rlpref.losses.modifiers import Objective, make_objective
from rlpref.models.bundle import Models
from rlpref.types import Answers


@dataclass
class SPPO:
    """Rounds of fresh answers, with their win rates as scores; the better half of them is called desirable."""

    needs_reward: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    objective: Objective
    scale: float
    k: int
    prompts_per_round: int
    rounds: int
    epochs: int
    batch_size: int
    trains: dict[str, float] = field(init=False, default_factory=lambda: {"policy": 1.0})

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.prompts_per_round * self.k

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Answers:
        prompts = choose_prompts(data.prompts, self.prompts_per_round, round.generators)
        answers = sample_answers(models, prompts, self.k, round).sequences
        wins = contest(preferring(models, answers, self.k, round), len(prompts), self.k)
        rates = (wins.sum(2) - 0.5) / (self.k - 1)  # without the half against itself
        round.metrics["objective/win_rate_best"] = round.mean(rates.amax(1))
        rates = rates.flatten()
        return with_reference(models, self.objective, Answers(answers, rates > 0.5, score=rates))

    def loss(self, models: Models, batch: Answers) -> Loss:
        return objective_loss(models, self.objective, self.scale, batch)

    def check_start(self, models: Models, batch: Answers) -> None:
        check_objective_start(models, self.objective, batch)


def sppo(loss: dict, rounds: int, epochs: int, batch_size: int, prompts_per_round: int, k: int) -> SPPO:
    """`loss` is {"name": a loss of single answers that reads their scores, its hyperparameters}."""
    objective = make_objective(loss, (AnswerLogps,))
    if "score" not in objective.reads:
        raise ConfigError(
            f"loss '{loss['name']}' does not read how often an answer wins: set algorithm/loss=sppo_single."
        )
    if k < 2:
        raise ConfigError(f"algorithm.k is {k}: an answer plays against the others to its prompt, so give it two.")
    return SPPO(objective, objective.scale, k, prompts_per_round, rounds, epochs, batch_size)
