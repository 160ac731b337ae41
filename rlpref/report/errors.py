"""Where the error of a mean comes from: the answers that were sampled, the prompts that were held out, the seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from rlpref.report.by_prompt import asked_alike
from rlpref.report.frames import Sweep
from rlpref.report.section import Section, Table
from rlpref.report.statistics import METRICS, matching
from rlpref.report.tables import TITLES, short_name, text

MEASURED = ("reward", "kl", "win_rate")  # of each prompt, from answers.jsonl
SHOWN = 12  # rows on the page with every metric; of more, the first metric alone


def error_sources(sweep: Sweep) -> pd.DataFrame:
    """Monte Carlo error and seed error apart: one row per cell of finished runs and sampled metric.

    Columns: the problem's keys, method, beta, the other swept keys, `metric`, `seeds`, `prompts`; `sd`, the standard
    deviation over seeds of what was measured; `answers_se`, the part of it that is the luck of the answers (root mean
    square over runs of the standard error with these prompts); `seeds_sd`, what is left for the seeds themselves,
    sqrt(max(sd^2 - answers_se^2, 0)), the method of moments; `prompts_se`, what the choice of held-out prompts adds,
    which is the same error in all seeds and does not show in `sd`; and the expected half-width of the 95% interval over
    seeds and prompts `now`, with `twice_seeds`, and with `twice_prompts`. NaN for what one seed or one answer to a
    prompt cannot tell. On the testbed, where prompts are all there are, only win rates are sampled.

    Example: `error_sources(load("runs/demo"))[["method", "metric", "sd", "answers_se", "seeds_sd"]]`
    """
    means, done = sweep.prompt_means, sweep.done
    keys = [*sweep.problem_keys, "method", "beta", *(key for key in sweep.keys if key not in sweep.problem_keys)]
    exact = done["exact/reward"].notna() if "exact/reward" in done else pd.Series(False, index=done.index)
    rows = []
    for cell in done[keys].drop_duplicates().to_dict("records"):
        runs = matching(done, cell)
        enumerated = bool(exact[runs.index].all())
        for metric in ("win_rate",) if enumerated else MEASURED:
            values, noise = (asked_alike(means, runs["run"], name) for name in (metric, f"{metric}_noise"))
            if values is not None:
                rows.append(cell | {"metric": metric} | _sources(values, noise, enumerated))
    return pd.DataFrame(rows)


def section(sweep: Sweep) -> Section | None:
    """None where no metric is sampled, or every cell has one run alone."""
    table = error_sources(sweep)
    if table.empty or (table["seeds"] < 2).all():
        return None
    shown = table if len(table) <= SHOWN else table[table["metric"] == table["metric"].iloc[0]]
    return Section(
        title="Where the error comes from",
        notes=(
            "The spread over seeds has a part that is only the luck of the sampled answers; what is left is that of "
            "the seeds (method of moments: 0 where it cannot be told from the answers' luck). Which prompts were held "
            "out is an error that all seeds share. The last columns are the half-width of a 95% interval over seeds "
            "and prompts as it is to be expected now, and with more of either.",
        ),
        tables=(Table("errors", table, "Error of a mean by its source.", _readable(shown)),),
    )


def _sources(values: np.ndarray, noise: np.ndarray | None, enumerated: bool) -> dict[str, float]:
    """Of [seeds, prompts] means over answers and their squared standard errors."""
    seeds, prompts = values.shape
    answers = np.nan if noise is None else float(noise.mean() / prompts)  # variance, of one run
    spread = float(values.mean(1).var(ddof=1)) if seeds > 1 else np.nan
    own = max(spread - answers, 0.0) if seeds > 1 and noise is not None else np.nan
    shared = 0.0 if enumerated else _prompt_variance(values)
    return {
        "seeds": seeds,
        "prompts": prompts,
        "sd": np.sqrt(spread),
        "answers_se": np.sqrt(answers),
        "seeds_sd": np.sqrt(own),
        "prompts_se": np.nan if enumerated else np.sqrt(shared),
        "now": _half_width(own, answers, shared, seeds, prompts, 1, 1),
        "twice_seeds": _half_width(own, answers, shared, seeds, prompts, 2, 1),
        "twice_prompts": np.nan if enumerated else _half_width(own, answers, shared, seeds, prompts, 1, 2),
    }


def _prompt_variance(values: np.ndarray) -> float:
    """What the choice of prompts adds to the variance of the mean over seeds: of the prompts' means, less what of these
    is the rest's (two-way components of variance)."""
    seeds, prompts = values.shape
    of_prompt = values.mean(0)
    if prompts < 2:
        return np.nan
    if seeds < 2:
        return float(of_prompt.var(ddof=1) / prompts)
    rest = values - values.mean(1, keepdims=True) - of_prompt + values.mean()
    mean_square = (rest**2).sum() / ((seeds - 1) * (prompts - 1))
    return max(float(of_prompt.var(ddof=1)) - mean_square / seeds, 0.0) / prompts


def _half_width(
    own: float, answers: float, shared: float, seeds: int, prompts: int, more_seeds: int, more_prompts: int
) -> float:
    """t times the standard error with so many times the seeds and the prompts; Satterthwaite's degrees of freedom."""
    seeds, prompts = seeds * more_seeds, prompts * more_prompts
    of_seeds = (own + answers / more_prompts) / seeds
    of_prompts = shared / more_prompts
    if np.isnan(of_seeds + of_prompts) or of_seeds + of_prompts == 0:
        return np.nan
    terms = of_seeds**2 / (seeds - 1) + of_prompts**2 / max(prompts - 1, 1)
    return float(stdtrit((of_seeds + of_prompts) ** 2 / terms, 0.975) * np.sqrt(of_seeds + of_prompts))


HEADS = {
    "sd": "sd over seeds",
    "answers_se": "of it answers",
    "seeds_sd": "of it seeds",
    "prompts_se": "se over prompts",
    "now": "± now",
    "twice_seeds": "± twice the seeds",
    "twice_prompts": "± twice the prompts",
}


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for name in table.columns:
        values = [TITLES[value] if name == "metric" and value in METRICS else value for value in table[name]]
        if name in HEADS and table[name].isna().all():
            continue
        columns[HEADS.get(name) or short_name(name)] = [text(value) for value in values]
    return pd.DataFrame(columns)
