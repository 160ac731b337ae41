"""Win rates against the reference by the gold reward, as counted and at equal lengths, from all answers of the runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rlpref.report.clustered import clustered_mean
from rlpref.report.frames import Sweep
from rlpref.report.length_controlled import instruction_difficulty, length_controlled
from rlpref.report.multiples import BARS, dots, shown_cells
from rlpref.report.panels import data_hash, finished, is_exact, numbered
from rlpref.report.section import Chart, Section, Table

METHODS_FOR_DIFFICULTY = 5  # answers of fewer say more of the methods than of the prompts
MEASURES = {
    "win_rate": "win rate",
    "lc_win_rate": "win rate at equal lengths",
    "length_effect": "log-odds by length",
}
NOTE = (
    "Every answer of a run's last evaluation against every answer of the reference to the same prompt; the higher gold "
    "reward wins, equal ones count half. The length-controlled win rate is what the regression of AlpacaEval 2 "
    "(2404.04475) predicts at equal lengths: logit of a win = theta + phi tanh(length difference / its standard "
    "deviation){}, with small ridges. The log-odds by length are phi: above 0 the longer answer wins."
)


def section(sweep: Sweep) -> Section | None:
    """None where no finished run kept rewards of its own answers and of the reference's."""
    tables, charts, notes = [], [], []
    panels = [(title, found) for title, runs in finished(sweep) if len(found := per_run(sweep, runs))]
    for end, before, _, found in numbered(panels):
        name = f"reward-wins{end}"
        varies = [key for key in MEASURES if key != "length_effect" or found[key].abs().max() > 1e-9]
        figure, points = dots(found, {key: MEASURES[key] for key in varies}, {"win_rate": 0.5, "lc_win_rate": 0.5})
        caption = f"{before}Against the reference by the gold reward; dashed: one half. {BARS}"
        tables.append(Table(name, found, caption, shown=shown_cells(found, MEASURES)))
        charts.append(Chart(name, figure, caption, points))
        notes += _notes(found)
    if not charts:
        return None
    return Section("Win rate at equal lengths", tuple(dict.fromkeys(notes)), tuple(tables), tuple(charts))


def per_run(sweep: Sweep, runs: pd.DataFrame) -> pd.DataFrame:
    """Of each of `runs` that kept rewards: its identity, win_rate, lc_win_rate and length_effect (`length_controlled`),
    the first two with `_se` over prompts (NaN where the prompts are all there are), `extrapolated`, and `difficulty`:
    whether that of the prompts was in the regression, estimated from all runs with the same data."""
    if not {"reward", "length"} <= set(sweep.answers.columns):
        return pd.DataFrame()
    own = sweep.answers.dropna(subset=["reward"])
    by_run = {run: games(rows) for run, rows in own[own["run"].isin(runs["run"])].groupby("run", sort=False)}
    by_run = {run: _of_data(rows, data_hash(sweep, run)) for run, rows in by_run.items() if len(rows)}
    runs = runs[runs["run"].isin(by_run)]
    difficulty = None
    if runs["method"].nunique() >= METHODS_FOR_DIFFICULTY:
        difficulty = instruction_difficulty(pd.concat([rows.assign(player=run) for run, rows in by_run.items()]))
    return pd.DataFrame([_measured(run, by_run[run["run"]], difficulty) for run in runs.to_dict("records")])


def games(answers: pd.DataFrame) -> pd.DataFrame:
    """prompt, longer, score and weight, as `length_controlled` reads them: all pairs of a policy's and the reference's
    answers to a prompt, those of one length difference in one row. The weights of a prompt sum to its policy answers.
    Empty without answers of either."""
    found = []
    for prompt, rows in answers.groupby("prompt_index"):
        (reward, length), (ref_reward, ref_length) = (
            rows.loc[rows["by"] == by, ["reward", "length"]].to_numpy(float).T for by in ("policy", "reference")
        )
        if len(reward) == 0 or len(ref_reward) == 0:
            continue
        ahead = np.sign(reward[:, None] - ref_reward[None, :]).ravel()
        longer, group = np.unique((length[:, None] - ref_length[None, :]).ravel(), return_inverse=True)
        count = np.bincount(group)
        score = (np.bincount(group, ahead) / count + 1) / 2
        columns = {"prompt": prompt, "longer": longer, "score": score, "weight": count / len(ref_reward)}
        found.append(pd.DataFrame(columns))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _of_data(rows: pd.DataFrame, data: str) -> pd.DataFrame:
    return rows.assign(prompt=f"{data}:" + rows["prompt"].astype(str))


def _measured(run: dict, own: pd.DataFrame, difficulty: pd.Series | None) -> dict:
    row = {key: run[key] for key in ("run", "method", "beta", "seed", "setting")}
    lc = length_controlled(own, difficulty)
    by_prompt = [np.average(rows["score"], weights=rows["weight"]) for _, rows in own.groupby("prompt")]
    error = clustered_mean(by_prompt, np.arange(len(by_prompt)))[1]
    known = np.nan if is_exact(run) else 1.0  # all prompts there are: nothing to say of others
    row |= {"win_rate": lc.raw, "win_rate_se": known * error}
    row |= {"lc_win_rate": lc.win_rate, "lc_win_rate_se": known * lc.se, "length_effect": lc.length_effect}
    return row | {"extrapolated": lc.extrapolated, "difficulty": difficulty is not None}


def _notes(found: pd.DataFrame) -> list[str]:
    term = " + psi gamma, gamma the prompt's difficulty from all runs" if found["difficulty"].all() else ""
    notes = [NOTE.format(term)]
    if found["extrapolated"].any():
        names = ", ".join(found.loc[found["extrapolated"], "run"])
        notes.append(f"One side was longer in every pair of {names}: no pair says what happens at equal lengths.")
    return notes
