"""Where losses go: the population optimum of each, beside the exact frontier."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlpref.report.figures import KL_LABEL, REWARD_LABEL
from rlpref.report.style import MARKERS, PALETTE, RC, shade

IN_PANEL = 8  # losses: what a legend can tell apart
NEAREST = 1e-9  # nats: what is nearer is drawn here
ENDS = {"minimum": "o", "kink": "s", "fixed point": "D", "runs off": "X", "unbounded below": "v"}
FAMILIES = {
    "pairs": "functions of the margin",
    "anchored": "each log-ratio by itself",
    "reference_free": "no reference",
    "scored": "with scores",
    "lists": "lists of three answers",
}


def optima_figure(rows: pd.DataFrame, line: pd.DataFrame, beta: float) -> Figure:
    """Left: KL of every loss's end to the KL-regularised optimum at `beta`. Right: the paths of the ends over beta in
    the reward-KL plane, by family.

    `rows` has family, loss, beta, pairs (reference, holes), start, end (see ENDS), kl_optimum, kl and reward; those
    that start at the reference are drawn. `line` is the exact frontier: kl, reward.
    """
    ours = rows[rows["start"] == "reference"]
    panels = list(_panels(ours[ours["pairs"] == "reference"]))
    with mpl.rc_context(RC):
        height = -(-len(panels) // 2)
        figure = Figure(figsize=(14, max(3.1 * height, 0.19 * ours["loss"].nunique() + 1.2)), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(0.8, 1.2))
        _distances(left.subplots(), ours[(ours["beta"] == beta) | ours["beta"].isna()], beta)
        axes = right.subplots(height, 2, squeeze=False).flat
        for axis, (title, losses) in zip(axes, panels):
            _plane(axis, losses, line)
            axis.set_title(title)
        for axis in list(axes)[len(panels) :]:
            axis.set_axis_off()
        right.supxlabel(KL_LABEL, fontsize=9)
        right.supylabel(REWARD_LABEL, fontsize=9)
        return figure


def _panels(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, rows) of at most IN_PANEL losses of one family."""
    for family in sorted(rows["family"].unique(), key=[*FAMILIES, *rows["family"]].index):
        own = rows[rows["family"] == family]
        names = list(own["loss"].unique())
        parts = np.array_split(names, -(-len(names) // IN_PANEL))
        for number, part in enumerate(parts, 1):
            count = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            yield FAMILIES.get(family, family) + count, own[own["loss"].isin(part)]


def _plane(axis: Axes, rows: pd.DataFrame, line: pd.DataFrame) -> None:
    axis.plot(line["kl"], line["reward"], color="black", lw=1.2, zorder=1)
    for number, (loss, path) in enumerate(rows.groupby("loss", sort=False)):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number]
        path = path.sort_values("beta")
        axis.plot(path["kl"], path["reward"], color=colour, lw=0.8, zorder=2)
        for index, point in enumerate(path.itertuples()):
            fill = shade(colour, index, len(path))
            axis.plot(point.kl, point.reward, marker=marker, ms=5, mfc=fill, mec=colour, ls="", zorder=3)
        axis.plot([], [], color=colour, marker=marker, ms=5, lw=0.8, label=loss)
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    largest = line["kl"].max()
    axis.set_xlim(0, 1.05 * largest)
    axis.set_xticks([tick for tick in (0, 0.1, 0.5, 1, 2, 3, 4, 5, 6) if tick < largest])
    axis.set_ylim(line["reward"].min() - 0.1, line["reward"].max() + 0.1)
    axis.legend(loc="lower right", fontsize=6.8, borderaxespad=0.1, handlelength=1.6, labelspacing=0.25)


def _distances(axis: Axes, rows: pd.DataFrame, beta: float) -> None:
    order = rows[rows["pairs"] == "reference"].sort_values("kl_optimum", ascending=False, kind="stable")
    colours = dict(zip(FAMILIES, PALETTE))
    place = {loss: index for index, loss in enumerate(order["loss"])}
    for row in rows.itertuples():
        colour = colours.get(row.family, "0.4")
        fill = colour if row.pairs == "reference" else "white"
        shown = max(row.kl_optimum, NEAREST)
        axis.plot(shown, place[row.loss], marker=ENDS[row.end], ms=5.5, mfc=fill, mec=colour, ls="")
    axis.set_yticks(range(len(place)), list(place), fontsize=7.5)
    axis.set_ylim(-0.7, len(place) - 0.3)
    axis.set_xscale("log")
    axis.set_xlabel(f"KL(end || optimum at β = {beta:g}), nats; at the left edge: below {NEAREST:g}")
    dot = {"marker": "o", "ls": "", "ms": 5.5, "mec": "0.4"}
    handles = [Line2D([], [], mfc=colours[f], label=FAMILIES[f], **dot | {"mec": colours[f]}) for f in FAMILIES]
    handles += [Line2D([], [], mfc="0.4", label="pairs of the reference", **dot)]
    handles += [Line2D([], [], mfc="white", label="pairs with a hole", **dot)]
    for end in (end for end in ENDS if end in set(rows["end"])):
        handles.append(Line2D([], [], mfc="0.4", label=end, **dot | {"marker": ENDS[end]}))
    axis.legend(handles=handles, loc="upper left", fontsize=7.5, bbox_to_anchor=(0.03, 0.97))
