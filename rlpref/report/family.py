"""Many methods in one figure: the reward-KL plane, and beside it what each reward cost."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpref.report.figures import KL_LABEL, REWARD_LABEL
from rlpref.report.frames import Sweep
from rlpref.report.panels import interval, problems
from rlpref.report.style import RC, Look, legend

COSTS = {"samples": "answers drawn for training", "labels": "labels", "training": "seconds of training"}


def family_figure(sweep: Sweep, title: str) -> Figure:
    """Left the mean over seeds of each method's path in the reward-KL plane, with the 95% interval over seeds of both
    at its end; right the same rewards against what had been spent by then.

    Raises ValueError where the sweep holds several problems, or none that was evaluated: the plane is of one.
    """
    panels = list(problems(sweep, ("kl", "reward")))
    if len(panels) != 1:
        raise ValueError(f"the figure shows one problem, and the runs have {len(panels)}")
    history = panels[0][1].query("done")
    history = history.assign(training=history["time/training_seconds"])
    look = Look.of(history["method"], history["beta"], [""])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(13.5, 4.2), layout="constrained")
        plane, *costs = figure.subplots(1, 4, width_ratios=[2.1, 1, 1, 1])
        for axis, (name, label) in zip(costs, COSTS.items()):
            axis.sharey(plane)
            axis.tick_params(labelleft=False)
            axis.set_xlabel(label)
            for method, cell in history.groupby("method", sort=False):
                _path(axis, cell, name, look.styles[method])
        for method, cell in history.groupby("method", sort=False):
            _path(plane, cell, "kl", look.styles[method])
            _crossed(plane, cell.groupby("run").tail(1), look.styles[method][0])
        plane.plot(*history.groupby("run")[["kl", "reward"]].first().mean(), "k*", ms=10, zorder=5)
        plane.set(xlabel=KL_LABEL, ylabel=REWARD_LABEL, title=title)
        legend(figure, look, [], markers=True)
    return figure


def _path(axis: Axes, cell: pd.DataFrame, name: str, style: tuple[str, str]) -> None:
    """Means over seeds at each evaluation that all of them have."""
    by_step = cell.groupby("step")
    whole = by_step.size() == by_step.size().max()
    x, y = (by_step[column].mean()[whole].to_numpy() for column in (name, "reward"))
    colour, marker = style
    axis.plot(x, y, color=colour, lw=1.1, alpha=0.8)
    axis.plot(x[-1], y[-1], color=colour, marker=marker, ms=6.5, mec="white", mew=0.5, zorder=4)


def _crossed(axis: Axes, ends: pd.DataFrame, colour: str) -> None:
    kl, reward = (np.array(interval(ends, name)) for name in ("kl", "reward"))
    errors = [np.abs(each[1:] - each[0])[:, None] for each in (kl, reward)]
    axis.errorbar(kl[0], reward[0], errors[1], errors[0], color=colour, lw=1, capsize=2, zorder=3)
