"""Likelihood displacement: how the probabilities of chosen and rejected answers move, and where the mass goes.
Razin et al. 2024 (2410.08847); Pal et al. 2024 (2402.13228)."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpref.report.clustered import clustered_mean
from rlpref.report.frames import Sweep
from rlpref.report.multiples import BARS, cell_name, cells, dots, shown_cells
from rlpref.report.panels import finished, numbered
from rlpref.report.ranks import spearman
from rlpref.report.section import Chart, Point, Section, Table
from rlpref.report.style import RC, Look, legend

ENDS = {
    "chosen": "log-prob of chosen, change (nats)",
    "rejected": "log-prob of rejected, change (nats)",
    "fell": "chosen that got less likely (share)",
    "ches_corr": "CHES and fall of chosen (Spearman)",
    "ches_normalised_corr": "CHES per token and fall (Spearman)",
}
FIRST = {
    "first_chosen": "first step: chosen (nats)",
    "first_rejected": "first step: rejected (nats)",
    "first_own": "first step: its own answers (nats)",
}
MASSES = {
    "mass_chosen": "mass of mostly chosen, change",
    "mass_rejected": "mass of mostly rejected, change",
    "mass_unseen": "mass in no pair, change",
}
NOTES = (
    "Changes since before training, on held-out pairs, in nats per answer. Below 0 on the x axis the chosen answers "
    "themselves got less likely, though the margin may grow. First step: the change by one update, at each method's "
    "own learning rate; its own answers are those that the policy gave before it.",
)
CHES = (
    "CHES: <s+, s-> - ||s+||², s the sum of the reference's hidden states along an answer; correlated with how far the "
    "log-prob of the chosen answer fell, pair by pair."
)
MASS = (
    "Mass: the exact probability, mean over prompts, of the answers that the training pairs chose more often than they "
    "rejected them, of those they rejected more often, and of those they do not hold."
)


def section(sweep: Sweep) -> Section | None:
    """The plane of both changes, the changes by method, the first step; None where no run measured pairs."""
    if "ref_chosen" not in sweep.pairs:
        return None
    charts, tables = [], []
    panels = [(title, per_run(runs, sweep)) for title, runs in finished(sweep)]
    panels = [(title, found) for title, found in panels if found["chosen"].notna().any()]
    for end, before, _, found in numbered(panels):
        figure, points = _plane(found, paths(found, sweep.history))
        caption = (
            "Log-probs of held-out chosen and rejected answers, change since before training, from evaluation to "
            "evaluation; large: the end, mean over seeds. Dotted: no change of the margin."
        )
        charts.append(Chart(f"displacement{end}", figure, before + caption, points))
        for name, measures in (("displacement-ends", ENDS), ("displacement-first", FIRST | MASSES)):
            known = {key: label for key, label in measures.items() if found[key].notna().any() and _moves(found[key])}
            if known:
                figure, points = dots(found, known, dict.fromkeys(known, 0.0), "no change")
                charts.append(Chart(f"{name}{end}", figure, before + BARS, points))
        known = {key: label for key, label in (ENDS | MASSES).items() if found[key].notna().any()}
        caption = before + "Changes by the whole training."
        tables.append(Table(f"displacement{end}", found, caption, shown_cells(found, known)))
    notes = [*NOTES]
    notes += [CHES] if any(found["ches_corr"].notna().any() for _, found in panels) else []
    notes += [MASS] if any(found["mass_chosen"].notna().any() for _, found in panels) else []
    return Section("Likelihood displacement", tuple(notes), tuple(tables), tuple(charts)) if charts else None


def per_run(runs: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """Of each of `runs`: its identity and ENDS, FIRST and MASSES, with `_se` where they are means of pairs."""
    pairs = dict(iter(sweep.pairs.groupby("run", sort=False)))
    history = dict(iter(sweep.history.groupby("run", sort=False)))
    rows = []
    for run in runs.to_dict("records"):
        row = {key: run[key] for key in ("run", "method", "beta", "seed", "setting")}
        row |= dict.fromkeys([*ENDS, *FIRST, *MASSES], np.nan)
        if run["run"] in pairs:
            row |= of_pairs(pairs[run["run"]]) | of_history(history[run["run"]])
        rows.append(row)
    return pd.DataFrame(rows)


def of_pairs(pairs: pd.DataFrame) -> dict[str, float]:
    """ENDS of one run."""
    groups = pairs["group"].where(pairs["group"].notna(), pairs["pair"]).astype(str)
    chosen, rejected = (pairs[side] - pairs[f"ref_{side}"] for side in ("chosen", "rejected"))
    row: dict[str, float] = {}
    for name, values in (("chosen", chosen), ("rejected", rejected), ("fell", (chosen < 0).astype(float))):
        row[name], row[f"{name}_se"] = clustered_mean(values, groups)
    for name in ("ches", "ches_normalised"):
        row[f"{name}_corr"] = spearman(pairs[name], -chosen) if name in pairs else np.nan
    return row


def of_history(history: pd.DataFrame) -> dict[str, float]:
    """FIRST and MASSES of one run, from its rows of metrics.jsonl; NaN where they are not there."""

    def known(name: str) -> np.ndarray:
        return history[name].dropna().to_numpy() if name in history else np.array([])

    row = {}
    for name in FIRST:
        of = name.removeprefix("first_")
        for end in ("", "_se"):
            row[f"{name}{end}"] = next(iter(known(f"first_step/{of}{end}")), np.nan)
    for name in MASSES:
        values = known(f"exact/{name}")
        row[name] = values[-1] - values[0] if len(values) else np.nan
    return row


def paths(found: pd.DataFrame, history: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Run -> step, chosen, rejected: changes of the mean log-probs since its first evaluation."""
    names = {"eval/logps/chosen": "chosen", "eval/logps/rejected": "rejected"}
    if not set(names) <= set(history):
        return {}
    rows = history.dropna(subset=list(names))
    rows = rows[rows["run"].isin(found["run"])].rename(columns=names)
    changes = rows[["chosen", "rejected"]] - rows.groupby("run")[["chosen", "rejected"]].transform("first")
    return dict(iter(changes.assign(run=rows["run"], step=rows["step"]).groupby("run", sort=False)))


def _plane(found: pd.DataFrame, path: dict[str, pd.DataFrame]) -> tuple[Figure, tuple[Point, ...]]:
    look = Look.of(found["method"], found["beta"], found["setting"])
    points: list[Point] = []
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6.6, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0, color="0.35", lw=0.9, zorder=1)
        for cell, runs in cells(found):
            colour, (edge, marker) = look.colour(cell[0], cell[1]), look.styles[cell[0]]
            for run in runs.dropna(subset=["chosen"]).to_dict("records"):
                own = path.get(run["run"])
                if own is not None:
                    axis.plot(own["chosen"], own["rejected"], color=colour, lw=0.7, alpha=0.7, ls=look.lines[cell[2]])
                    points += _stops(axis, f"{cell_name(cell)}, seed {run['seed']}", own, run["run"])
            end = runs["chosen"].mean(), runs["rejected"].mean()
            axis.plot(*end, marker=marker, mfc=colour, mec=edge, ms=7, ls="", zorder=4)
        axis.axline((0, 0), slope=1, color="0.5", lw=0.9, ls=":", zorder=1)
        axis.plot(0, 0, "k*", ms=9, zorder=5)
        axis.set(
            xlabel="log-prob of chosen answers, change (nats)", ylabel="log-prob of rejected answers, change (nats)"
        )
        legend(figure, look, [], markers=True)
    return figure, tuple(points)


def _stops(axis: Axes, name: str, own: pd.DataFrame, run: str) -> list[Point]:
    return [
        Point(axis, x, y, f"{name}, step {step:.0f}\nchosen {x:+.3g}, rejected {y:+.3g} nats", run)
        for x, y, step in own[["chosen", "rejected", "step"]].values
    ]


def _moves(values: pd.Series) -> bool:
    return float(values.abs().max()) > 1e-9
