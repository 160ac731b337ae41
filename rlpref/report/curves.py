"""Reward, KL and regret against what they cost."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpref.report.frames import Sweep
from rlpref.report.panels import interval, problems
from rlpref.report.style import RC, Look, legend


def curves(sweep: Sweep) -> dict[str, Figure]:
    """Problem title -> means over seeds, with 95% bands, against optimizer steps and against labels
    or samples."""
    panels = problems(sweep, ("reward",))
    with mpl.rc_context(RC):
        return {title: _curves_figure(history) for title, history in panels}


def _curves_figure(history: pd.DataFrame) -> Figure:
    measures = {"reward": "expected reward", "kl": "KL to the reference (nats)", "regret": "regret"}
    if history["regret"].isna().all():
        measures |= {"win_rate": "win rate vs reference"}
    measures = {name: label for name, label in measures.items() if history[name].notna().any()}
    costs = {"steps": "optimizer steps", **_second_cost(history)}
    look = Look.of(history["method"], history["beta"], history["setting"])
    finished = history[history["done"]]
    figure = Figure(figsize=(1.7 + 2.6 * len(measures), 2.3 * len(costs) + 0.2), layout="constrained")
    axes = figure.subplots(len(costs), len(measures), squeeze=False, sharey="col")
    for row, (cost, cost_label) in zip(axes, costs.items()):
        for axis, (name, label) in zip(row, measures.items()):
            _curves_panel(axis, finished if len(finished) else history, look, cost, name)
            _limits(axis, history[name])
            axis.set(xlabel=cost_label, ylabel=label)
    legend(figure, look, [], markers=False)
    return figure


def _second_cost(history: pd.DataFrame) -> dict[str, str]:
    """Labels or samples, whichever more runs spend."""
    spent = {name: int((history.groupby("run")[name].max() > 0).sum()) for name in ("labels", "samples")}
    best = max(spent, key=spent.__getitem__)
    titles = {"labels": "reward or preference labels", "samples": "sampled answers"}
    return {best: titles[best]} if spent[best] else {}


def _curves_panel(axis: Axes, shown: pd.DataFrame, look: Look, cost: str, name: str) -> None:
    keys = ["method", "beta", "setting"]
    for (method, beta, setting), cell in shown.dropna(subset=[name, cost]).groupby(keys, dropna=False, sort=False):
        colour = look.colour(method, beta)
        groups = [rows for _, rows in cell.groupby("step") if len(rows) > 0]
        most = max(len(rows) for rows in groups)
        groups = [rows for rows in groups if len(rows) == most]
        x = np.array([rows[cost].mean() for rows in groups])
        mean, low, high = np.array([interval(rows, name) for rows in groups]).T
        alone = np.ptp(x) == 0
        axis.plot(x[-1:] if alone else x, mean[-1:] if alone else mean, color=colour, lw=1.4, ls=look.lines[setting])
        edge, marker = look.styles[method]
        axis.plot(x[-1], mean[-1], marker=marker, mfc=colour, mec=edge, ms=4.5)
        if not alone:
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    totals = shown.groupby("method")[cost].max()
    totals = totals[totals > 0]
    if len(totals) and totals.max() > 20 * totals.min():
        axis.set_xscale("symlog", linthresh=float(totals.min()))


def _limits(axis: Axes, values: pd.Series) -> None:
    """A band can be many times as high as the curves: it is cut, they are not."""
    height = max(values.max() - values.min(), 1e-6)
    axis.set_ylim(values.min() - 0.15 * height, values.max() + 0.15 * height)
