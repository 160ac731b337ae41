"""What the figures draw: evaluation rows, problem by problem, under the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from rlpref.report.frames import Sweep, evaluations
from rlpref.report.intervals import Interval, mean_interval, prompt_interval
from rlpref.report.statistics import matching
from rlpref.report.tables import short_name, text

# Over two seeds Student's t is 12.7 standard errors wide, a bar across the whole figure.
SEEDS_FOR_AN_INTERVAL = 3


def problems(sweep: Sweep, needed: tuple[str, ...]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, evaluation rows) of each problem; the rows have kl, reward, win_rate, their `_se`, regret, steps,
    samples, labels, `exact`, `done`, and `setting`: what was swept beyond method and beta, as text."""
    history = measured(evaluations(sweep.history))
    status = sweep.runs.set_index("run")["status"]
    history["done"] = history["run"].map(status) == "done"
    history = history[history["method"].notna() & (history["run"].map(status) != "duplicate")]
    history = history.dropna(subset=list(needed))
    yield from _by_problem(sweep, history)


def finished(sweep: Sweep) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, its runs that are done) of each problem: rows of `sweep.runs` with `setting`, as in `problems`."""
    yield from _by_problem(sweep, sweep.done[sweep.done["method"].notna()].copy())


def numbered(panels: Sequence[tuple]) -> Iterator[tuple]:
    """Of each panel, a tuple whose first entry is the title of its problem: what the names of its files end with
    ("-1"), what its captions begin with ("model lm: "), and the panel's own entries. Nothing is added where there is
    nothing to tell apart."""
    for number, panel in enumerate(panels):
        yield "" if len(panels) == 1 else f"-{number}", f"{panel[0]}: " if panel[0] else "", *panel


def is_exact(run: Mapping) -> bool:
    """Whether a row of `sweep.runs` is of a testbed, whose prompts are all there are."""
    return not pd.isna(run.get("exact/reward", np.nan))


def data_hash(sweep: Sweep, run: str) -> str:
    """Of the rows of a run's data, in short: prompts and pairs of the same number are the same where it is the same.
    Empty where the run did not record it."""
    data = sweep.cards.get(run, {}).get("data")
    return str(data.get("rows_hash", ""))[:8] if isinstance(data, dict) else ""


def _by_problem(sweep: Sweep, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    rows["setting"] = _setting(rows, [key for key in sweep.keys if key not in sweep.problem_keys])
    keys = sweep.problem_keys
    for cell in rows[keys].drop_duplicates().to_dict("records") if keys else [{}]:
        own = matching(rows, cell)
        if len(own):
            yield ", ".join(f"{short_name(key)} {text(value)}" for key, value in cell.items()), own


def measured(history: pd.DataFrame) -> pd.DataFrame:
    """Exact values where a problem has them, else estimates, under one name; costs likewise."""
    history = history.reset_index(drop=True).copy()
    nothing = pd.Series(np.nan, index=history.index)
    exact = history.get("exact/reward", nothing).notna()
    for name in ("reward", "kl"):
        estimate = history.get(f"eval/{name}", nothing)
        history[name] = history.get(f"exact/{name}", nothing).where(exact, estimate)
        history[f"{name}_se"] = history.get(f"eval/{name}_se", nothing).mask(exact)
    history["exact"] = exact
    history["regret"] = history.get("exact/regret", nothing)
    for name in ("win_rate", "win_rate_se"):
        history[name] = history.get(f"eval/{name}", nothing).mask(exact)
    history["steps"] = history.get("cost/steps", nothing).fillna(history.get("step", nothing))
    history["samples"] = history.get("cost/samples", nothing)
    history["labels"] = history.get("cost/labels", nothing)
    return history


def interval(runs: pd.DataFrame, name: str) -> Interval:
    """95% interval of one of the columns of `problems`: over seeds from three runs on, over prompts below
    (NaN where there is neither). A run without the value is none of them."""
    runs = runs.dropna(subset=[name])
    if len(runs) >= SEEDS_FOR_AN_INTERVAL or f"{name}_se" not in runs:
        return mean_interval(runs[name])
    return prompt_interval(runs[name].mean(), runs[f"{name}_se"].mean())


def spoken(row: Mapping, *lines: str) -> str:
    """What a chart says of a point: method, beta and what else was swept, the seed where it has one, then `lines`."""
    beta = "" if pd.isna(row["beta"]) else f"β {text(row['beta'])}"
    seed = f"seed {text(row['seed'])}" if "seed" in row and not pd.isna(row["seed"]) else ""
    return "\n".join([", ".join(part for part in (row["method"], beta, row["setting"], seed) if part), *lines])


def bars(sweep: Sweep) -> str:
    """What the intervals in a figure are; exact values have them over seeds only."""
    exact = sweep.frontier is not None
    return "" if exact else "Intervals: over seeds where there are three or more, else over prompts."


def _setting(history: pd.DataFrame, keys: list[str]) -> list[str]:
    """'rounds 3' where algorithm.rounds is swept; a key that a method does not have is left out."""
    return [
        ", ".join(f"{short_name(key)} {text(value)}" for key, value in zip(keys, row) if not pd.isna(value))
        for row in history[keys].values.tolist()
    ]
