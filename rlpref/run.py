"""One run: from a plain configuration to a finished run folder."""

from __future__ import annotations

import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import yaml

from rlpref import checkpoint
from rlpref.binding import ConfigError
from rlpref.build import Parts, build
from rlpref.check import check, reads_beta
from rlpref.evaluation.evaluator import Evaluator
from rlpref.evaluation.exact import ExactEvaluator, make_exact
from rlpref.logging.card import environment, peak_memory_mb
from rlpref.logging.folder import RunFolder, config_hash, read_json, write_atomically, write_json
from rlpref.logging.mirror import NoMirror, make_mirror
from rlpref.report import run_figure
from rlpref.testbed.own import own_regret
from rlpref.trainer import Trainer

ALL_THREADS = torch.get_num_threads()  # as torch chose it: jobs of one process may have set other numbers


def run(config: dict, folder: Path, group: str | None = None, overridden: tuple[str, ...] = ()) -> dict:
    """Trains as `config` (a resolved train.yaml) says, into `folder`; returns the summary.

    A folder with a finished run of the same configuration is left alone, an unfinished one is resumed from
    its last checkpoint, and one of another configuration is refused. `overridden` are keys that somebody set
    by hand: one that this run would not read is refused. Raises ConfigError before any model is loaded.
    """
    run_folder, identity = RunFolder(folder), config_hash(config)
    status = run_folder.status()
    try:
        checked = check(config, overridden)
    except ConfigError as error:
        if not status:  # a refused job of a sweep is a failed cell with a reason, not a missing one
            write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            run_folder.set_status("failed", identity, f"ConfigError: {error}")
        raise
    if status and status["config_hash"] != identity and run_folder.checkpoints.exists():
        raise ConfigError(f"{folder} holds a run of another configuration; choose another folder or remove it.")
    if status.get("status") == "done" and status["config_hash"] == identity:
        made_by = read_json(folder / "run.json").get("git_commit")
        print(f"{folder}: done before (commit {made_by}); remove it to run it again", file=sys.stderr)
        return read_json(folder / "summary.json")
    run_folder.set_status("running", identity)
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    try:
        summary = _train(config, checked, run_folder, group or folder.name)
    except KeyboardInterrupt:
        run_folder.set_status("interrupted", identity)
        raise
    except Exception as error:
        run_folder.set_status("failed", identity, f"{type(error).__name__}: {error}")
        raise
    return summary


def _train(config: dict, checked, folder: RunFolder, group: str) -> dict:
    started = time.perf_counter()
    torch.set_num_threads(config["threads"] or ALL_THREADS)
    torch.manual_seed(config["seed"])
    parts = build(config, checked)
    beta = config["beta"] if reads_beta(config["algorithm"]) else None
    own = partial(own_regret, config["algorithm"], config["data"])
    exact = make_exact(parts.task, parts.models, beta, own) if parts.task else None
    if exact:
        write_json(folder.path / "frontier.json", exact.frontier())
    times, sizes = checked.evaluation
    evaluator = Evaluator(
        parts.models, parts.data, exact, tuple(checked.algorithm.trains), **sizes, seed=config["seed"]
    )
    card = _card(config, parts, exact)
    _require_same_start(folder, card)
    write_json(folder.path / "run.json", card)
    mirror = make_mirror(
        **checked.logger,
        folder=folder.path,
        group=group,
        job_type=config["algorithm"]["name"],
        name=folder.path.name,
        config=config,
    )
    failed = True
    try:
        trainer = Trainer(
            checked.algorithm,
            parts.models,
            parts.data,
            evaluator,
            folder,
            mirror,
            checked.training,
            checked.optimizer,
            times,
            config["seed"],
        )
        last = trainer.run()
        wall = round(time.perf_counter() - started, 2)
        write_json(folder.path / "run.json", card | {"wall_seconds": wall, "peak_memory_mb": peak_memory_mb()})
        summary = last | {"wall_seconds": wall}
        write_json(folder.path / "summary.json", summary)
        folder.set_status("done", config_hash(config))
        _mirror_figure(folder.path, mirror)
        failed = False
    finally:
        mirror.finish(failed)
    return summary


def _require_same_start(folder: RunFolder, card: dict) -> None:
    """A run goes on only from the reference and the data that its checkpoints were made with; files outside
    the configuration (data, weights, code) may have changed meanwhile."""
    if checkpoint.latest(folder.checkpoints)[0] is None:
        return
    before = read_json(folder.path / "run.json")
    pairs = {"reference": (before["reference_hash"], card["reference_hash"])}
    pairs["data"] = (before["data"]["rows_hash"], card["data"]["rows_hash"])
    for name, (old, new) in pairs.items():
        if old != new:
            raise ConfigError(
                f"{folder.path} cannot go on: its checkpoint was made with another {name} (hash {old}, now {new}). "
                "Choose another folder or remove it."
            )


def _mirror_figure(folder: Path, mirror) -> None:
    """The run's path as an image; a run that has ended well does not fail for a picture."""
    if isinstance(mirror, NoMirror):
        return
    try:
        if figure := run_figure(folder):
            mirror.image("frontier", figure)
    except Exception as error:
        warnings.warn(f"no figure for wandb: {error}", stacklevel=2)


def _card(config: dict, parts: Parts, exact: ExactEvaluator | None) -> dict:
    """Everything that tells this run from another: versions, seeds, hashes, and every switch by name."""
    data = parts.data.card
    if exact and exact.beta is not None:  # without a beta there is no optimum to cover
        chosen = config["data"]["pairs_from"], config["data"]["pairs_from_options"]
        data = data | {"coverage": {"beta": exact.beta} | exact.coverage(*chosen)}
    return {
        **environment(),
        "config_hash": config_hash(config),
        "seed": config["seed"],
        "data_seed": config["data"]["seed"],
        "model": parts.model_card,
        "reference_hash": parts.models.initial.hash,
        "data": data,
        "reward": getattr(parts.models.reward, "name", None),
        "gold": getattr(parts.models.gold, "name", None),
        "algorithm": config["algorithm"],
        "temperature": config["temperature"],
        "host_cpus": os.cpu_count(),
    }
