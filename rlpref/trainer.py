"""The loop of every algorithm: rounds of collecting, epochs of minibatches, updates. It never asks which
algorithm it runs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rlpref import checkpoint
from rlpref.algorithms.algorithm import Algorithm, Costs, Round, StartError
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.evaluation.evaluator import Evaluator
from rlpref.logging.folder import RunFolder
from rlpref.logging.mirror import Mirror
from rlpref.models.bundle import Models
from rlpref.models.hashing import weights_hash
from rlpref.models.reference import snapshot
from rlpref.progress import progress
from rlpref.types import Sequences, TensorBatch, from_nested, to_nested


@dataclass
class OptimizerSettings:
    """AdamW with a learning-rate schedule of transformers."""

    lr: float
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup: float  # share of all steps
    weight_decay: float
    max_grad_norm: float

    def __post_init__(self):
        if self.warmup and self.schedule == "constant":
            raise ConfigError("optimizer.schedule 'constant' does not use 'warmup': use constant_with_warmup.")


@dataclass
class TrainingSettings:
    """How to run the loop, whatever the algorithm."""

    micro_batch_size: int  # rows in one pass with gradient
    chunk: int  # rows in one pass without
    log_every: int
    checkpoint_every: int | None  # steps; None: no checkpoint but the final one
    max_steps: int | None


@dataclass
class Progress:
    """Where the run is; with the weights and the optimizer all that a resumed run needs."""

    step: int = 0
    round: int = 0
    epoch: int = 0
    batch: int = 0  # minibatches done in this epoch
    costs: Costs = field(default_factory=Costs)
    seconds: float = 0.0
    evaluating: float = 0.0  # seconds of these that the evaluator took
    metrics: dict[str, float] = field(default_factory=dict)  # of the round, not logged yet


class Trainer:
    """One run: `Trainer(...).run()`."""

    def __init__(
        self,
        algorithm: Algorithm,
        models: Models,
        data: PreferenceData,
        evaluator: Evaluator,
        folder: RunFolder,
        mirror: Mirror,
        settings: TrainingSettings,
        optimizer: OptimizerSettings,
        evaluations: int,
        seed: int,
    ):
        self.algorithm, self.models, self.data = algorithm, models, data
        self.evaluator, self.folder, self.mirror, self.settings = evaluator, folder, mirror, settings
        self.evaluations, self.seed = evaluations, seed
        self.trained = {name: getattr(models, name) for name in algorithm.trains}
        self.generator = torch.Generator(models.device).manual_seed(seed)
        self.at = Progress()
        self.experience: TensorBatch | None = None
        self.total = self._count_steps()
        self.optimizer, self.scheduler = self._optimizer(optimizer)

    def _count_steps(self) -> int:
        a = self.algorithm
        per_round = [a.epochs * -(-a.examples(self.data, r) // a.batch_size) for r in range(a.rounds)]
        return min(sum(per_round), self.settings.max_steps or sum(per_round))

    def _optimizer(self, s: OptimizerSettings):
        self.max_grad_norm = s.max_grad_norm
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr": s.lr * self.algorithm.trains[name]}
            for name, module in self.trained.items()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=s.weight_decay)
        warmup = round(s.warmup * self.total)
        return optimizer, get_scheduler(s.schedule, optimizer, warmup, self.total)

    def run(self) -> dict[str, float]:
        """Trains to the end (from the last checkpoint where there is one) and returns the last evaluation."""
        self._resume()
        started = time.perf_counter() - self.at.seconds
        due = {-(-i * self.total // self.evaluations) for i in range(1, self.evaluations + 1)}
        with progress("training", self.total, self.at.step) as self.show:
            if self.at.step == 0:
                self._evaluate(started)
            for batch in self._minibatches():
                row = self._update(batch)
                self.at.seconds = time.perf_counter() - started
                if self.at.step % self.settings.log_every == 0 or self.at.step == self.total:
                    self._log(self._row() | row)
                self.show(f"loss {row['loss']:.4f}", advance=1)
                if self.at.step in due:
                    self._evaluate(started)
                every = self.settings.checkpoint_every
                if every and self.at.step % every == 0 and self.at.step < self.total:
                    self._save()
        if self.at.step not in due:  # fewer minibatches than foreseen: dropped ties
            self._evaluate(started)
        self._save()
        return self.last_evaluation

    def _minibatches(self) -> Iterator[TensorBatch]:
        """Rounds x epochs x minibatches from where `self.at` stands."""
        a, at = self.algorithm, self.at
        while at.round < a.rounds:
            if self.experience is None or at.epoch == at.batch == 0:
                self._collect()
            while at.epoch < a.epochs:
                for rows in self._order()[at.batch :]:
                    if at.step >= self.total:
                        return
                    batch = self.experience[rows]
                    if at.step == 0:
                        self._check_start(batch[: self.settings.micro_batch_size])
                    at.step, at.batch = at.step + 1, at.batch + 1
                    at.costs.steps += 1
                    yield batch
                at.epoch, at.batch = at.epoch + 1, 0
            at.round, at.epoch = at.round + 1, 0

    def _check_start(self, batch: TensorBatch) -> None:
        """Dropout is off in whatever trains or is compared with, and the algorithm starts where it should."""
        for name, module in (self.trained | {"ref": self.models.ref.model}).items():
            if any(part.training for part in module.modules()):
                raise StartError(f"the {name} is in training mode: dropout would be on. Call .eval() on it.")
        self.algorithm.check_start(self.models, batch)

    def _collect(self) -> None:
        self.show("collecting")
        round = Round(self.at.round, self.generator, self.at.costs, self.experience)
        self.experience = self.algorithm.collect(self.models, self.data, round)
        self.at.metrics = round.metrics

    def _order(self) -> list[Tensor]:
        """Minibatches of this epoch: a permutation that depends on seed, round and epoch only."""
        seed = (self.seed * 1_000_003 + self.at.round) * 1_000_003 + self.at.epoch
        generator = torch.Generator().manual_seed(seed % 2**62)
        order = torch.randperm(len(self.experience), generator=generator).to(self.models.device)
        return list(order.split(self.algorithm.batch_size))

    def _update(self, batch: TensorBatch) -> dict[str, float]:
        """One optimizer step on the weighted mean over the minibatch, exact for any micro-batch size."""
        self.optimizer.zero_grad()
        row = backward(self.algorithm, self.models, batch, self.settings.micro_batch_size, self.trained)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        if not (row["loss"] - row["loss"] == 0 and norm - norm == 0):
            raise FloatingPointError(
                f"step {self.at.step}: loss {row['loss']}, gradient norm {norm}; nothing was updated. "
                "Try a smaller optimizer.lr."
            )
        self.at.costs.tokens += count_tokens(batch)
        row |= {"grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"]}
        self.optimizer.step()
        self.scheduler.step()
        metrics, self.at.metrics = self.at.metrics, {}
        return row | metrics

    def _row(self) -> dict:
        at = self.at
        times = {"time/seconds": round(at.seconds, 3), "time/training_seconds": round(at.seconds - at.evaluating, 3)}
        return {"step": at.step, "round": at.round, **at.costs.row(), **times}

    def _log(self, row: dict) -> None:
        self.folder.log(row)
        self.mirror.log(row)

    def _evaluate(self, started: float) -> None:
        self.show("evaluating")
        begun = time.perf_counter()
        metrics, texts = self.evaluator(self.at.step)
        now = time.perf_counter()
        self.at.seconds, self.at.evaluating = now - started, self.at.evaluating + now - begun
        self.last_evaluation = self._row() | metrics
        self._log(self.last_evaluation)
        self.folder.log_samples(texts)

    def _modules(self) -> dict[str, nn.Module]:
        moved = self.models.ref is not self.models.initial
        return self.trained | ({"ref": self.models.ref.model} if moved else {})

    def _save(self) -> None:
        state = {
            "progress": asdict(self.at),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "experience": to_nested(self.experience),
            "rows": self.folder.rows(),
            "last_evaluation": self.last_evaluation,
        }
        checkpoint.save(self.folder.checkpoints, self.at.step, self._modules(), state)

    def _resume(self) -> None:
        """Takes up the newest sound checkpoint, and cuts the logs back to where it was made."""
        path, complaints = checkpoint.latest(self.folder.checkpoints)
        for complaint in complaints:
            warnings.warn(f"checkpoint {complaint}; an older one is used", stacklevel=2)
        if path is None:
            self.folder.clear_logs()
            return
        if moved := (path / "ref.safetensors").exists():
            self.models.ref = snapshot(self.models.policy)
        state = checkpoint.load(path, self._modules())
        if moved:
            self.models.ref.hash = weights_hash(self.models.ref.model)
        self.at = Progress(**state["progress"] | {"costs": Costs(**state["progress"]["costs"])})
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        self.experience = from_nested(state["experience"]).to(self.models.device)
        self.last_evaluation = state["last_evaluation"]
        self.folder.cut_back(state["rows"])


def backward(
    algorithm: Algorithm, models: Models, batch: TensorBatch, micro_batch_size: int, trained: dict[str, nn.Module]
) -> dict[str, float]:
    """Adds the gradient of sum(weight * loss) / sum(weight) over the whole minibatch to the trained modules,
    however it is cut into micro-batches; returns the loss and the metrics averaged in the same way."""
    sums: dict[str, float] = {}
    total = 0.0
    for start in range(0, len(batch), micro_batch_size):
        loss = algorithm.loss(models, batch[start : start + micro_batch_size])
        (loss.weight * loss.value).sum().backward()
        total += float(loss.weight.sum())
        for name, values in (("loss", loss.value.detach()), *loss.metrics.items()):
            sums[name] = sums.get(name, 0.0) + float((loss.weight * values).sum(dtype=torch.float64))
    for module in trained.values():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad /= total
    return {name: value / total for name, value in sums.items()}


def count_tokens(batch: TensorBatch) -> int:
    """Real tokens in all the sequences of a batch."""
    if isinstance(batch, Sequences):
        return int(batch.attention_mask.sum())
    return sum(count_tokens(value) for _, value in batch.items() if isinstance(value, TensorBatch))
