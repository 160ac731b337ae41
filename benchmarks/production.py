"""rlpref's side of a comparison: the trainer that a run would have, held still so that its steps can be timed.

Nothing is rebuilt here: the configuration is composed, checked and assembled as a run does it, and a step is
`Trainer._update`, a round `Trainer._minibatches`. Left out are evaluations, logs and checkpoints.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import rlpref.train  # noqa: F401  (the configurations of the losses)
from rlpref.jobs import Job
from rlpref.process import prepare_process
from rlpref.run import _assemble, _ready
from rlpref.trainer import Trainer
from rlpref.types import Pairs, TensorBatch

CONF = Path(__file__).parents[1] / "conf"
FAST = [
    "model.attn_implementation=packed",
    "model.compute_dtype=bfloat16",
    "training.micro_batch_tokens=4096",
    "model.compile=true",
]
NAIVE = ["model.attn_implementation=sdpa", "training.micro_batch_size=2"]
COMMON = (
    "model=hf",
    "budget=small",
    "evaluation.times=1",
    "logger.mode=disabled",
    "optimizer.schedule=constant",
    "optimizer.max_grad_norm=1.0",
)


def make_trainer(overrides: list[str]) -> Trainer:
    """A trainer that has loaded everything and trained nothing. Of two values for a key the later counts."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", [*COMMON, *overrides])
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    prepare_process(config["threads"])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        ready = _ready(Job(config, Path(folder), "benchmark"))
        run, _ = _assemble(ready, 1)
    made = Trainer([run], ready.checked.training, evaluations=1)
    made.show = lambda *_, **__: None
    return made


def with_pairs(trainer: Trainer, pairs: Pairs) -> Trainer:
    """The same trainer on these pairs in this order, reference and all collected."""
    trainer.data = replace(trainer.data, train=pairs)
    trainer._collect()
    trainer._check_start(trainer.experience[torch.arange(min(2, len(pairs)))])
    return trainer


def fixed_batches(trainer: Trainer, size: int) -> list[TensorBatch]:
    """What was collected, in its own order."""
    collected = trainer.experience
    return [collected[rows] for rows in torch.arange(len(collected)).split(size)]
