"""rlpref's side of a comparison: the trainer that a run would have, held still so that its steps can be timed.

Nothing is rebuilt here: the configuration is composed, checked and assembled as a run does it, and a step is
`Trainer._update`, a round `Trainer._minibatches`. Left out are evaluations, logs and checkpoints.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

import rlpref.train  # noqa: F401  (the configurations of the losses)
from rlpref.run import Job, _assemble, _ready
from rlpref.trainer import Trainer
from rlpref.types import Pairs, TensorBatch

CONF = Path(__file__).parents[1] / "conf"
FAST = {
    "model.attn_implementation": "packed",
    "model.compute_dtype": "bfloat16",
    "training.micro_batch_tokens": 4096,
}
NAIVE = {"model.attn_implementation": "sdpa", "training.micro_batch_size": 2}
COMMON = (
    "model=hf",
    "budget=small",
    "evaluation.times=1",
    "logger.mode=disabled",
    "optimizer.schedule=constant",
    "optimizer.max_grad_norm=1.0",
)


def configuration(overrides: list[str], settings: dict) -> dict:
    """The resolved configuration. `settings` that it does not know yet are named on standard error and left out."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*COMMON, *overrides])
    for key, value in _known(config, settings).items():
        with open_dict(config):
            OmegaConf.update(config, key, value)
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _known(config: DictConfig, settings: dict) -> dict:
    missing = object()
    known = {
        key: value for key, value in settings.items() if OmegaConf.select(config, key, default=missing) is not missing
    }
    if left_out := settings.keys() - known.keys():
        print(f"settings that rlpref does not have yet: {', '.join(sorted(left_out))}", file=sys.stderr)
    if "training.micro_batch_tokens" in left_out:
        known["training.micro_batch_size"] = NAIVE["training.micro_batch_size"]
    return known


def make_trainer(overrides: list[str], settings: dict) -> Trainer:
    """A trainer that has loaded everything and trained nothing."""
    config = configuration(overrides, settings)
    torch.set_num_threads(config["threads"] or torch.get_num_threads())
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
