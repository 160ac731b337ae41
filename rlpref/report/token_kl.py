"""Where in an answer the KL to the reference is spent: its mean at each token position."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd

from rlpref.report.clustered import clustered_mean
from rlpref.report.frames import Sweep
from rlpref.report.intervals import Interval
from rlpref.report.multiples import cell_name, cells, method_panels, told
from rlpref.report.panels import finished, interval, is_exact, numbered
from rlpref.report.section import Chart, Point, Section, Table
from rlpref.report.style import RC, Look, legend

REACHED = 0.05  # the share of answers that must go so far for a position to be shown
HOVERED = 24  # positions of a line that answer when they are pointed at


def section(sweep: Sweep) -> Section | None:
    """Mean KL per token position, a panel for each method; None where no run wrote down the KL of its tokens."""
    if "token_kl" not in sweep.answers:
        return None
    charts, tables = [], []
    panels = [(title, positions(runs, sweep.answers)) for title, runs in finished(sweep)]
    panels = [(title, found) for title, found in panels if len(found)]
    for end, before, _, found in numbered(panels):
        name = f"token-kl{end}"
        figure, points, table = _figure(found)
        caption = before + (
            "KL(policy || reference) of the next token in nats, mean over the policy's own answers that reach the "
            f"position (those that at least {REACHED:.0%} reach). Band: 95%, over seeds where there are three or more, "
            "else over prompts; grey: the other methods."
        )
        charts.append(Chart(name, figure, caption, points))
        tables.append(Table(name, table, caption, shown=_short(table)))
    return Section("KL per token position", tables=tuple(tables), charts=tuple(charts)) if charts else None


def positions(runs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """One row for each of `runs` and position from 1 on: the run's identity, `position`, `kl` (nats, mean over the
    answers that reach it), `kl_se` over prompts (on a testbed: over answers), and `reached`, the share of its
    answers."""
    own = answers[(answers["by"] == "policy") & answers["token_kl"].notna()]
    rows = []
    for run, found in own.groupby("run", sort=False):
        if (runs["run"] == run).any():
            known = runs[runs["run"] == run].iloc[0]
            identity = known[["run", "method", "beta", "seed", "setting"]].to_dict()
            kl = _positions(found["token_kl"].tolist(), found["prompt_index"], is_exact(known))
            rows += [identity | row for row in kl]
    return pd.DataFrame(rows)


def _positions(token_kl: list[list[float]], prompts: pd.Series, all_prompts: bool) -> list[dict]:
    width, lengths = max(map(len, token_kl)), np.array(list(map(len, token_kl)))
    table = np.full((len(token_kl), width), np.nan)
    table[np.arange(width) < lengths[:, None]] = np.concatenate(token_kl)
    rows = []
    for place, column in enumerate(table.T):
        mean, se = clustered_mean(column, prompts, all_prompts)
        rows.append({"position": place + 1, "kl": mean, "kl_se": se, "reached": float((lengths > place).mean())})
    return rows


def _figure(found: pd.DataFrame):
    """(figure, points, the table that it draws)."""
    look = Look.of(found["method"], found["beta"], found["setting"])
    lines = [(cell, _line(rows)) for cell, rows in cells(found)]
    figure, axes = method_panels(list(look.styles))
    points: list[Point] = []
    with mpl.rc_context(RC):
        for (method, beta, setting), line in lines:
            for other, axis in axes.items():
                if other != method:
                    axis.plot(line["position"], line["kl"], color="0.85", lw=0.7, zorder=1)
            axis, colour, (edge, marker) = axes[method], look.colour(method, beta), look.styles[method]
            dot = {"marker": marker, "ms": 3.5, "mfc": colour, "mec": edge} if len(line) <= HOVERED else {}
            axis.fill_between(line["position"], line["low"], line["high"], color=colour, alpha=0.2, lw=0)
            axis.plot(line["position"], line["kl"], color=colour, ls=look.lines[setting], lw=1.4, **dot)
            points += _points(axis, cell_name((method, beta, setting)), line)
        _limits(list(axes.values()), pd.concat([line for _, line in lines]))
        figure.supxlabel("token position in the answer", fontsize=9)
        figure.supylabel("KL at the token (nats)", fontsize=9)
        legend(figure, look, [], markers=False)
    named = [line.assign(method=cell[0], beta=cell[1], setting=cell[2]) for cell, line in lines]
    table = pd.concat(named, ignore_index=True)
    return figure, tuple(points), table[["method", "beta", "setting", "position", "kl", "low", "high", "reached"]]


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """At the positions 1, 2, 4, 8, ... side by side, as text."""
    at = table[(table["position"] & (table["position"] - 1)) == 0]
    wide = at.assign(kl=[told(Interval(*row)) for row in at[["kl", "low", "high"]].values])
    wide["cell"] = [cell_name(cell) for cell in wide[["method", "beta", "setting"]].itertuples(index=False, name=None)]
    wide = wide.pivot(index="cell", columns="position", values="kl").reindex(wide["cell"].unique())
    return wide.fillna("-").rename(columns=lambda place: f"token {place}").rename_axis(columns=None).reset_index()


def _line(rows: pd.DataFrame) -> pd.DataFrame:
    """position, kl, low, high, reached of one cell: over its runs."""
    line = []
    for position, own in rows.groupby("position"):
        kl, low, high = interval(own, "kl")
        line.append((position, kl, low, high, own["reached"].sum() / rows["run"].nunique()))
    frame = pd.DataFrame(line, columns=["position", "kl", "low", "high", "reached"])
    return frame[frame["reached"] >= REACHED]


def _points(axis, name: str, line: pd.DataFrame) -> list[Point]:
    every = -(-len(line) // HOVERED)
    return [
        Point(
            axis,
            row.position,
            row.kl,
            f"{name}\ntoken {row.position}: {told(Interval(row.kl, row.low, row.high))} nats",
        )
        for row in line.iloc[::every].itertuples()
    ]


def _limits(axes: list, shown: pd.DataFrame) -> None:
    """A band can be many times as high as the lines: it is cut, they are not."""
    top = max(shown["kl"].max(), 1e-6)
    for axis in axes[:1]:  # the others share it
        axis.set_ylim(min(0.0, shown["kl"].min()) - 0.03 * top, 1.15 * top)
        axis.locator_params(axis="x", integer=True, nbins=4)
        axis.locator_params(axis="y", nbins=4)
