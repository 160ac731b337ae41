"""Any policy gradient under a limit on the mean cost: maximise E[r] - beta KL subject to E[c] <= limit.

The method itself ascends the Lagrangian E[r - lambda c] - beta KL: its reward is replaced while it collects. The
multiplier ascends the dual on the same answers: lambda <- max(0, lambda + rate (mean c - limit)) after each round, with
a rate that falls linearly to 0. Safe RLHF (Dai et al. 2023, 2310.12773) does so in log lambda. Both rest at
ref exp((r - lambda* c)/beta)/Z, with lambda* = 0 where the limit does not bind (`testbed.optima.constrained` has the
exact one). Where no policy can keep the limit the multiplier grows in every round and `constraint/violation` stays
above 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from rlpref.algorithms.actor_critic import ActorCritic
from rlpref.algorithms.algorithm import Algorithm, Loss, Round
from rlpref.algorithms.grouped import Grouped
from rlpref.algorithms.reinforce import Reinforce
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.models.bundle import Models
from rlpref.ops.blocks import spread
from rlpref.types import Rollouts, Sequences

MULTIPLIER = "constraint/multiplier"


@dataclass
class Constrained:
    """A policy gradient, `method`, held to the `limit`. `multiplier` is where lambda starts. The metrics `objective/`
    are those of the Lagrangian's reward; the cost of an answer is one label more."""

    needs_reward: ClassVar[bool] = True
    method: ActorCritic | Reinforce | Grouped
    limit: float
    multiplier: float
    rate: float
    rounds: int = field(init=False)
    epochs: int = field(init=False)
    batch_size: int = field(init=False)
    trains: dict[str, float] = field(init=False)

    def __post_init__(self):
        for name in ("rounds", "epochs", "batch_size", "trains"):
            setattr(self, name, getattr(self.method, name))

    def examples(self, data: PreferenceData, index: int) -> int:
        return self.method.examples(data, index)

    def collect(self, models: Models, data: PreferenceData, round: Round) -> Rollouts:
        start = torch.full((round.runs,), self.multiplier, dtype=torch.float64)
        multiplier = round.carried.get(MULTIPLIER, start)
        lagrangian = partial(_lagrangian, models, multiplier.to(models.device), round)
        rollouts = self.method.collect(replace(models, reward=lagrangian), data, round)
        cost = round.mean(models.cost(rollouts.sequences)).double().cpu()
        violation = cost - self.limit
        round.metrics |= {MULTIPLIER: multiplier, "constraint/cost": cost, "constraint/violation": violation}
        rate = self.rate * (1 - round.index / self.rounds)  # else it would outlast the policy's learning rate
        round.carried[MULTIPLIER] = (multiplier + rate * violation).clamp(min=0)
        return rollouts

    def loss(self, models: Models, batch: Rollouts) -> Loss:
        return self.method.loss(models, batch)

    def before_step(self, models: Models, batch: Rollouts, index: int) -> dict[str, Tensor]:
        own = getattr(self.method, "before_step", None)
        return own(models, batch, index) if own else {}

    def check_start(self, models: Models, batch: Rollouts) -> None:
        self.method.check_start(models, batch)


def _lagrangian(models: Models, multiplier: Tensor, round: Round, sequences: Sequences) -> Tensor:
    """[B] r - lambda c of each answer; `multiplier` [runs]."""
    round.charge(labels=len(sequences))
    scores = models.reward(sequences).to(models.device)
    return scores - spread(multiplier, len(scores)).to(scores) * models.cost(sequences).to(scores)


def _check_whole_scores(method: ActorCritic | Reinforce | Grouped, name: str) -> None:
    """Raises ConfigError for an option under which a violation no longer costs the multiplier times the cost."""
    shaped = getattr(method, "shaping", None)
    rule = shaped.eos_rule if shaped else method.eos[0] if isinstance(method, Grouped) else method.eos_rule
    changed = {
        "eos_rule": rule if rule in ("replace", "bootstrap") else None,  # the cost of cut answers goes with their score
        "reward_clip": shaped and shaped.reward_clip,
        "scale_scores": shaped and shaped.scale_scores != "none",
        "dynamic_sampling": getattr(method, "dynamic_sampling", None),  # the cost would be of answers that were chosen
    }
    for key in (key for key, value in changed.items() if value):
        raise ConfigError(
            f"algorithm '{name}': '{key}' changes what a violation costs, and constraint 'lagrangian' would end "
            f"elsewhere. Set algorithm.{key} to {'none or subtract' if key == 'eos_rule' else 'null (or none)'}."
        )


def constrained(method: Algorithm, name: str, limit: float, multiplier: float, rate: float) -> Constrained:
    """Raises ConfigError for a method that is no policy gradient, and for a multiplier below 0 or that cannot move."""
    if not isinstance(method, ActorCritic | Reinforce | Grouped):
        raise ConfigError(
            f"algorithm '{name}' is no policy gradient on scores of fresh answers: constraint 'lagrangian' cannot "
            "hold it to a limit. Choose ppo, reinforce, grpo or one of their kin, or set constraint=none."
        )
    _check_whole_scores(method, name)
    if multiplier < 0:
        raise ConfigError(f"constraint.multiplier must not be below 0, but is {multiplier}.")
    if not rate > 0:
        raise ConfigError(f"constraint.rate must be above 0, not {rate}: the multiplier would never move.")
    return Constrained(method, limit, multiplier, rate)
