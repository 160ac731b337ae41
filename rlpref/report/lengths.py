"""What answers look like: how long, how often finished, how much alike, and whether reward goes with length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rlpref.report.clustered import clustered_mean
from rlpref.report.frames import Sweep
from rlpref.report.multiples import BARS, dots, shown_cells
from rlpref.report.panels import finished, is_exact, numbered
from rlpref.report.ranks import spearman
from rlpref.report.section import Chart, Section, Table

MEASURES = {
    "length": "length (tokens)",
    "finished": "finished with EOS (share)",
    "length_corr": "reward and length (Spearman)",
    "entropy": "entropy (nats per token)",
    "distinct_2": "distinct 2-grams (share)",
    "overlap": "words shared by two answers",
}
NOTES = (
    "Of all answers of the last evaluation. The correlation of reward and length is that among the answers to one "
    "prompt, its mean over prompts; where all of them are alike there is none. Two answers to a prompt share the "
    "part of their different words that both have (Jaccard). Distinct 2-grams: the part of all 2-grams of a run's "
    "answers that are different ones (Li et al. 2016); it falls as their number grows, so compare only runs with "
    "equally many answers.",
)


def section(sweep: Sweep) -> Section | None:
    """Length, finished share, diversity and entropy by method beside the reference; None where no run kept answers."""
    if "answer" not in sweep.answers:
        return None
    charts, tables = [], []
    panels = [(title, per_run(runs, sweep.answers)) for title, runs in finished(sweep)]
    panels = [(title, found) for title, found in panels if found["length"].notna().any()]
    for end, before, _, found in numbered(panels):
        name = f"lengths{end}"
        measures = {key: label for key, label in MEASURES.items() if _varies(found, key)}
        if not measures:
            continue
        marks = {key: found[f"ref_{key}"].mean() for key in measures if found[f"ref_{key}"].notna().any()}
        figure, points = dots(found, measures, marks)
        caption = before + "The answers of each method after training; dashed: the reference's to the same prompts. "
        caption += BARS
        charts.append(Chart(name, figure, caption, points))
        reference = {label: f"{marks[key]:.3g}" for key, label in measures.items() if key in marks}
        shown = shown_cells(found, measures)
        if reference:
            shown = pd.concat([pd.DataFrame([{"cell": "reference"} | reference]), shown], ignore_index=True).fillna("-")
        tables.append(Table(name, found, caption, shown[["cell", "runs", *measures.values()]]))
    return Section("Length and diversity", NOTES, tuple(tables), tuple(charts)) if charts else None


def per_run(runs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Of each of `runs`: its identity, the MEASURES of its own answers with `_se` over prompts (but for distinct_2),
    and as `ref_` those of the reference's answers to the same prompts that can be measured on text alone."""
    by_run = dict(iter(answers.groupby("run", sort=False)))
    nothing = answers.iloc[:0]
    rows = []
    for run in runs.to_dict("records"):
        row = {key: run[key] for key in ("run", "method", "beta", "seed", "setting")}
        own = by_run.get(run["run"], nothing)
        row |= measured(own[own["by"] == "policy"], is_exact(run))
        row["distinct_2"] = run.get("eval/distinct_2", np.nan)
        reference = measured(own[own["by"] == "reference"], is_exact(run))
        rows.append(row | {f"ref_{key}": reference.get(key, np.nan) for key in MEASURES})
    return pd.DataFrame(rows)


def measured(answers: pd.DataFrame, all_prompts: bool) -> dict[str, float]:
    """MEASURES with `_se` of one policy's answers to the prompts, NaN where nothing is known. With `all_prompts` there
    are no others, and the errors are those over answers."""
    found: dict[str, float] = {}
    nothing = pd.Series(np.nan, answers.index)
    of_answers = {name: answers[name].astype(float) for name in ("length", "finished")}
    of_answers["entropy"] = answers.get("entropy", nothing) / answers["length"].clip(lower=1)
    for name, values in of_answers.items():
        found[name], found[f"{name}_se"] = clustered_mean(values, answers["prompt_index"], all_prompts)
    by_prompt = [own for _, own in answers.assign(reward=answers.get("reward", nothing)).groupby("prompt_index")]
    of_prompts = {
        "length_corr": [spearman(own["reward"], own["length"]) for own in by_prompt],
        "overlap": [overlap(own["answer"].tolist()) for own in by_prompt],
    }
    for name, values in of_prompts.items():
        found[name], found[f"{name}_se"] = clustered_mean(values, np.arange(len(by_prompt)), all_prompts)
    return found


def overlap(answers: list[str]) -> float:
    """Mean over all pairs of answers of the Jaccard index of their sets of words, 1 for two without any; NaN for fewer
    than two answers. In Chinese, where no spaces part words, a word is a character."""
    words = [set(_words(answer)) for answer in answers]
    number: dict[str, int] = {}
    for own in words:
        for word in own:
            number.setdefault(word, len(number))
    if len(words) < 2:
        return np.nan
    table = np.zeros((len(words), max(len(number), 1)), dtype=np.float32)
    for row, own in enumerate(words):
        table[row, [number[word] for word in own]] = 1
    both = table @ table.T
    either = table.sum(1)[:, None] + table.sum(1)[None, :] - both
    shares = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return float(shares[np.triu_indices(len(words), 1)].mean())


def _words(answer: str) -> list[str]:
    """Split at spaces; each CJK character by itself."""
    return "".join(f" {c} " if "\u3040" <= c <= "\u9fff" else c for c in answer.lower()).split()


def _varies(found: pd.DataFrame, key: str) -> bool:
    """Whether there is anything to see: of answers that all have two tokens, length is not worth a panel."""
    values = pd.concat([found[key], found[f"ref_{key}"]]).dropna()
    return len(values) > 0 and values.max() - values.min() > 1e-9
