"""One look for all figures: a method has the same colour and marker everywhere, beta is its lightness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter, LogFormatterMathtext

RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names come from settings and data: a $ in one is no formula
}
# Okabe & Ito 2008, without yellow (too light for a line) and black (the frontier); then four of Tol's muted colours.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933", "#332288", "#777777")
LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
# Ten colours and ten markers: the first ten looks share neither, a hundred share no pair of them.
LOOKS = tuple((PALETTE[i % 10], MARKERS[(i + 3 * (i // 10)) % 10]) for i in range(100))
FIRST = (
    *("dpo", "ipo", "iterative_dpo", "ppo", "sft", "reward_model", "reinforce", "grpo", "rejection", "kto"),
    *("online_dpo", "dr_grpo", "remax", "nash_md", "xpo", "dapo", "gspo", "reinforce_pp", "a2c", "trpo"),
    *("online_ipo", "sppo"),
)


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """method -> (colour, marker). The methods of FIRST look alike in every report; others take what these leave, the
    looks that share no colour and no marker with another method of the figure before those that do."""
    styles = {method: LOOKS[FIRST.index(method)] for method in FIRST if method in methods}
    left = [look for look in LOOKS if look not in styles.values()]
    for method in sorted(method for method in methods if method not in FIRST):
        taken = {part for look in styles.values() for part in look}
        fresh = [look for look in left if not taken & set(look)]
        styles[method] = (fresh or left or LOOKS)[0]
        left = [look for look in left if look != styles[method]]
    return styles


def shade(colour: str, index: int, count: int) -> tuple[float, float, float]:
    """The colour for beta number `index` of `count`, in ascending order: the largest is the full colour."""
    white = 0.0 if count < 2 else 0.6 * (1 - index / (count - 1))
    red, green, blue = (1 - white) * np.array(to_rgb(colour)) + white
    return float(red), float(green), float(blue)


@dataclass(frozen=True)
class Look:
    """How the methods and betas of one figure are drawn."""

    styles: dict[str, tuple[str, str]]
    betas: list[float]
    lines: dict[str, str | tuple]  # by what else is swept

    @classmethod
    def of(cls, methods: Iterable[str], betas: Iterable[float], settings: Iterable[str]) -> Look:
        return cls(
            styles=method_styles(list(dict.fromkeys(methods))),
            betas=sorted({beta for beta in betas if not math.isnan(beta)}),
            lines=dict(zip(sorted(set(settings)), cycle(LINES))),
        )

    def colour(self, method: str, beta: float) -> tuple[float, float, float]:
        """The method's colour, lighter for a smaller beta; the full colour where there is no beta."""
        colour = self.styles[method][0]
        return shade(colour, self.betas.index(beta), len(self.betas)) if beta in self.betas else to_rgb(colour)


def legend_height(look: Look, extra: int) -> float:
    """Inches that `legend` takes: a figure that is lower cuts it."""
    parts = [len(look.styles), len(look.betas), len(look.lines)]
    return 0.25 + 0.175 * (parts[0] + sum(part for part in parts[1:] if part > 1) + extra)


def legend(figure: Figure, look: Look, extra: list[Line2D], markers: bool) -> None:
    """Methods by colour and marker, betas by lightness: not one entry per combination."""
    entries = [
        Line2D([], [], color=colour, marker=marker, ls="" if markers else "-", ms=6, label=method)
        for method, (colour, marker) in look.styles.items()
    ]
    if len(look.betas) > 1:
        for index, beta in enumerate(look.betas):
            grey = shade("#404040", index, len(look.betas))
            fill = {"mfc": grey, "mec": "#404040"}
            entries.append(Line2D([], [], marker="o", ls="", ms=6, label=f"β = {beta:g}", **fill))
    if len(look.lines) > 1:
        entries += [
            Line2D([], [], color="#404040", ls=line, label=setting or "not set") for setting, line in look.lines.items()
        ]
    figure.legend(handles=[*entries, *extra], loc="outside right upper", alignment="left")


def plain_logs(figure: Figure) -> None:
    """Writes the ticks of logarithmic axes as plain numbers: matplotlib's own are formulas, which RC does not parse."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(LogFormatter(axis.get_transform().base, minor_thresholds=(1, 0.4)))


def root_scale(axis: Axes, name: str, largest: float) -> None:
    """The x or y axis from 0 on a scale of square roots, on which a frontier begins as a straight line."""
    getattr(axis, f"set_{name}scale")("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ticks = [0.0]
    for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 50, 100, 200, 500):
        if tick < largest and np.sqrt(tick) - np.sqrt(ticks[-1]) > 0.09 * np.sqrt(largest):
            ticks.append(tick)
    getattr(axis, f"set_{name}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(axis, f"set_{name}lim")((0, largest) if name == "x" else (largest, 0))
