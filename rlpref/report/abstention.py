"""Where policies abstain: against how likely an answer is right, and what is lost by answering."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpref.report.style import RC, method_styles


def abstention_figure(rates: pd.DataFrame) -> Figure:
    """A panel for each cost: the chance that a policy abstains over the chance p that an answer is right, beside the
    exact optimum and Chow's threshold c / (1 + c). Right: wrong answers over answers, as shares of all questions, on
    the curve of those who answer where p is at least some threshold.

    `rates` has cost, method (`optimum`: the exact one), p and rate, one row for each question, the mean over seeds.
    """
    costs = sorted(rates["cost"].unique())
    styles = method_styles([method for method in rates["method"].unique() if method != "optimum"])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(3.1 * (len(costs) + 1), 3.2), layout="constrained")
        axes = figure.subplots(1, len(costs) + 1)
        for axis, cost in zip(axes, costs):
            _rates(axis, rates[rates["cost"] == cost], styles, cost)
        axes[0].set_ylabel("chance of abstaining")
        _wrong(axes[-1], rates, styles, costs)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(styles) + 2)
        return figure


def _rates(axis: Axes, rates: pd.DataFrame, styles: dict, cost: float) -> None:
    axis.axvline(cost / (1 + cost), color="0.55", ls=":", lw=1.5, label="c / (1 + c)")
    for method, own in rates.groupby("method", sort=False):
        own = own.sort_values("p")
        if method == "optimum":
            axis.plot(own["p"], own["rate"], color="black", lw=1, label="exact optimum")
        else:
            colour, marker = styles[method]
            axis.plot(own["p"], own["rate"], color=colour, marker=marker, ms=3.5, lw=0.8, label=method)
    axis.set_title(f"a wrong answer costs c = {cost:g}")
    axis.set_xlabel("chance p that an answer is right")
    axis.set_ylim(-0.03, 1.03)


def _wrong(axis: Axes, rates: pd.DataFrame, styles: dict, costs: list[float]) -> None:
    p = np.sort(rates["p"].unique())[::-1]
    answered = np.arange(len(p) + 1) / len(p)
    axis.plot(answered, np.append(0, np.cumsum(1 - p)) / len(p), color="0.55", lw=1)
    for (method, cost), own in rates[rates["method"] != "optimum"].groupby(["method", "cost"], sort=False):
        answers = 1 - own["rate"]
        colour, marker = styles[method]
        place = answers.mean(), (answers * (1 - own["p"])).mean()
        axis.plot(*place, color=colour, marker=marker, ms=4 + 1.5 * costs.index(cost), mfc="white", ls="")
    axis.set_title("best first (line); the larger, the dearer")
    axis.set_xlabel("answered")
    axis.set_ylabel("answered and wrong")
