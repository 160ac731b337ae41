"""The error ladder: what each source of error adds to the regret of each method."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rlpref.report.style import PALETTE, RC
from rlpref.report.tables import short_name, text

NOTHING = 1e-4  # in units of reward: a narrower segment gets no lane, though the total counts it
ENLARGED = 0.15  # rows that reach less than this share of the furthest one get an axis of their own
UNDOES = {"hatch": "/////", "alpha": 0.55}  # how a negative segment looks


def ladder_figure(table: pd.DataFrame, sources: Sequence[str]) -> Figure:
    """One bar for each row of `table`, a staircase read downwards: each segment starts at the running total of the
    segments above it. The largest regret comes first; its number stands on the right.

    Columns of `table`, in units of reward: each of `sources` (in the order of the ladder) and `regret`, their sum, with
    `_low` and `_high` of the intervals (NaN: none is drawn). What stands before the column `n` names the row. Raises
    ValueError where the segments of a row do not sum to its regret.
    """
    off = (table[list(sources)].sum(axis=1) - table["regret"]).abs().max()
    if not off <= 1e-9:
        raise ValueError(f"the segments of a row miss its regret by {off:.2e}")
    reach = table[list(sources)].cumsum(axis=1).max(axis=1)
    small = reach < ENLARGED * reach.max()
    panels = [rows.sort_values("regret", ascending=False) for rows in (table[~small], table[small]) if len(rows)]
    with mpl.rc_context(RC | {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7.5, "hatch.linewidth": 0.6}):
        heights = [len(rows) for rows in panels]
        figure = Figure(figsize=(3.6, 1.5 + 0.5 * len(panels) + 0.42 * len(table)), layout="constrained")
        figure.get_layout_engine().set(hspace=0.04)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, rows in zip(axes, panels):
            _panel(axis, rows, sources)
        axes[-1].set_xlabel("regret (units of the gold reward)")
        if len(panels) > 1:
            axes[1].set_title("the rest, enlarged", loc="left")
        figure.suptitle(claim(table, sources), fontsize=8.5, x=0.01, ha="left")
        figure.legend(handles=_entries(sources), loc="outside lower left", ncols=2, handlelength=1.4)
        return figure


def claim(table: pd.DataFrame, sources: Sequence[str]) -> str:
    """What the figure says: where the widest segment of each row comes from, a line for each source."""
    widest = table[list(sources)].abs().idxmax(axis=1)
    names = _names(table, ", ")
    lines = [f"  {source}: {'; '.join(names[widest == source])}" for source in sources if (widest == source).any()]
    return "\n".join(["What adds most to the mean regret:", *lines])


def _panel(axis: Axes, rows: pd.DataFrame, sources: Sequence[str]) -> None:
    for place, (_, row) in enumerate(rows.iterrows()):
        _staircase(axis, row, sources, place)
    axis.axvline(0, color="0.3", lw=0.8)
    axis.set_yticks(range(len(rows)), _names(rows, "\n"))
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    ends = rows[list(sources)].cumsum(axis=1)
    low, high = min(0.0, ends.min().min()), ends.max().max()
    high = max(high, min(1.4 * high, _intervals_end(rows, sources)))  # a wide interval is cut, a bar never
    axis.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _staircase(axis: Axes, row: pd.Series, sources: Sequence[str], place: int) -> None:
    """The segments of one row, each in a lane of its own; the running total leads from one to the next."""
    shown = [source for source in sources if abs(row[source]) > NOTHING]
    height, total = 0.84 / max(len(shown), 1), 0.0
    lane = place - 0.42
    for source in shown:
        colour = PALETTE[sources.index(source)]
        before, total = total, total + row[source]
        look = {"facecolor": colour, "edgecolor": "white" if row[source] < 0 else colour, "lw": 0}
        axis.barh(lane, row[source], height, before, align="edge", **look, **(UNDOES if row[source] < 0 else {}))
        middle = lane + height / 2
        axis.plot([before + row[f"{source}_low"], before + row[f"{source}_high"]], [middle] * 2, color="0.25", lw=0.8)
        lane += height
        axis.plot([total, total], [lane - height, min(lane + height, place + 0.42)], color="black", lw=0.8)
    axis.plot(row["regret"], place + 0.42 - height / 2, "kD", ms=3.2, zorder=5)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    axis.annotate(text(float(row["regret"])), (1, place), (4, 0), va="center", fontsize=7.5, **beside)


def _intervals_end(rows: pd.DataFrame, sources: Sequence[str]) -> float:
    """The right end of the interval that goes furthest."""
    before = rows[list(sources)].cumsum(axis=1).shift(axis=1, fill_value=0.0)
    return float((before + rows[[f"{source}_high" for source in sources]].to_numpy()).max().max())


def _names(rows: pd.DataFrame, between: str) -> pd.Series:
    """'ppo, learned reward': what stands before the column `n`, in words; '' and NaN say nothing."""
    named = list(rows.columns[: rows.columns.get_loc("n")])
    words = {name: "" if name == "method" else f" {short_name(name)}" for name in named}
    return rows[named].apply(
        lambda row: between.join(
            f"{text(row[name]).replace('_', ' ')}{words[name]}"
            for name in named
            if row[name] != "" and not pd.isna(row[name])
        ),
        axis=1,
    )


def _entries(sources: Sequence[str]) -> list:
    entries = [Patch(facecolor=PALETTE[index], label=source) for index, source in enumerate(sources)]
    entries.append(Patch(facecolor="0.6", edgecolor="white", hatch=UNDOES["hatch"], label="undoes error above"))
    entries.append(Line2D([], [], color="black", marker="D", ms=3.2, lw=0.8, label="running total, regret"))
    entries.append(Line2D([], [], color="0.25", lw=0.8, label="95% interval over seeds"))
    return entries
