"""Which method is better, pair by pair: differences at the same seeds and prompts, intervals and Holm's p values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from rlpref.report.bootstrap import holm, paired_bootstrap, probability_of_improvement
from rlpref.report.by_prompt import asked_alike
from rlpref.report.frames import Sweep
from rlpref.report.intervals import Estimate, Interval, crossed_estimate, mean_estimate
from rlpref.report.panels import measured
from rlpref.report.section import Claim, Section, Table
from rlpref.report.statistics import matching
from rlpref.report.tables import interval_text, short_name, text

COMPARED = {"reward": "reward", "objective": "reward - beta KL", "win_rate": "win rate"}
SEEDS_FOR_BOTH = 2  # of one, only the prompts' error is known, and no verdict can rest on it
ALL_PAIRS = 4  # of so many contenders every pair is shown; of more, each against the best
ERROR = 0.05


def pairwise(sweep: Sweep) -> pd.DataFrame:
    """One row per problem, beta, metric and pair of methods (or settings), the higher mean first.

    Columns: the problem's keys, `beta` (NaN where methods have their own), `metric`, `ours`, `theirs`, `seeds` (that
    both have finished), `prompts`; `difference` of the means at these seeds; `seeds_low`, `seeds_high` (paired
    Student's t: other seeds, the same prompts); `prompts_low`, `prompts_high` (paired bootstrap: these runs, other
    prompts; NaN where the prompts are all there are, or differ between runs); `low`, `high` and `p` of what the
    verdict rests on, named in `basis`: seeds where values are exact; seeds and prompts (`crossed_estimate`) from two
    seeds on; prompts alone with one; "seeds, these prompts" where it is not known what runs scored at each prompt.
    `p` is NaN with one seed, where the differences do not vary, and where a finished run lacks a metric that its other
    seeds have: what is left would be a choice of survivors. `p_holm`, adjusted over all pairs of the problem and
    metric; `improvement`, the probability that a run of ours scores higher than one of theirs; `verdict`, holds where
    p_holm < 0.05, else open. Objectives are compared at one beta alone: of two, they are in different units.

    Example: `pairwise(load("runs/demo")).query("metric == 'reward' and verdict == 'holds'")`
    """
    runs = _scored(sweep)
    means = _with_objective(sweep.prompt_means, runs)
    rows = []
    for problem, beta, pairs in _fields(sweep, runs):
        for pair in pairs:
            for metric in COMPARED:
                if row := _compare(dict(pair), metric, means):
                    rows.append(problem | {"beta": beta, "metric": metric} | row)
    table = pd.DataFrame(rows)
    if len(table):
        family = [*sweep.problem_keys, "metric"]
        table["p_holm"] = table.groupby(family, dropna=False)["p"].transform(lambda p: holm(p))
        table["verdict"] = np.where(table["p_holm"] < ERROR, "holds", "open")
    return table


def section(sweep: Sweep) -> Section | None:
    """None where no two methods or settings share a problem, a beta and a seed."""
    table = pairwise(sweep)
    if table.empty:
        return None
    shown = pd.concat([_shown(field) for field in _by_field(table, sweep.problem_keys)])
    several = int(table.groupby([*sweep.problem_keys, "metric"], dropna=False).size().max())
    notes = [
        "Differences of means at the same seeds, with the 95% interval of that one difference over what the row names: "
        "other seeds, other held-out prompts, or both. "
        f"A star: it holds with p below {ERROR:g}, two-sided and adjusted (Holm) over the {text(several)} pairs of a "
        "problem and metric, so that the best may be chosen after looking. P(improvement): how often a run of the "
        "first scores higher than one of the second, over all pairs of their runs."
    ]
    if (table["basis"] == "prompts").any():
        notes.append(
            "Over prompts alone, a difference is one of these very runs: another seed may have another. None holds."
        )
    if (table["basis"] == "seeds, these prompts").any():
        notes.append("Over seeds on these prompts, the error of which prompts were held out is left out.")
    if len(shown) < len(table):
        notes.append(f"Shown: each against the best; all {text(len(table))} comparisons are in the file.")
    return Section(
        title="Which method is better",
        notes=tuple(notes),
        tables=(Table("comparisons", table, "Differences between methods.", _readable(shown, sweep.problem_keys)),),
        claims=tuple(_claim(row, sweep.problem_keys) for row in shown.to_dict("records")),
    )


def _scored(sweep: Sweep) -> pd.DataFrame:
    """The finished runs with reward, objective, win_rate and `exact`."""
    runs = measured(sweep.done.dropna(subset=["method"]))
    runs["objective"] = runs["reward"] - runs["beta"] * runs["kl"]
    wins = sweep.done.dropna(subset=["method"]).get("eval/win_rate")  # with the prompts' own errors on the testbed too
    runs["win_rate"] = np.nan if wins is None else wins.to_numpy()
    return runs


def _with_objective(means: Mapping[str, pd.DataFrame], runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    betas = dict(zip(runs["run"], runs["beta"]))
    return {
        run: frame.assign(objective=frame["reward"] - betas[run] * frame["kl"])
        for run, frame in means.items()
        if run in betas and {"reward", "kl"} <= set(frame.columns)
    }


Contender = tuple[str, pd.DataFrame]  # its label and its runs


def _fields(sweep: Sweep, runs: pd.DataFrame) -> Iterator[tuple[dict, float, list[tuple[Contender, Contender]]]]:
    """(problem, beta, pairs) of what can be compared. Where every method ran at one beta of its own they all meet, with
    beta NaN where these differ; one that has none meets those of each beta, and others that have none once."""
    others = [key for key in sweep.keys if key not in sweep.problem_keys]
    problems = runs[sweep.problem_keys].drop_duplicates().to_dict("records") if sweep.problem_keys else [{}]
    for problem in problems:
        rows = matching(runs, problem)
        each = rows.groupby(["method", *others], dropna=False)["beta"].nunique()
        betas = sorted(rows["beta"].dropna().unique())
        if each.max() <= 1:
            contenders = _contenders(rows, others, len(betas) > 1)
            yield problem, betas[0] if len(betas) == 1 else np.nan, list(combinations(contenders, 2))
            continue
        for beta in betas:
            contenders = _contenders(rows[rows["beta"].isna() | (rows["beta"] == beta)], others, False)
            pairs = combinations(contenders, 2)
            yield problem, beta, [pair for pair in pairs if any(of_one["beta"].notna().any() for _, of_one in pair)]
        yield problem, np.nan, list(combinations(_contenders(rows[rows["beta"].isna()], others, False), 2))


def _contenders(rows: pd.DataFrame, others: list[str], own_betas: bool) -> list[Contender]:
    found = []
    for (method, *settings), of_one in rows.groupby(["method", *others], dropna=False, sort=True):
        named = [f"{short_name(key)} {text(value)}" for key, value in zip(others, settings) if not pd.isna(value)]
        beta = of_one["beta"].iloc[0]
        named = [f"β {text(float(beta))}", *named] if own_betas and not np.isnan(beta) else named
        found.append((", ".join([method, *named]), of_one.drop_duplicates("seed").set_index("seed").sort_index()))
    return found


def _compare(pair: Mapping[str, pd.DataFrame], metric: str, means: Mapping[str, pd.DataFrame]) -> dict | None:
    if metric == "objective" and len({beta for runs in pair.values() for beta in runs["beta"]}) > 1:
        return None
    scores = [runs[metric].dropna() for runs in pair.values()]
    seeds = scores[0].index.intersection(scores[1].index)
    if len(seeds) == 0:
        return None
    complete = all(runs[metric].notna().all() for runs in pair.values())
    labels = list(pair)
    if scores[0][seeds].mean() < scores[1][seeds].mean():
        labels, scores = labels[::-1], scores[::-1]
    exact = all(runs["exact"].all() for runs in pair.values())
    names = [run for label in labels for run in pair[label].loc[seeds, "run"]]
    asked = None if exact else asked_alike(means, names, metric)
    ours, theirs = (None, None) if asked is None else np.split(asked, 2)
    of_seeds = mean_estimate(scores[0][seeds] - scores[1][seeds])
    over_seeds, over_prompts = of_seeds.interval(), Interval(np.nan, np.nan, np.nan)
    if asked is not None and asked.shape[1] > 1:
        over_prompts = paired_bootstrap(ours, theirs)
    estimate, basis = _estimate(of_seeds, None if asked is None else ours - theirs, exact)
    p = estimate.p_value() if complete and basis != "prompts" else np.nan
    return {
        "ours": labels[0],
        "theirs": labels[1],
        "seeds": len(seeds),
        "prompts": 0 if asked is None else asked.shape[1],
        "difference": of_seeds.mean,
        "seeds_low": over_seeds.low,
        "seeds_high": over_seeds.high,
        "prompts_low": over_prompts.low,
        "prompts_high": over_prompts.high,
        "low": estimate.interval().low,
        "high": estimate.interval().high,
        "basis": basis,
        "p": p,
        "improvement": probability_of_improvement(*scores),
    }


def _estimate(of_seeds: Estimate, differences: np.ndarray | None, exact: bool) -> tuple[Estimate, str]:
    """What a verdict rests on, of differences [seeds, prompts] where prompts are a sample that both answered."""
    if differences is None:
        return of_seeds, "seeds" if exact else "seeds, these prompts"
    if len(differences) >= SEEDS_FOR_BOTH:
        return crossed_estimate(differences), "seeds and prompts"
    return mean_estimate(differences.mean(0)), "prompts"


def _by_field(table: pd.DataFrame, problem: list[str]) -> list[pd.DataFrame]:
    return [field for _, field in table.groupby([*problem, "beta"], dropna=False, sort=False)]


def _leading(field: pd.DataFrame) -> pd.DataFrame:
    """The rows that say who is better: of the metric that most pairs have, the objective first."""
    counts = field["metric"].value_counts()
    metric = max(("objective", "reward", "win_rate"), key=lambda name: counts.get(name, 0))
    return field[field["metric"] == metric]


def _shown(field: pd.DataFrame) -> pd.DataFrame:
    """All pairs of a few contenders; of many, each against the best."""
    pairs = _leading(field)
    if len(set(pairs["ours"]) | set(pairs["theirs"])) <= ALL_PAIRS:
        return field
    ahead = pairs.groupby("ours")["difference"].max()
    lost = pairs["theirs"].value_counts().reindex(ahead.index, fill_value=0)
    best = ahead[lost == lost.min()].idxmax()  # several may have lost to none: two without a beta do not meet here
    return field[(field["ours"] == best) | (field["theirs"] == best)]


def _readable(shown: pd.DataFrame, problem: list[str]) -> pd.DataFrame:
    """One row per pair, the better first, and one column per metric."""
    rows = []
    for field in _by_field(shown, problem):
        found = {(row["metric"], row["ours"], row["theirs"]): row for row in field.to_dict("records")}
        for pair in _leading(field).to_dict("records"):
            row = {short_name(key): text(pair[key]) for key in problem}
            difference = f"{pair['ours']} - {pair['theirs']}"
            row |= {"beta": "own" if "β " in difference else text(pair["beta"]), "difference": difference}
            for metric, title in COMPARED.items():
                row[title] = _difference(found, metric, pair["ours"], pair["theirs"])
            improvement = f"P(improvement), {COMPARED[pair['metric']]}"
            row |= {"95% interval over": pair["basis"], improvement: f"{pair['improvement']:.2f}"}
            rows.append(row | {"seeds": str(pair["seeds"])})
    table = pd.DataFrame(rows).fillna("-")
    return table.drop(columns=[title for title in COMPARED.values() if (table[title] == "-").all()])


def _difference(found: dict, metric: str, ours: str, theirs: str) -> str:
    places = 4 if metric == "objective" else 3
    if row := found.get((metric, ours, theirs)):
        ends = row["difference"], row["low"], row["high"]
    elif row := found.get((metric, theirs, ours)):
        ends = -row["difference"], -row["high"], -row["low"]
    else:
        return "-"
    return interval_text(*ends, places) + " *" * (row["verdict"] == "holds")


def _claim(row: dict, problem: list[str]) -> Claim:
    where = [f"{short_name(key)} {text(row[key])}" for key in problem]
    where = ([] if np.isnan(row["beta"]) else [f"beta {text(row['beta'])}"]) + where
    place = f" at {', '.join(where)}" if where else ""
    runs = {"prompts": " in these runs", "seeds, these prompts": " on these prompts"}.get(row["basis"], "")
    return Claim(
        claim=f"{row['ours']} has a higher {COMPARED[row['metric']]} than {row['theirs']}{place}{runs}",
        value=row["difference"],
        low=row["low"],
        high=row["high"],
        verdict=row["verdict"],
        source="comparisons",
        threshold=0.0,
    )
