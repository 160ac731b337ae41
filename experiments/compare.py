"""Methods under one protocol: the same budget, the same small grid, tuned on seeds apart from those that are reported.

    python experiments/compare.py
    python experiments/compare.py compare.methods=[dpo,simpo,ppo] compare.equal=steps compare.amount=400 beta=0.2
    python experiments/compare.py compare.kl=1.0 'compare.grid=["beta=0.05,0.1,0.2,0.4,0.8,1.6"]'

Settings as on the command line of `rlpref`; the section `compare` of conf/experiment/compare.yaml is the protocol.
1. Every method runs every point of its grid with every tuning seed, under <hydra.sweep.dir>/tuning.
2. Of each method the point is taken that is best in the mean over the tuning seeds: by reward - beta KL, at the beta
   of the comparison, whatever beta a grid tries; with `compare.kl` by the KL. compare.json keeps all of it.
3. That point runs with the final seeds, in <hydra.sweep.dir>; the report reads these runs alone and chooses nothing.
The same command goes on where it was stopped. Exit code 1 where a method or a final run has no result.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from comparison import Comparison, Plan, Trial, read

from rlpref.binding import ConfigError
from rlpref.jobs import side_by_side
from rlpref.logging.folder import read_json, write_json
from rlpref.report import build, load
from rlpref.report.protocol import section
from rlpref.run import run_side_by_side

Result = dict | Exception


def measured(summary: dict, plan: Plan, beta: float) -> dict[str, float]:
    """reward, KL and reward - beta KL of a finished run; exact values where the measure has them."""
    exact = plan.measure == "reward" and "exact/reward" in summary
    where = "exact" if exact else "eval"
    if f"{where}/{plan.measure}" not in summary:
        raise ConfigError(f"no {where}/{plan.measure} was logged: compare.measure asks for it.")
    reward, kl = summary[f"{where}/{plan.measure}"], summary[f"{where}/kl"]
    return {"reward": reward, "kl": kl, "objective": reward - beta * kl}


def tried(comparison: Comparison, trials: list[Trial], results: list[Result]) -> list[dict]:
    """One row per method and point: means over the tuning seeds; `failed` names those without a result, and then there
    is no mean."""
    rows: dict[tuple, dict] = {}
    for trial, result in zip(trials, results):
        key = trial.method, tuple(trial.point.items())
        row = rows.setdefault(key, {"method": trial.method, "settings": trial.point, "runs": [], "failed": []})
        if isinstance(result, Exception):
            row["failed"].append(f"seed {trial.seed}: {type(result).__name__}: {result}")
        else:
            row["runs"].append(measured(result, comparison.plan, comparison.beta))
    return [_means(row) | {"name": comparison.name(row["method"])} for row in rows.values()]


def _means(row: dict) -> dict:
    runs = row.pop("runs")
    whole = not row["failed"] and all(math.isfinite(value) for run in runs for value in run.values())
    means = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]} if whole else {}
    return row | {key: means.get(key) for key in ("reward", "kl", "objective")}


def chosen(rows: list[dict], plan: Plan) -> dict[str, dict]:
    """method -> its best row, of those with a result: the largest objective, or where a KL is asked for the largest
    reward at that KL, and where no point comes there the nearest KL (`reached` is false then)."""
    found = {}
    for method in plan.methods:
        own = [row for row in rows if row["method"] == method and row["objective"] is not None]
        if not own:
            continue
        if plan.kl is None:
            found[method] = max(own, key=lambda row: row["objective"])
            continue
        near = [row for row in own if reaches(row["kl"], plan)]
        best = max(near, key=lambda row: row["reward"]) if near else min(own, key=lambda row: abs(row["kl"] - plan.kl))
        found[method] = best | {"reached": bool(near)}
    return {method: row | {"at_end": _ends(row["settings"], plan.grid_of(method))} for method, row in found.items()}


def reaches(kl: float, plan: Plan) -> bool:
    return abs(kl - plan.kl) <= plan.kl_tolerance * plan.kl


def _ends(point: dict, grid: list[dict]) -> list[str]:
    """The axes of numbers at an end of which the point lies: the best may lie beyond."""
    ends = []
    for key, value in point.items():
        values = {other[key] for other in grid}
        if len(values) > 1 and all(isinstance(each, int | float) for each in values):
            ends += [key] if value in (min(values), max(values)) else []
    return ends


def criterion(plan: Plan, beta: float) -> str:
    """In words."""
    if plan.kl is not None:
        at = f"within {plan.kl_tolerance:.0%} of a KL of {plan.kl:g} nats"
        return f"the largest {plan.measure} {at}, else the nearest KL"
    return f"the largest {plan.measure} - {beta:g} KL"


def train(trials: list[Trial]) -> list[Result]:
    """What came out of each, in their order; runs that are done are not repeated."""
    found: dict[Path, Result] = {}
    for together in side_by_side([trial.job for trial in trials]):
        for job, result in zip(together, run_side_by_side(together)):
            found[job.folder] = result
            _tell(job.folder, result)
    return [found[trial.job.folder] for trial in trials]


def _tell(folder: Path, result: Result) -> None:
    if isinstance(result, Exception):
        print(f"{folder}: {type(result).__name__}: {result}", file=sys.stderr, flush=True)
        return
    keys = [key for key in ("exact/reward", "exact/kl", "eval/reward", "eval/kl") if key in result][:2]
    print(f"{folder}: " + "  ".join(f"{key} {result[key]:.4f}" for key in keys), flush=True)


def keep_plan(file: Path, record: dict) -> None:
    """Writes the plan, or finds it there. Raises ConfigError where the folder holds another one."""
    if file.exists():
        before = read_json(file)["plan"]
        if other := [key for key in {**before, **record} if before.get(key) != record.get(key)]:
            raise ConfigError(f"{file} was made with another {', '.join(other)}: choose another hydra.sweep.dir.")
    else:
        write_json(file, {"plan": record})


def refuse_other_finals(comparison: Comparison, before: dict[str, dict], now: dict[str, dict]) -> None:
    """Raises ConfigError where a tuning run that was tried again changed the choice, and runs of the earlier one are
    there: they would stand in the averages."""
    settings = [{method: row["settings"] for method, row in best.items()} for best in (before, now)]
    earlier, own = ({trial.job.folder for trial in comparison.finals(each)} for each in settings)
    if stale := sorted(str(folder) for folder in earlier - own if folder.exists()):
        raise ConfigError("another point is chosen now; remove the final runs of the earlier one: " + ", ".join(stale))


def compare(overrides: Iterable[str]) -> bool:
    """Carries the comparison out, and writes its report; whether every method and every run has a result."""
    comparison = read(list(overrides))
    tuning, plan = comparison.tuning(), comparison.plan
    file, record = comparison.folder / "compare.json", comparison.record()
    keep_plan(file, record)
    rows = tried(comparison, tuning, train(tuning))
    best = chosen(rows, plan)
    refuse_other_finals(comparison, read_json(file).get("chosen", {}), best)
    written = {"plan": record, "criterion": criterion(plan, comparison.beta), "tuning": rows, "chosen": best}
    write_json(file, written)
    if not best:
        raise ConfigError(
            f"no tuning run has a result: status.json of the runs in {comparison.folder / 'tuning'} says why."
        )
    asked = [f"algorithm={','.join(map(comparison.name, plan.methods))}", f"seed={','.join(map(str, plan.seeds))}"]
    write_json(comparison.folder / "sweep.json", {"overrides": asked})
    finals = comparison.finals({method: row["settings"] for method, row in best.items()})
    results = train(finals)
    build(comparison.folder)
    found = section(load(comparison.folder))
    for note in found.notes if found else ():
        print(note)
    lost = [f"{method}: no point of its grid has a result" for method in plan.methods if method not in best]
    lost += [f"{trial.job.folder}: {result}" for trial, result in zip(finals, results) if isinstance(result, Exception)]
    if lost:
        print("without a result:\n  " + "\n  ".join(lost), file=sys.stderr)
    return not lost


def _stop(signum, frame) -> None:
    raise KeyboardInterrupt


def main() -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        complete = compare(sys.argv[1:])
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on.", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0 if complete else 1)


if __name__ == "__main__":
    main()
