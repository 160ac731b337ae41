"""Reward and win rate by group of prompts: the parts of the data, or the prompts of a testbed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rlpref.report.by_prompt import beats
from rlpref.report.clustered import clustered_mean
from rlpref.report.frames import Sweep
from rlpref.report.multiples import BARS, dots, shown_cells
from rlpref.report.panels import finished, is_exact, numbered
from rlpref.report.section import Chart, Section, Table

SHOWN = 6  # groups, those with the most prompts
MEASURES = {"reward": "gold reward", "win_rate": "win rate"}
NOTES = (
    "Of the answers of the last evaluation, by the part of the data that their prompt is from; on a testbed by prompt. "
    "Win rate: the chance that an answer has a higher gold reward than one of the reference's to the same prompt, a "
    "tie counting one half.",
)


def section(sweep: Sweep) -> Section | None:
    """A panel for each group; None where answers have no reward, or are of one group."""
    if "reward" not in sweep.answers or not sweep.answers["reward"].notna().any():
        return None
    charts, tables = [], []
    panels = [(title, runs, per_prompt(runs, sweep.answers)) for title, runs in finished(sweep)]
    for end, before, _, runs, scores in numbered([panel for panel in panels if panel[2]["group"].nunique() > 1]):
        prompts = scores.groupby("group")["prompt_index"].nunique().sort_values(ascending=False, kind="stable")
        for measure in (name for name in MEASURES if scores[name].notna().any()):
            chart, table = _panel(per_run(runs, scores, list(prompts.index), measure), measure, before, end)
            charts.append(chart)
            tables.append(table)
    return Section("By group of prompts", NOTES, tuple(tables), tuple(charts)) if charts else None


def _panel(found: pd.DataFrame, measure: str, before: str, end: str) -> tuple[Chart, Table]:
    groups = [column for column in found if column.startswith("in ") and f"{column}_se" in found]
    shown = {group: f"{MEASURES[measure]}: {_short(group.removeprefix('in '))}" for group in groups[:SHOWN]}
    marks = {group: 0.5 if measure == "win_rate" else found[f"ref_{group}"].mean() for group in shown}
    figure, points = dots(found, shown, {group: at for group, at in marks.items() if at == at})
    against = " against the reference" if measure == "win_rate" else ""
    caption = f"{MEASURES[measure].capitalize()}{against} by group of prompts"
    caption += f", the {SHOWN} of {len(groups)} with the most prompts. " if len(groups) > SHOWN else ". "
    caption = before + caption + BARS
    name = f"groups-{measure.replace('_', '-')}{end}"
    return Chart(name, figure, caption, points), Table(name, found, caption, shown_cells(found, shown))


def per_prompt(runs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """One row for each answer with a reward: run, by, prompt_index, group, reward and win_rate (of a policy's against
    all of the reference's to the prompt, of a reference's against all of the policy's)."""
    known = answers[answers["run"].isin(runs["run"]) & answers["reward"].notna()]
    exact = {run["run"] for run in runs.to_dict("records") if is_exact(run)}
    by, reward = known["by"].to_numpy(), known["reward"].to_numpy(float)
    said = {
        name: known[name].to_numpy() if name in known else np.full(len(known), None) for name in ("prompt", "subset")
    }
    parts = []
    for (run, prompt), rows in known.groupby(["run", "prompt_index"], sort=False).indices.items():
        ours, theirs = (reward[rows[by[rows] == side]] for side in ("policy", "reference"))
        if len(ours) == 0:
            continue
        opening, subset = (next((text for text in said[name][rows] if not pd.isna(text)), None) for name in said)
        group = (opening if run in exact else None) or subset or "not said"
        won = beats(ours, theirs)
        for side, rewards, own in (("policy", ours, won), ("reference", theirs, 1 - won.T)):
            means = own.mean(1) if own.size else np.full(len(rewards), np.nan)
            parts += [(run, side, prompt, group, *values) for values in zip(rewards, means)]
    return pd.DataFrame(parts, columns=["run", "by", "prompt_index", "group", "reward", "win_rate"])


def per_run(runs: pd.DataFrame, scores: pd.DataFrame, groups: list[str], measure: str) -> pd.DataFrame:
    """Of each of `runs` its identity, and for each of `groups` as `in <group>` the mean of `measure`, its `_se` over
    the group's prompts (on a testbed over answers, for win rates those of policy and reference), and as `ref_` the
    reference's reward."""
    parts = dict(iter(scores.groupby(["run", "group", "by"])))
    rows = []
    for run in runs.to_dict("records"):
        row = {key: run[key] for key in ("run", "method", "beta", "seed", "setting")}
        for group in groups:
            own, ref = (parts.get((run["run"], group, by), scores.iloc[:0]) for by in ("policy", "reference"))
            mean, se = clustered_mean(own[measure], own["prompt_index"], is_exact(run))
            if measure == "win_rate" and is_exact(run):
                se = float(np.hypot(se, clustered_mean(ref[measure], ref["prompt_index"], True)[1]))
            row |= {f"in {group}": mean, f"in {group}_se": se, f"ref_in {group}": ref["reward"].mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def _short(group: str) -> str:
    return group if len(group) <= 18 else group[:17] + "…"
