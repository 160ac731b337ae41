"""Reward, KL and regret against what they cost."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlpref.report.frames import Sweep
from rlpref.report.panels import bars, interval, numbered, problems, spoken
from rlpref.report.section import Chart, Point, Section
from rlpref.report.style import RC, Look, legend, legend_height
from rlpref.report.tables import text


def section(sweep: Sweep) -> Section | None:
    """One chart for each problem; None if no run was evaluated."""
    charts = tuple(_charts(sweep))
    return Section("Learning curves", charts=charts) if charts else None


def curves(sweep: Sweep) -> dict[str, Figure]:
    """Problem title -> means over seeds, with 95% bands, against optimizer steps and against labels
    or samples."""
    return {title: figure for title, figure, _ in _drawn(sweep)}


def _charts(sweep: Sweep) -> Iterator[Chart]:
    drawn = list(_drawn(sweep))
    for end, before, _, figure, points in numbered(drawn):
        caption = f"{before}Mean over seeds and 95% band against what was spent. {bars(sweep)}".rstrip()
        yield Chart(f"curves{end}", figure, caption, tuple(points))


def _drawn(sweep: Sweep) -> Iterator[tuple[str, Figure, list[Point]]]:
    with mpl.rc_context(RC):
        for title, history in problems(sweep, ("reward",)):
            yield title, *_curves_figure(history)


def _curves_figure(history: pd.DataFrame) -> tuple[Figure, list[Point]]:
    measures = {"reward": "expected reward", "kl": "KL to the reference (nats)", "regret": "regret"}
    if history["regret"].isna().all():
        measures |= {"win_rate": "win rate vs reference"}
    measures = {name: label for name, label in measures.items() if history[name].notna().any()}
    costs = {"steps": "optimizer steps", **_second_cost(history)}
    look = Look.of(history["method"], history["beta"], history["setting"])
    finished = history[history["done"]]
    shown = finished if len(finished) else history
    height = max(2.3 * len(costs) + 0.2, legend_height(look, extra=0))
    figure = Figure(figsize=(1.7 + 2.6 * len(measures), height), layout="constrained")
    axes = figure.subplots(len(costs), len(measures), squeeze=False, sharey="col")
    points = []
    for row, (cost, cost_label) in zip(axes, costs.items()):
        for axis, (name, label) in zip(row, measures.items()):
            cells = list(_means(shown, cost, name))
            _curves_panel(axis, cells, look)
            _scale(axis, shown, cost)
            _limits(axis, history[name])
            axis.set(xlabel=cost_label, ylabel=label)
            points += [point for cell, means in cells for point in _points(axis, cell, means, (cost_label, label))]
    legend(figure, look, [], markers=False)
    return figure, points


def _second_cost(history: pd.DataFrame) -> dict[str, str]:
    """Labels or samples, whichever more runs spend."""
    spent = {name: int((history.groupby("run")[name].max() > 0).sum()) for name in ("labels", "samples")}
    best = max(spent, key=spent.__getitem__)
    titles = {"labels": "reward or preference labels", "samples": "sampled answers"}
    return {best: titles[best]} if spent[best] else {}


def _means(shown: pd.DataFrame, cost: str, name: str) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Each cell of the grid with its means over seeds, evaluation by evaluation: cost, mean, low, high, runs."""
    keys = ["method", "beta", "setting"]
    for cell, rows in shown.dropna(subset=[name, cost]).groupby(keys, dropna=False, sort=False):
        groups = [group for _, group in rows.groupby("step")]
        most = max(len(group) for group in groups)
        table = [(g[cost].mean(), *interval(g, name), len(g)) for g in groups if len(g) == most]
        yield dict(zip(keys, cell)), pd.DataFrame(table, columns=["cost", "mean", "low", "high", "runs"])


def _curves_panel(axis: Axes, cells: list[tuple[dict, pd.DataFrame]], look: Look) -> None:
    for cell, means in cells:
        colour = look.colour(cell["method"], cell["beta"])
        alone = means["cost"].nunique() == 1
        line = means.tail(1) if alone else means
        axis.plot(line["cost"], line["mean"], color=colour, lw=1.4, ls=look.lines[cell["setting"]])
        edge, marker = look.styles[cell["method"]]
        axis.plot(*means[["cost", "mean"]].iloc[-1], marker=marker, mfc=colour, mec=edge, ms=4.5)
        if not alone:
            axis.fill_between(means["cost"], means["low"], means["high"], color=colour, alpha=0.15, lw=0)


def _scale(axis: Axes, shown: pd.DataFrame, cost: str) -> None:
    """Methods that spend a hundred times as much as others would press these into the axis. 80k: five digits would
    touch the next five."""
    totals = shown.groupby("method")[cost].max()
    totals = totals[totals > 0]
    if len(totals) and totals.max() > 20 * totals.min():
        axis.set_xscale("symlog", linthresh=float(totals.min()))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _points(axis: Axes, cell: dict, means: pd.DataFrame, labels: tuple[str, str]) -> Iterator[Point]:
    for row in means.to_dict("records"):
        band = "" if np.isnan(row["low"]) else f" [{text(row['low'])}, {text(row['high'])}]"
        spent = f"{labels[0]} {text(row['cost'])}"
        said = spoken(cell, spent, f"{labels[1]} {text(row['mean'])}{band}", f"mean of {row['runs']} runs")
        yield Point(axis, row["cost"], row["mean"], said)


def _limits(axis: Axes, values: pd.Series) -> None:
    """A band can be many times as high as the curves: it is cut, they are not."""
    height = max(values.max() - values.min(), 1e-6)
    axis.set_ylim(values.min() - 0.15 * height, values.max() + 0.15 * height)
