"""The Hydra entry: compose a configuration, run it. With the sweep's callback the only place that knows Hydra.

Heavy imports wait until a job starts, so that `--help`, tab completion and a misspelt option answer at once.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlpref.logging.folder import config_hash, write_json

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
FAILED: list[str] = []  # jobs of this process that did not finish
WAITING: list = []  # runs of a sweep with replicas: they are trained together when all are known


def _config_path() -> str:
    """conf/ as a package where rlpref is installed, the folder itself in a bare checkout."""
    installed = importlib.util.find_spec("rlpref.conf") is not None
    return "pkg://rlpref.conf" if installed else str(Path(__file__).parents[1] / "conf")


def _run_name(*, _root_: DictConfig) -> str:
    """<algorithm>-beta<beta>-seed<seed>-<hash of the configuration>: short, unique, the same at every start."""
    config = OmegaConf.create({key: _root_._get_node(key) for key in _root_ if key != "hydra"})
    return _name(OmegaConf.to_container(config, resolve=True))


def _name(plain: dict) -> str:
    return f"{plain['algorithm']['name']}-beta{plain['beta']}-seed{plain['seed']}-{config_hash(plain)}"


OmegaConf.register_new_resolver("rlpref.run_name", _run_name, replace=True)


@hydra.main(version_base="1.3", config_path=_config_path(), config_name="train")
def job(config: DictConfig) -> None:
    """One job. A failure is written into its run folder and remembered; the jobs after it still run.

    With replicas a job is that many runs. In a sweep they wait for those of the other jobs."""
    from rlpref.run import REPLICATED, Job

    run_config = HydraConfig.get()
    folder = Path(run_config.runtime.output_dir)
    sweep = run_config.mode == RunMode.MULTIRUN
    group = Path(run_config.sweep.dir).name if sweep else folder.name
    overridden = tuple(o.split("=")[0].lstrip("+~") for o in run_config.overrides.task)
    runs = _replicas(config)
    kind = runs[0]["model"]["kind"]
    if len(runs) > 1 and kind not in REPLICATED:
        print(f"model '{kind}' has no replica axis: its {len(runs)} runs are trained one by one", file=sys.stderr)
    if len(runs) == 1:
        return _train([Job(runs[0], folder, group, overridden)])
    parent = Path(run_config.sweep.dir) if sweep else folder
    WAITING.extend(Job(plain, parent / _name(plain), group, overridden) for plain in runs)
    if not sweep:
        _write_sweep(folder, list(run_config.overrides.task), config)
        _finish_sweep(folder)


def _replicas(config: DictConfig) -> list[dict]:
    """The resolved configuration of each replica: seed, seed + 1, ..."""
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    plain = []
    for seed in _seeds(config):
        config.seed = seed
        plain.append(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    return plain


def _seeds(config: DictConfig) -> list:
    """One for each replica. What is no number is left for the check of all settings to refuse."""
    numbers = isinstance(config.replicas, int) and isinstance(config.seed, int) and config.replicas > 1
    return list(range(config.seed, config.seed + config.replicas)) if numbers else [config.seed]


def _train(jobs: list) -> None:
    from rlpref.run import run_side_by_side, side_by_side

    for together in side_by_side(jobs):
        for waiting, result in zip(together, run_side_by_side(together)):
            _tell(waiting, result)


def _tell(job, result: dict | Exception) -> None:
    """One line for a finished job; a failed one is remembered, too."""
    from rlpref.binding import ConfigError

    if isinstance(result, dict):
        print(_line(job.folder, result), flush=True)
    elif isinstance(result, ConfigError):
        FAILED.append(f"{job.folder}: {result}")
        print(f"error: {result}", file=sys.stderr)
    else:
        FAILED.append(f"{job.folder}: {type(result).__name__}: {result}")
        traceback.print_exception(result)


def _line(folder: Path, summary: dict) -> str:
    keys = ["exact/reward", "exact/kl", "exact/regret"] if "exact/reward" in summary else ["eval/reward", "eval/kl"]
    keys += [key for key in ("eval/win_rate", "eval/accuracy", "eval/reward_model/accuracy") if key in summary]
    return f"{folder.name}: " + "  ".join(f"{key} {summary[key]:.4f}" for key in keys if key in summary)


class ReportCallback(Callback):
    """Writes sweep.json when a sweep starts; trains the replicas and builds the report when all jobs are known."""

    def on_multirun_start(self, config: DictConfig, **_) -> None:
        overrides = list(config.hydra.overrides.task)
        named = {override.split("=")[0] for override in overrides}
        grid = config.hydra.sweeper.params or {}  # of an experiment file; the command line wins over it
        overrides += [f"{key}={values}" for key, values in grid.items() if key not in named]
        _write_sweep(Path(config.hydra.sweep.dir), overrides, config)

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        _finish_sweep(Path(config.hydra.sweep.dir))


def _write_sweep(folder: Path, overrides: list[str], config: DictConfig) -> None:
    """What the sweep was asked for: the report tells from it which runs are missing."""
    several = [one for one in overrides if one.startswith("seed=") and ("," in one or "(" in one)]
    if len(seeds := _seeds(config)) > 1 and not several:
        overrides = [one for one in overrides if not one.startswith("seed=")]
        overrides.append(f"seed={','.join(map(str, seeds))}")
    write_json(folder / "sweep.json", {"overrides": overrides})


def _finish_sweep(folder: Path) -> None:
    """Trains the replicas that wait for each other, and builds the report."""
    waiting = {run.folder: run for run in WAITING}  # replicas of two seeds may be the same run
    WAITING.clear()
    _train(list(waiting.values()))
    try:
        from rlpref.report import build

        build([folder])
    except Exception as error:  # Hydra would make a warning of it
        FAILED.append(f"the report of {folder}: {type(error).__name__}: {error}")
        traceback.print_exc()


def _stop(signum, frame) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """`rlpref`: exit code 0 when all jobs finished, 1 when some failed (named at the end), 130 when interrupted."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        job()
    except KeyboardInterrupt:
        print("interrupted; the same command with the same folder goes on from the last checkpoint.", file=sys.stderr)
        raise SystemExit(130) from None
    if FAILED:
        if len(FAILED) > 1:
            print(f"{len(FAILED)} jobs failed:\n  " + "\n  ".join(FAILED), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    from rlpref import train  # the module whose lists the callback knows, not a second one named __main__

    train.main()
