"""What an algorithm is: `collect` (what to learn from) and `loss` (how to learn from it)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rlpref.data.preferences import PreferenceData
from rlpref.models.bundle import Models
from rlpref.ops.blocks import blocks
from rlpref.types import TensorBatch


@dataclass
class Loss:
    """Per-example losses. The trainer minimises sum(weight * value) / sum(weight) over the minibatch, whatever
    way it is cut into micro-batches; metrics are averaged with the same weights."""

    value: Tensor  # [B]
    weight: Tensor  # [B] 1 for a pair, the number of tokens for a token-mean loss
    metrics: dict[str, Tensor]  # each [B]


@dataclass
class Costs:
    """What a run has spent so far."""

    steps: int = 0  # optimizer steps
    samples: int = 0  # answers drawn for training
    labels: int = 0  # rewards or preferences asked for
    tokens: int = 0  # tokens passed through the policy for training and sampling

    def row(self) -> dict[str, int]:
        return {f"cost/{name}": value for name, value in asdict(self).items()}


@dataclass
class Round:
    """What `collect` may read and write besides models and data. An ordinary run has one generator and one Costs;
    with replicas each run has its own, and its rows are one block of every batch (rlpref.ops.blocks)."""

    index: int
    generators: list[torch.Generator]  # the runs' only source of randomness, on the models' device
    costs: list[Costs]
    previous: TensorBatch | None = None  # what the round before collected
    carried: dict[str, Tensor] = field(default_factory=dict)  # [runs] numbers kept from round to round, and on resume
    metrics: dict[str, Tensor] = field(default_factory=dict)  # [runs] of the collected batch as a whole

    @property
    def runs(self) -> int:
        return len(self.generators)

    def mean(self, values: Tensor) -> Tensor:
        """[runs] mean of one number per row."""
        return blocks(values.float(), self.runs).mean(1)

    def charge(self, samples: int = 0, labels: int = 0, tokens: Tensor | None = None) -> None:
        """Adds to the costs: rows that all runs together drew or asked labels for, and the tokens of each row."""
        for costs in self.costs:
            costs.samples += samples // self.runs
            costs.labels += labels // self.runs
        if tokens is not None:
            charge_tokens(self.costs, tokens)


def charge_tokens(costs: list[Costs], tokens: Tensor) -> None:
    """Adds the tokens of each row to the costs of the row's run."""
    for own, count in zip(costs, blocks(tokens, len(costs)).sum(1).tolist()):
        own.tokens += count


class Algorithm(Protocol):
    """Offline, iterative and on-policy methods differ in `rounds` and in what `collect` returns.

    One may have `before_step(models, batch, index)`, too: called between the gradient of a minibatch of round `index`
    and the optimizer, it may take gradients away or move parameters itself, and returns metrics [runs]. Like `loss` it
    keeps nothing: a run is resumed from parameters, optimizer and what is carried."""

    needs_reward: ClassVar[bool]  # whether `collect` scores answers
    rounds: int
    epochs: int
    batch_size: int
    trains: dict[str, float]  # names of fields of Models -> factor on the learning rate

    def examples(self, data: PreferenceData, index: int) -> int:
        """At most so many rows does round `index` collect: the learning-rate schedule needs it."""
        ...

    def collect(self, models: Models, data: PreferenceData, round: Round) -> TensorBatch: ...

    def loss(self, models: Models, batch: TensorBatch) -> Loss: ...

    def check_start(self, models: Models, batch: TensorBatch) -> None:
        """Raises StartError unless the policy still is the reference as far as the loss can see."""
        ...


def staleness(algorithm: Algorithm, data: PreferenceData) -> int | None:
    """The most updates between the policy that sampled an answer and the one that learns from it in the same round: 0
    where a round is one update. None for what samples nothing."""
    if not algorithm.needs_reward:
        return None
    return algorithm.epochs * -(-algorithm.examples(data, 0) // algorithm.batch_size) - 1


class StartError(AssertionError):
    """The run does not start where theory says it does: policy == reference."""
