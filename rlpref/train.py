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
WAITING: list = []  # jobs of a sweep with replicas: they are trained together when all are known


def _config_path() -> str:
    """conf/ as a package where rlpref is installed, the folder itself in a bare checkout."""
    installed = importlib.util.find_spec("rlpref.conf") is not None
    return "pkg://rlpref.conf" if installed else str(Path(__file__).parents[1] / "conf")


def _run_name(*, _root_: DictConfig) -> str:
    """<algorithm>-beta<beta>-seed<seed>-<hash of the configuration>: short, unique, the same at every start."""
    config = OmegaConf.create({key: _root_._get_node(key) for key in _root_ if key != "hydra"})
    digest = config_hash(OmegaConf.to_container(config, resolve=True))
    return f"{_root_.algorithm.name}-beta{_root_.beta}-seed{_root_.seed}-{digest}"


OmegaConf.register_new_resolver("rlpref.run_name", _run_name, replace=True)


@hydra.main(version_base="1.3", config_path=_config_path(), config_name="train")
def job(config: DictConfig) -> None:
    """One job. A failure is written into its run folder and remembered; the jobs after it still run."""
    from rlpref.run import Job, run_side_by_side

    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    run_config = HydraConfig.get()
    folder = Path(run_config.runtime.output_dir)
    sweep = run_config.mode == RunMode.MULTIRUN
    group = Path(run_config.sweep.dir).name if sweep else folder.name
    overridden = tuple(o.split("=")[0].lstrip("+~") for o in run_config.overrides.task)
    waiting = Job(plain, folder, group, overridden)
    if sweep and plain["replicas"] > 1:
        WAITING.append(waiting)
    else:
        _tell(waiting, *run_side_by_side([waiting]))


def _train_waiting() -> None:
    from rlpref.run import run_side_by_side, side_by_side

    jobs, WAITING[:] = list(WAITING), []
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
        write_json(Path(config.hydra.sweep.dir) / "sweep.json", {"overrides": overrides})

    def on_multirun_end(self, config: DictConfig, **_) -> None:
        folder = Path(config.hydra.sweep.dir)
        _train_waiting()
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
    main()
