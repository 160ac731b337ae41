"""What the figures draw: evaluation rows, problem by problem, under the same names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rlpref.report.frames import Sweep, evaluations
from rlpref.report.statistics import matching
from rlpref.report.tables import short_name, text


def problems(sweep: Sweep, needed: tuple[str, ...]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, evaluation rows) of each problem; the rows have kl, reward, regret, win_rate, steps, samples,
    labels, `exact`, `done`, and `setting`: what was swept beyond method and beta, as text."""
    history = measured(evaluations(sweep.history))
    status = sweep.runs.set_index("run")["status"]
    history["done"] = history["run"].map(status) == "done"
    history = history[history["method"].notna() & (history["run"].map(status) != "duplicate")]
    history = history.dropna(subset=list(needed))
    history["setting"] = _setting(history, [key for key in sweep.keys if key not in sweep.problem_keys])
    keys = sweep.problem_keys
    for cell in history[keys].drop_duplicates().to_dict("records") if keys else [{}]:
        rows = matching(history, cell)
        if len(rows):
            yield ", ".join(f"{short_name(key)} {text(value)}" for key, value in cell.items()), rows


def measured(history: pd.DataFrame) -> pd.DataFrame:
    """Exact values where a problem has them, else estimates, under one name; costs likewise."""
    history = history.reset_index(drop=True).copy()
    nothing = pd.Series(np.nan, index=history.index)
    exact = history.get("exact/reward", nothing).notna()
    for name in ("reward", "kl"):
        estimate = history.get(f"eval/{name}", nothing)
        history[name] = history.get(f"exact/{name}", nothing).where(exact, estimate)
    history["exact"] = exact
    history["regret"] = history.get("exact/regret", nothing)
    history["win_rate"] = history.get("eval/win_rate", nothing).mask(exact)
    history["steps"] = history.get("cost/steps", nothing).fillna(history.get("step", nothing))
    history["samples"] = history.get("cost/samples", nothing)
    history["labels"] = history.get("cost/labels", nothing)
    return history


def _setting(history: pd.DataFrame, keys: list[str]) -> list[str]:
    """'rounds 3' where algorithm.rounds is swept; a key that a method does not have is left out."""
    return [
        ", ".join(f"{short_name(key)} {text(value)}" for key, value in zip(keys, row) if not pd.isna(value))
        for row in history[keys].values.tolist()
    ]
