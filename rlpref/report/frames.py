"""Run folders to data frames."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import pandas as pd

from rlpref.report.by_prompt import prompt_means
from rlpref.report.folders import NoRuns, RunFolder, find_runs, read_overrides, read_run
from rlpref.report.grid import PROBLEM_ROOTS, flatten, missing_runs, swept_keys

IDENTITY = ["run", "method", "beta", "seed"]


@dataclass
class Sweep:
    """What a set of runs left behind. docs/frames.md lists all columns.

    Example: `load("runs/demo").done.groupby(["method", "beta"])["exact/reward"].max()`

    runs      one row per run: run, sweep, folder, method, beta, seed, the swept keys, status, error,
              and the last value of every evaluation metric (`eval/*`, `exact/*`, `cost/*`, `time/seconds`).
    history   every row of every metrics.jsonl, with run, method, beta, seed and the swept keys.
    samples   every row of every samples.jsonl, likewise.
    answers   every row of every answers.jsonl, likewise: all answers of a run's last evaluation, with what was measured
              of each (by, prompt_index, answer_index, prompt, answer, length, reward, kl, ...).
    pairs     every row of every pairs.jsonl, likewise: the held-out pairs at a run's last evaluation, with log-probs of
              the policy (chosen, rejected) and of its initial reference (ref_chosen, ref_rejected), lengths, ches, ...
    frontier  kl, reward, beta of the exact Pareto frontier and the run it came from; None without a testbed.
    missing   method, beta, seed and swept keys of the runs of the grid that have no folder.
    cards     run -> its run.json; `configs` run -> its config.yaml as text.
    keys      the settings swept beyond method, beta and seed.
    folders   the folders that were read.
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    samples: pd.DataFrame
    answers: pd.DataFrame
    pairs: pd.DataFrame
    frontier: pd.DataFrame | None
    missing: pd.DataFrame
    cards: dict[str, dict]
    configs: dict[str, str]
    keys: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def problem_keys(self) -> list[str]:
        """The swept keys that change the problem (model, data, testbed, reward) and not the method."""
        return [key for key in self.keys if key.split(".")[0] in PROBLEM_ROOTS]

    @cached_property
    def prompt_means(self) -> dict[str, pd.DataFrame]:
        """What each run scored at each held-out prompt (rlpref.report.by_prompt), which several sections read."""
        return prompt_means(self.answers)

    @property
    def done(self) -> pd.DataFrame:
        return self.runs[self.runs["status"] == "done"]

    @property
    def unfinished(self) -> pd.DataFrame:
        """Runs that stand in no average: failed, interrupted, running, or the same run a second time."""
        return self.runs[self.runs["status"] != "done"]


def load(*folders: str | PathLike) -> Sweep:
    """All runs under the given sweep folders or run folders.

    Example: `load("runs/demo").runs.groupby("method")["exact/regret"].mean()`

    A damaged run is a row with status `failed` and the reason in `error`. Raises NoRuns, which names the
    folder, where one does not exist or holds no run.
    """
    roots = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    names = _root_names(roots)
    found = [(root, read_run(folder)) for root in roots for folder in _runs_of(root)]
    rows = [_row(root, run, names[root], len(roots) > 1) for root, run in found]
    flat = [flatten(run.config) | row for (_, run), row in zip(found, rows)]
    overrides = {root: read_overrides(root) for root in roots}
    readable = [config for config in flat if config["method"] is not None]
    keys = swept_keys(readable, [item for items in overrides.values() for item in items])
    if len(roots) > 1 and _repeated(readable, keys):
        keys = [*keys, "sweep"]
    runs = _runs_frame(found, rows, flat, keys)
    identity = runs.set_index("run", drop=False)[[*IDENTITY, *keys]].to_dict("index")
    return Sweep(
        runs=runs,
        history=_stack(identity, {row["run"]: run.metrics for (_, run), row in zip(found, rows)}),
        samples=_stack(identity, {row["run"]: run.samples for (_, run), row in zip(found, rows)}),
        answers=_stack(identity, {row["run"]: run.answers for (_, run), row in zip(found, rows)}),
        pairs=_stack(identity, {row["run"]: run.pairs for (_, run), row in zip(found, rows)}),
        frontier=_frontier(found, rows),
        missing=_missing(roots, readable, keys, overrides),
        cards={row["run"]: run.card for (_, run), row in zip(found, rows)},
        configs={row["run"]: run.config_text for (_, run), row in zip(found, rows)},
        keys=keys,
        folders=roots,
    )


def evaluations(history: pd.DataFrame) -> pd.DataFrame:
    """The rows of `history` that come from the evaluator."""
    columns = [name for name in history.columns if name.startswith(("eval/", "exact/"))]
    return history[history[columns].notna().any(axis=1)] if columns else history.iloc[:0]


def _runs_of(root: Path) -> list[Path]:
    if not root.is_dir():
        raise NoRuns(f"{root} is not a folder")
    folders = list(find_runs(root))
    if not folders:
        raise NoRuns(f"{root} holds no run (a folder with config.yaml and status.json)")
    return folders


def _root_names(roots: list[Path]) -> dict[Path, str]:
    """The last part of each path, and so much before it as tells them apart: two sweeps may have one name."""
    parts = 1
    while len({root.resolve().parts[-parts:] for root in roots}) < len(roots):
        parts += 1
    return {root: "/".join(root.resolve().parts[-parts:]) for root in roots}


def _row(root: Path, run: RunFolder, sweep: str, several: bool) -> dict:
    """The identity of a run and how it ended; adds to its damage what the config lacks."""
    inside = run.folder.relative_to(root).as_posix()
    name = sweep if inside == "." else f"{sweep}/{inside}" if several else inside
    method, beta, seed = _identity(run)
    status, error = run.status.get("status"), run.status.get("error")
    if run.damage:
        status, error = "failed", "damaged folder: " + "; ".join(run.damage)
    return {
        "run": name,
        "sweep": sweep,
        "folder": str(run.folder),
        "method": method,
        "beta": beta,
        "seed": seed,
        "status": status,
        "error": error or _not_finite(run),
    }


def _identity(run: RunFolder) -> tuple[str | None, float, int | None]:
    algorithm = run.config.get("algorithm")
    method = algorithm.get("name") if isinstance(algorithm, dict) else None
    beta, seed = run.config.get("beta"), run.config.get("seed")
    if seed is not None and not isinstance(seed, int):
        run.damage.append(f"config.yaml: seed is {seed!r}, not a whole number")
        method, seed = None, None
    if not isinstance(method, str):
        method = None
        run.damage += ["config.yaml: algorithm.name is missing"] if run.config else []
    try:
        beta = math.nan if beta is None else float(beta)
    except (TypeError, ValueError):
        run.damage.append(f"config.yaml: beta is {beta!r}, not a number")
        method, beta = None, math.nan
    return method, beta, seed


def _not_finite(run: RunFolder) -> str | None:
    bad = [key for key, value in _last(run).items() if isinstance(value, float) and not math.isfinite(value)]
    return f"not finite at the end: {', '.join(bad)}" if bad else None


def _last(run: RunFolder) -> dict:
    """The last evaluation row; summary.json adds what that row has not (metrics.jsonl is the truth)."""
    rows = (row for row in reversed(run.metrics) if any(k.startswith(("eval/", "exact/")) for k in row))
    return run.summary | next(rows, {})


def _repeated(flat: list[dict], keys: list[str]) -> bool:
    counts = Counter(tuple(str(run.get(key)) for key in ("method", "beta", "seed", *keys)) for run in flat)
    return max(counts.values(), default=0) > 1


def _runs_frame(found: list, rows: list[dict], flat: list[dict], keys: list[str]) -> pd.DataFrame:
    places = [tuple(str(config.get(key)) for key in ("method", "beta", "seed", *keys)) for config in flat]
    counted = _newest(places, found, rows)
    table = []
    for (_, run), row, config, place in zip(found, rows, flat, places):
        entry = row | {key: config.get(key) for key in keys}
        if entry["status"] == "done" and counted[place] != row["run"]:
            entry |= {"status": "duplicate", "error": f"same settings as {counted[place]}, which is newer"}
        metrics = {key: value for key, value in _last(run).items() if key not in entry}
        table.append(entry | {"config_hash": run.status.get("config_hash")} | metrics)
    return pd.DataFrame(table).astype({"seed": "Int64"})


def _newest(places: list[tuple], found: list, rows: list[dict]) -> dict[tuple, str]:
    """Settings -> the run that counts where several finished runs have them: a study that is made again in
    the same folder replaces its older runs."""
    done = [
        (str(run.card.get("started")), place, row["run"])
        for place, (_, run), row in zip(places, found, rows)
        if row["status"] == "done"
    ]
    return {place: name for _, place, name in sorted(done, key=lambda item: item[0])}


def _stack(identity: dict[str, dict], rows: dict[str, list[dict]]) -> pd.DataFrame:
    table = [row | identity[run] for run, of_run in rows.items() for row in of_run]
    frame = pd.DataFrame(table)
    first = list(next(iter(identity.values())))
    return frame.reindex(columns=[*first, *(name for name in frame.columns if name not in first)])


def _frontier(found: list, rows: list[dict]) -> pd.DataFrame | None:
    named = [(row["run"], run.frontier) for (_, run), row in zip(found, rows) if run.frontier]
    frames = [pd.DataFrame(frontier).assign(run=name) for name, frontier in named]
    return pd.concat(frames, ignore_index=True) if frames else None


def _missing(roots: list[Path], flat: list[dict], keys: list[str], overrides: dict) -> pd.DataFrame:
    table = [
        run
        for root in roots
        for run in missing_runs(
            [config for config in flat if Path(config["folder"]).is_relative_to(root)], keys, overrides[root]
        )
    ]
    return pd.DataFrame(table, columns=["method", "beta", "seed", *keys])
