"""Whether policies mean what they say: the preference that a policy's log-ratios imply, against held-out labels."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd

from rlpref.report.clustered import clustered_mean
from rlpref.report.frames import Sweep
from rlpref.report.implied import chances
from rlpref.report.intervals import Interval, prompt_interval
from rlpref.report.multiples import cell_name, cells, method_panels, told
from rlpref.report.panels import data_hash, finished, numbered
from rlpref.report.section import Chart, Point, Section, Table
from rlpref.report.style import RC, Look, legend

BINS = 10  # of the confidence in the answer that is held to be better, from 1/2 to 1
FEWEST = 10  # pairs in a bin that is drawn
NOTES = (
    "The log-ratios of policy and reference imply a chance that the chosen answer is the better one: sigmoid(β margin) "
    "of methods with a KL-regularised reward at β, 1/2 + τ margin for IPO. Methods whose log-ratios are no such reward "
    "(no β, a loss with another link, a reference that moved) are left out.",
    "ECE: mean over pairs of |accuracy - confidence| of their bin. Even a policy that is right about every chance has "
    "an ECE above 0 on so many pairs: 'by chance'. Brier: mean of (1 - chance)². Intervals of accuracy and "
    "Brier: 95%, over prompts (on a testbed over pairs); the pairs of all seeds are taken together.",
)


def section(sweep: Sweep) -> Section | None:
    """Reliability curves, a panel for each method, and a table; None where no run has an implied preference."""
    if "ref_chosen" not in sweep.pairs:
        return None
    charts, tables = [], []
    panels = [(title, judged(sweep, runs)) for title, runs in finished(sweep)]
    panels = [(title, found) for title, found in panels if len(found)]
    for end, before, _, found in numbered(panels):
        name = f"calibration{end}"
        figure, points = _figure(found)
        caption = before + (
            "How often the answer that is held to be better was the chosen one, by how sure the policy is of it. "
            "Dashed: calibrated; bars: 95% over prompts."
        )
        charts.append(Chart(name, figure, caption, points))
        table = summary(found)
        tables.append(Table(name, table, caption.split(",")[0] + ".", shown=_shown(table)))
    return Section("Calibration of the implied preference", NOTES, tuple(tables), tuple(charts)) if charts else None


def judged(sweep: Sweep, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each held-out pair of those of `runs` that imply a preference: the run's identity, `cluster`,
    `chance` of the chosen answer, `confidence` in the one held to be better, `right` (1/2 for a tie), `soft_label`."""
    found = []
    for run in runs.to_dict("records"):
        chance, rows = chances(sweep, run["run"])
        if chance is not None and len(chance):
            own = sweep.pairs[rows]
            cluster = own["group"].where(own["group"].notna(), own["pair"]).astype(str)
            frame = pd.DataFrame({"cluster": f"{data_hash(sweep, run['run'])}:" + cluster, "chance": chance})
            frame["confidence"] = np.maximum(chance, 1 - chance)
            frame["right"] = np.select([chance > 0.5, chance < 0.5], [1.0, 0.0], 0.5)
            frame["soft_label"] = own.get("soft_label", pd.Series(np.nan, own.index))
            found.append(frame.assign(**{key: run[key] for key in ("run", "method", "beta", "setting")}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def reliability(pairs: pd.DataFrame) -> pd.DataFrame:
    """Of each bin of the confidence that holds any of `pairs`: pairs, confidence and accuracy (means), accuracy_se."""
    rows = []
    for _, own in pairs.groupby(bins(pairs["confidence"])):
        accuracy, se = clustered_mean(own["right"], own["cluster"])
        rows.append((len(own), own["confidence"].mean(), accuracy, se))
    return pd.DataFrame(rows, columns=["pairs", "confidence", "accuracy", "accuracy_se"])


def bins(confidence: pd.Series) -> np.ndarray:
    """The number of each confidence's bin. Guo et al. 2017 (1706.04599), for two answers."""
    return np.minimum(((2 * confidence.to_numpy() - 1) * BINS).astype(int), BINS - 1)


def expected_calibration_error(pairs: pd.DataFrame) -> float:
    """Guo et al. 2017 (1706.04599), eq. 5. It has no interval: where a policy is calibrated it is as far above 0 as
    `by_chance` says, and so are those of resamples, so that a bootstrap's interval misses the truth."""
    gaps = np.bincount(bins(pairs["confidence"]), pairs["right"] - pairs["confidence"])
    return float(np.abs(gaps).sum() / len(pairs))


def by_chance(pairs: pd.DataFrame) -> float:
    """The ECE to expect of a policy whose every chance is right, with independent labels: of each bin the mean of
    |N(0, sum c (1 - c))|, sqrt(2 / pi) of its standard deviation."""
    variance = np.bincount(bins(pairs["confidence"]), pairs["confidence"] * (1 - pairs["confidence"]))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(pairs))


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, beta and setting: pairs, ece, by_chance, accuracy and brier, these two with `_low` and
    `_high` of their intervals; and where the true chances are known `error`, the root of the mean squared error of the
    implied ones."""
    rows = []
    for cell, pairs in cells(found):
        alone = [by_chance(own) for _, own in pairs.groupby("run")]  # the runs of a cell have the same pairs
        row = dict(zip(("method", "beta", "setting"), cell)) | {"pairs": len(pairs)}
        row |= {"ece": expected_calibration_error(pairs), "by_chance": np.mean(alone)}
        measures = {
            "accuracy": prompt_interval(*clustered_mean(pairs["right"], pairs["cluster"])),
            "brier": prompt_interval(*clustered_mean((1 - pairs["chance"]) ** 2, pairs["cluster"])),
        }
        for name, value in measures.items():
            row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row | {"error": float(np.sqrt(((pairs["chance"] - pairs["soft_label"]) ** 2).mean()))})
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame({"cell": [cell_name(cell) for cell in table[["method", "beta", "setting"]].values]})
    shown["pairs"] = table["pairs"].astype(str)
    for name, title in {"accuracy": "accuracy", "ece": "ECE", "by_chance": "by chance", "brier": "Brier"}.items():
        parts = table.reindex(columns=[name, f"{name}_low", f"{name}_high"]).values
        shown[title] = [told(Interval(*row)) for row in parts]
    if "error" in table:
        shown["error of the chance (RMS)"] = table["error"].map("{:.3g}".format)
    return shown


def _figure(found: pd.DataFrame):
    look = Look.of(found["method"], found["beta"], found["setting"])
    figure, axes = method_panels(list(look.styles), height=2.2)
    points: list[Point] = []
    with mpl.rc_context(RC):
        for axis in axes.values():
            axis.plot([0.5, 1], [0.5, 1], color="0.4", ls="--", lw=0.9, zorder=1)
        lowest = 0.48
        for cell, pairs in cells(found):
            method, beta, setting = cell
            table = reliability(pairs).query("pairs >= @FEWEST")
            colour, (edge, marker) = look.colour(method, beta), look.styles[method]
            shape = {"color": colour, "ls": look.lines[setting], "lw": 1, "marker": marker, "ms": 4, "mec": edge}
            errors = 1.96 * table["accuracy_se"]
            lowest = min(lowest, table["accuracy"].min()) if len(table) else lowest
            axes[method].errorbar(table["confidence"], table["accuracy"], errors, elinewidth=0.8, zorder=3, **shape)
            points += [
                Point(
                    axes[method],
                    x,
                    y,
                    f"{cell_name(cell)}\n{n} pairs: sure to {x:.3f}, right {y:.3f} ± {1.96 * se:.3f}",
                )
                for n, x, y, se in table.itertuples(index=False, name=None)
            ]
        next(iter(axes.values())).set(xlim=(0.48, 1.02), ylim=(max(lowest - 0.08, -0.02), 1.05))
        figure.supxlabel("implied chance of the answer that is held to be better", fontsize=9)
        figure.supylabel("share in which it was chosen", fontsize=9)
        legend(figure, look, [], markers=True)
    return figure, tuple(points)
