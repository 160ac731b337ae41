"""From runs to numbers with intervals: the headline table and the costs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from rlpref.report.by_prompt import asked_alike
from rlpref.report.frames import Sweep, evaluations
from rlpref.report.intervals import Interval, mean_estimate, mean_interval, prompt_interval, share_interval

# Column of the table -> where it is read. Exact values are used where the model can be enumerated.
ALWAYS = {"accuracy": "eval/accuracy", "reward_accuracy": "eval/reward_model/accuracy"}
EXACT = {"reward": "exact/reward", "kl": "exact/kl", "regret": "exact/regret", **ALWAYS}
SAMPLED = {
    "reward": "eval/reward",
    "proxy_reward": "eval/proxy_reward",
    "kl": "eval/kl",
    "win_rate": "eval/win_rate",
    **ALWAYS,
}
METRICS = ("reward", "proxy_reward", "kl", "regret", "win_rate", "accuracy", "reward_accuracy")
SHARES = ("win_rate", "accuracy", "reward_accuracy")  # in [0, 1]
COSTS = {
    "optimizer steps": "cost/steps",
    "samples": "cost/samples",
    "reward labels": "cost/labels",
    "tokens": "cost/tokens",
    "seconds": "time/seconds",
    "seconds without evaluation": "time/training_seconds",
    "wall seconds": "wall_seconds",
}


def headline(sweep: Sweep) -> pd.DataFrame:
    """One row per method, beta and swept setting, after a `reference` row per problem.

    Example: `headline(load("runs/demo")).set_index(["method", "beta"])[["reward", "reward_low", "reward_high"]]`

    Columns: the problem's keys, method, beta, the other swept keys, `n` (runs that are done); for each of
    reward, proxy_reward, kl (nats per answer), regret, win_rate, accuracy and reward_accuracy that some run
    has: its mean over seeds and `_low`, `_high` of the 95% interval over seeds (Student's t: of other seeds, on these
    prompts), and where nothing is exact `_prompts_low`, `_prompts_high` of the 95% interval over prompts (of these
    runs, on other prompts) and `_se`, its standard error; `source` (exact or sampled); `note`, which names every run
    of the cell that is missing, failed or unfinished. A cell without a finished run keeps its row, with n = 0.
    """
    problem, others = sweep.problem_keys, [key for key in sweep.keys if key not in sweep.problem_keys]
    keys = [*problem, "method", "beta", *others]
    known = sweep.runs[sweep.runs["method"].notna()]
    cells = pd.concat([known[keys], sweep.missing[keys]] if len(sweep.missing) else [known[keys]])
    cells = cells.drop_duplicates().sort_values(keys, kind="stable", key=_comparable)
    means = sweep.prompt_means
    rows = [_cell(sweep, means, cell) for cell in cells.to_dict("records")]
    history = evaluations(sweep.history)
    history = history[history["run"].isin(sweep.done["run"])]
    references = [_reference(matching(history, cell), means, cell) for cell in _distinct(cells, problem)]
    table = pd.DataFrame([row for row in references if row] + rows)
    if problem:
        table = table.sort_values(problem, kind="stable", key=_comparable)
    columns = [*keys, "n", *_metric_columns(table), "source", "note"]
    return table.reindex(columns=columns).reset_index(drop=True)


def costs(sweep: Sweep) -> pd.DataFrame:
    """What a finished run of each method costs: means over its runs, one column per cost that was logged.

    Example: `costs(load("runs/demo")).set_index("method")["reward labels"]`
    """
    keys = [*sweep.problem_keys, "method"]
    logged = {name: key for name, key in COSTS.items() if key in sweep.runs}
    groups = sweep.done.groupby(keys, dropna=False)
    table = groups[list(logged.values())].mean().rename(columns={key: name for name, key in logged.items()})
    table.insert(0, "runs", groups.size())
    return table.reset_index()


def matching(frame: pd.DataFrame, cell: dict) -> pd.DataFrame:
    """The rows whose columns equal the cell's values, where NaN equals NaN."""
    keep = np.ones(len(frame), dtype=bool)
    for key, value in cell.items():
        same = frame[key].isna() if pd.isna(value) else frame[key] == value
        keep &= same.to_numpy(dtype=bool, na_value=False)
    return frame[keep]


def _cell(sweep: Sweep, means: dict[str, pd.DataFrame], cell: dict) -> dict:
    runs = matching(sweep.runs, cell)
    done = runs[runs["status"] == "done"]
    exact = "exact/reward" in done and len(done) > 0 and bool(done["exact/reward"].notna().all())
    row = {**cell, "n": len(done), "source": ("exact" if exact else "sampled") if len(done) else ""}
    for name, column in (EXACT if exact else SAMPLED).items():
        row |= _columns(name, done.get(column, []))
        if not exact and f"{column}_se" in done:
            row |= _over_prompts(name, row[name], done[f"{column}_se"], asked_alike(means, done["run"], name))
    return row | {"note": _note(runs, matching(sweep.missing, cell))}


def _columns(name: str, values: Iterable[float]) -> dict[str, float]:
    mean, low, high = mean_interval(values)
    if name in SHARES:
        low, high = np.clip([low, high], 0.0, 1.0)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _over_prompts(name: str, mean: float, errors: pd.Series, asked: np.ndarray | None) -> dict[str, float]:
    """The interval over prompts: from what the runs scored on average at each of them, `asked` [seeds, prompts]; where
    that is not known, from their standard errors."""
    if asked is None:
        se = errors.mean()
        found = prompt_interval(mean, se)
        if name in SHARES:
            found = Interval(mean, *np.clip(found[1:], 0.0, 1.0))
    else:
        of_prompt = asked.mean(0)
        se = mean_estimate(of_prompt).se
        found = share_interval(of_prompt) if name in SHARES else mean_interval(of_prompt)
    return {f"{name}_se": se, f"{name}_prompts_low": found.low, f"{name}_prompts_high": found.high}


def _note(runs: pd.DataFrame, missing: pd.DataFrame) -> str:
    """'failed: a, b; missing: seed 2', and done runs that ended in a number that is not finite."""
    others = runs[runs["status"] != "done"]
    parts = (
        [f"{status}: {', '.join(names)}" for status, names in others.groupby("status")["run"]] if len(others) else []
    )
    if len(missing):
        parts.append("missing: " + ", ".join(f"seed {seed}" for seed in missing["seed"]))
    odd = runs[(runs["status"] == "done") & runs["error"].notna()]
    return "; ".join([*parts, *(f"{run}: {error}" for run, error in zip(odd["run"], odd["error"]))])


def _reference(history: pd.DataFrame, means: dict[str, pd.DataFrame], cell: dict) -> dict | None:
    """The policy before training: the reference's own reward, once per seed, from the evaluations of the finished runs
    of one problem."""
    start = history[history["step"] == 0] if "step" in history else history
    last = history.groupby("run").tail(1)
    places = ((start, "exact/reward"), (last, "eval/ref_reward"), (start, "eval/reward"))
    for rows, column in places:
        if column in rows and rows[column].notna().any():
            per_seed = rows.groupby("seed", dropna=False)[column].mean()
            row = {**cell, "method": "reference", "beta": np.nan, "n": len(per_seed)}
            row |= _columns("reward", per_seed) | {"kl": 0.0}
            if f"{column}_se" in rows:
                asked = asked_alike(means, rows.drop_duplicates("seed")["run"], "ref_reward")
                row |= _over_prompts("reward", row["reward"], rows[f"{column}_se"], asked)
            source = column.split("/")[0].replace("eval", "sampled")
            return row | {"source": source, "note": "before training"}
    return None


def _comparable(column: pd.Series) -> pd.Series:
    """A swept key may hold numbers in one run and names in another."""
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)


def _distinct(cells: pd.DataFrame, problem: list[str]) -> list[dict]:
    return cells[problem].drop_duplicates().to_dict("records") if problem else [{}]


def _metric_columns(table: pd.DataFrame) -> list[str]:
    present = [name for name in METRICS if name in table and table[name].notna().any()]
    over_prompts = [f"{name}{end}" for name in present for end in ("_se", "_prompts_low", "_prompts_high")]
    some = {name for name in over_prompts if name in table and table[name].notna().any()}
    columns = [
        f"{name}{end}" for name in present for end in ("", "_low", "_high", "_se", "_prompts_low", "_prompts_high")
    ]
    return [name for name in columns if name in some or name not in over_prompts]
