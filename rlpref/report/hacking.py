"""What training scored high and the truth scores low: answers that exploit a learned reward."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rlpref.report.frames import Sweep
from rlpref.report.multiples import cell_name, cells
from rlpref.report.panels import finished, numbered
from rlpref.report.ranks import spearman
from rlpref.report.section import Section, Table
from rlpref.report.tables import text

KEPT, SHOWN = 5, 12  # answers of each method in the file, and on the page in all
LETTERS = 240  # of an answer or a prompt on the page
NOTES = (
    "The answers whose rank by the reward that training used (proxy) is furthest above their rank by the gold reward, "
    "each among all answers of its run; 1 would be the best by the one and the worst by the other. On the page the "
    "furthest of each method. Correlation: Spearman's of proxy and gold reward among the answers to one prompt, mean "
    "over the prompts and runs of the method.",
)


def section(sweep: Sweep) -> Section | None:
    """None where no run has both rewards."""
    if not {"reward", "proxy_reward"} <= set(sweep.answers):
        return None
    tables = []
    panels = [(title, furthest(runs, sweep.answers)) for title, runs in finished(sweep)]
    panels = [(title, found) for title, found in panels if len(found)]
    for end, before, _, found in numbered(panels):
        tables.append(Table(f"hacking{end}", found, before + "Highest proxy, lowest gold.", _shown(found)))
    return Section("Reward hacking", NOTES, tuple(tables)) if tables else None


def furthest(runs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The KEPT different answers of each method, beta and setting with the largest `rank_difference` above 0: identity,
    prompt, answer, proxy_reward, reward, length, and the method's `correlation` of both rewards."""
    own = answers[(answers["by"] == "policy") & answers["proxy_reward"].notna() & answers["reward"].notna()]
    own = own.merge(runs[["run", "setting"]], on="run")
    if not len(own):
        return own
    prompts = answers.dropna(subset=["prompt"]).drop_duplicates(["run", "prompt_index"])
    texts = prompts.set_index(["run", "prompt_index"])["prompt"]
    by_run = own.groupby("run")
    own["rank_difference"] = rank_shares(by_run["proxy_reward"]) - rank_shares(by_run["reward"])
    found = []
    for _, rows in cells(own):
        each = [spearman(one["proxy_reward"], one["reward"]) for _, one in rows.groupby(["run", "prompt_index"])]
        known = [value for value in each if not np.isnan(value)]
        top = rows[rows["rank_difference"] > 0].sort_values("rank_difference", ascending=False, kind="stable")
        top = top.drop_duplicates(["prompt_index", "answer"]).head(KEPT)
        found.append(top.assign(correlation=np.mean(known) if known else np.nan))
    table = pd.concat(found, ignore_index=True)
    table["prompt"] = [texts.get((run, index), "") for run, index in zip(table["run"], table["prompt_index"])]
    identity = ["run", "method", "beta", "seed", "setting", "prompt", "answer"]
    return table[[*identity, "proxy_reward", "reward", "length", "rank_difference", "correlation"]]


def rank_shares(values) -> pd.Series:
    """The rank of each value in its group, from 0 of the lowest to 1 of the highest; ties have their mean."""
    return (values.rank() - 1) / (values.transform("size") - 1).clip(lower=1)


def _shown(found: pd.DataFrame) -> pd.DataFrame:
    first = found.groupby(["method", "beta", "setting"], dropna=False, sort=False).head(1)
    first = first.sort_values("rank_difference", ascending=False, kind="stable").head(SHOWN)
    rows = []
    for row in first.to_dict("records"):
        rows.append(
            {
                "method": f"{cell_name((row['method'], row['beta'], row['setting']))}, seed {row['seed']}",
                "prompt": short(row["prompt"]),
                "answer": short(row["answer"]),
                "proxy": text(row["proxy_reward"]),
                "gold": text(row["reward"]),
                "rank difference": text(row["rank_difference"]),
                "correlation": text(row["correlation"]),
            }
        )
    return pd.DataFrame(rows)


def short(passage: str) -> str:
    """On one line, its end left out where it is long."""
    line = " ".join(passage.split())
    return line if len(line) <= LETTERS else line[: LETTERS - 2] + " …"
