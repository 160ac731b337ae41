"""wandb as a mirror of metrics.jsonl: the same rows, offline by default, never a reason for a run to fail."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol


class Mirror(Protocol):
    """A second place for the rows of metrics.jsonl."""

    def log(self, row: dict) -> None: ...

    def image(self, name: str, path: Path) -> None: ...

    def finish(self, failed: bool) -> None: ...


class NoMirror:
    def log(self, row: dict) -> None:
        pass

    def image(self, name: str, path: Path) -> None:
        pass

    def finish(self, failed: bool) -> None:
        pass


class WandbMirror:
    """One wandb run in `folder`. `eval/reward` and `exact/reward` are charted against their KL."""

    def __init__(self, mode: str, project: str, folder: Path, group: str, job_type: str, name: str, config: dict):
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb  # seconds to import, so only where it is used

        self.wandb = wandb
        self.run = wandb.init(
            mode=mode,
            project=project,
            dir=folder,
            group=group,
            job_type=job_type,
            name=name,
            config=config,
            reinit="create_new",  # a multirun shares its process: never hand back the run of another job
            settings=wandb.Settings(quiet=True, console="off", init_timeout=30),
        )
        for kind in ("eval", "exact"):
            self.run.define_metric(f"{kind}/kl")
            self.run.define_metric(f"{kind}/reward", step_metric=f"{kind}/kl")

    def log(self, row: dict) -> None:
        self._attempt(lambda: self.run.log(row))

    def image(self, name: str, path: Path) -> None:
        self._attempt(lambda: self.run.log({name: self.wandb.Image(str(path))}))

    def finish(self, failed: bool) -> None:
        self._attempt(lambda: self.run.finish(exit_code=int(failed)))

    def _attempt(self, call: Callable[[], None]) -> None:
        """wandb's process may die: the run goes on without it and says so once."""
        if self.run is None:
            return
        try:
            call()
        except Exception as error:
            warnings.warn(f"wandb failed ({error}); metrics.jsonl has everything.", stacklevel=3)
            self.run = None


def make_mirror(mode: Literal["offline", "online", "disabled"], project: str, folder: Path, **identity) -> Mirror:
    """The mirror for `mode`: online where asked for and reachable, else offline with a warning that says so."""
    if mode == "disabled":
        return NoMirror()
    try:
        return WandbMirror(mode, project, folder, **identity)
    except Exception as error:
        if mode == "offline":
            warnings.warn(f"wandb could not start ({error}); metrics.jsonl has everything.", stacklevel=2)
            return NoMirror()
        warnings.warn(f"wandb could not go online ({error}); logging offline: `wandb sync` later.", stacklevel=2)
        return make_mirror("offline", project, folder, **identity)
