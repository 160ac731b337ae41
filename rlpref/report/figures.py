"""The runs in the reward-KL plane, against the exact Pareto frontier where it is known."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.lines import Line2D

from rlpref.report.folders import write_atomically
from rlpref.report.frames import Sweep, load
from rlpref.report.panels import bars, interval, problems, spoken
from rlpref.report.section import Chart, Point, Section
from rlpref.report.style import RC, Look, legend, legend_height, plain_logs
from rlpref.report.tables import text

KL_LABEL = "KL(policy || reference), nats per answer"
REWARD_LABEL = "expected reward"
MAX_OPTIMA = 5
logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports each font that it puts into a PDF


def frontier(sweep: Sweep) -> Figure | None:
    """Every run's path from the reference to its end in the reward-KL plane, one panel per problem.

    Where the model can be enumerated the values are exact and the black line is the Pareto frontier;
    elsewhere a large marker is the mean over seeds, with its 95% interval: over seeds from three on, over
    prompts below. None if no run was evaluated.
    """
    panels = list(problems(sweep, ("kl", "reward")))
    if not panels:
        return None
    shown = pd.concat([history for _, history in panels])
    look = Look.of(shown["method"], shown["beta"], shown["setting"])
    with mpl.rc_context(RC):
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        height = max(3.7 * rows, legend_height(look, extra=3))
        figure = Figure(figsize=(1.9 + 4.1 * columns, height), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, (title, history) in zip(axes, panels):
            _frontier_panel(axis, sweep, history, look)
            axis.set(title=title, xlabel=KL_LABEL, ylabel=REWARD_LABEL)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        extra = [Line2D([], [], color="black", marker="*", ls="", ms=9, label="reference")]
        if sweep.frontier is not None:
            extra.insert(0, Line2D([], [], color="black", lw=1.4, label="exact frontier"))
            extra.append(Line2D([], [], color="black", marker="x", ls="", ms=5, label="optimum at a beta"))
        legend(figure, look, extra, markers=True)
        return figure


def section(sweep: Sweep) -> Section | None:
    """The figure `frontier`, in which each evaluation of each run answers; None if no run was evaluated."""
    figure = frontier(sweep)
    if figure is None:
        return None
    caption = f"Reward against KL to the reference, from the first evaluation of a run to its last. {bars(sweep)}"
    panels = zip(figure.axes, problems(sweep, ("kl", "reward")))
    points = tuple(point for axis, (_, history) in panels for point in _points(axis, history))
    return Section("Reward and KL", charts=(Chart("frontier", figure, caption.rstrip(), points),))


def run_figure(folder: Path) -> Path | None:
    """The `frontier` figure of one run, ended or about to end: <folder>/report/frontier.png.

    Example: `run_figure(load("runs/demo").done["folder"].iloc[0])`

    None where the run evaluated no reward and KL (a reward model).
    """
    sweep = load(folder)
    sweep.runs["status"] = sweep.runs["status"].replace("running", "done")
    figure = frontier(sweep)
    if figure is None:
        return None
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(buffer, format="png", dpi=100)  # every run of a sweep draws one: quick before fine
    return write_atomically(Path(folder) / "report" / "frontier.png", buffer.getvalue())


def lay_out(figure: Figure) -> None:
    """Once, and not again for each format that it is drawn in. Raises what drawing it raises."""
    if isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
        return
    plain_logs(figure)
    with mpl.rc_context(RC):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save(figure: Figure, folder: Path, name: str) -> bytes:
    """Writes <name>.png (200 dpi) and <name>.pdf; returns the PNG."""
    FigureCanvasAgg(figure)
    lay_out(figure)
    content = {}
    with mpl.rc_context(RC):
        for kind in ("pdf", "png"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
            content[kind] = buffer.getvalue()
            write_atomically(folder / f"{name}.{kind}", content[kind])
    return content["png"]


def _points(axis: Axes, history: pd.DataFrame) -> list[Point]:
    return [
        Point(
            axis,
            row["kl"],
            row["reward"],
            spoken(
                row,
                f"step {text(row['steps'])}: reward {text(row['reward'])}, KL {text(row['kl'])} nats",
                *([] if pd.isna(row["regret"]) else [f"regret {text(row['regret'])}"]),
                row["run"] if row["done"] else f"{row['run']} (not done)",
            ),
            row["run"],
        )
        for row in history.to_dict("records")
    ]


def _frontier_panel(axis: Axes, sweep: Sweep, history: pd.DataFrame, look: Look) -> None:
    ends = history.groupby("run", sort=False).tail(1)
    exact = bool(history["exact"].all())
    for _, path in history.groupby("run", sort=False):
        method, beta, setting, done = path.iloc[-1][["method", "beta", "setting", "done"]]
        line = look.lines[setting] if done else ":"
        axis.plot(path["kl"], path["reward"], ls=line, lw=0.7, alpha=0.75, color=look.colour(method, beta))
    keys = ["method", "beta", "setting"]
    for (method, beta, _), cell in ends[ends["done"]].groupby(keys, dropna=False, sort=False):
        edge, marker = look.styles[method]
        shape = {"marker": marker, "mfc": look.colour(method, beta), "mec": edge, "ls": "", "zorder": 4}
        axis.plot(cell["kl"], cell["reward"], ms=6.5 if exact else 3.5, alpha=0.9 if exact else 0.6, **shape)
        if not exact:
            _end_point(axis, cell, edge, shape)
    axis.plot(*history.groupby("run")[["kl", "reward"]].first().mean(), "k*", ms=10, zorder=5)
    lines = _frontier_lines(sweep, history)
    optima = _optima(lines, look.betas)
    _limits(axis, history, ends, optima)
    for line in lines:
        axis.plot(line["kl"], line["reward"], color="black", lw=1.4, zorder=2)
    _draw_optima(axis, optima)


def _end_point(axis: Axes, cell: pd.DataFrame, colour: str, shape: dict) -> None:
    kl, reward = (interval(cell, name) for name in ("kl", "reward"))
    errors = [[[i.mean - i.low], [i.high - i.mean]] for i in (kl, reward)]
    axis.errorbar(kl.mean, reward.mean, *errors[::-1], color=colour, lw=1, capsize=2, zorder=3)
    axis.plot(kl.mean, reward.mean, ms=8.5, **shape)


def _limits(axis: Axes, history: pd.DataFrame, ends: pd.DataFrame, optima: pd.DataFrame) -> None:
    """By the runs, their errors over prompts and the optima near them: neither the frontier's length nor a
    wide interval over seeds may press the runs together."""
    near = optima[optima["kl"] <= 1.25 * history["kl"].max()]
    names = ["kl", "reward"]
    errors = 1.96 * ends[["kl_se", "reward_se"]].set_axis(names, axis=1).fillna(0.0)
    points = pd.concat([history[names], near[names], ends[names] - errors, ends[names] + errors])
    low, high = points.min(), points.max()
    width, height = (high - low).clip(lower=1e-6)
    axis.set_xlim(min(history["kl"].min(), 0) - 0.04 * width, high["kl"] + 0.06 * width)
    axis.set_ylim(low["reward"] - 0.06 * height, high["reward"] + 0.1 * height)


def _frontier_lines(sweep: Sweep, history: pd.DataFrame) -> list[pd.DataFrame]:
    """The distinct frontiers of these runs."""
    if sweep.frontier is None:
        return []
    own = sweep.frontier[sweep.frontier["run"].isin(history["run"])]
    return list({tuple(line["kl"]): line for _, line in own.groupby("run", sort=False)}.values())


def _optima(lines: list[pd.DataFrame], betas: list[float]) -> pd.DataFrame:
    """The points of the one frontier that are optimal for the betas that were run."""
    points = []
    if len(lines) == 1:
        line = lines[0][np.isfinite(lines[0]["beta"]) & (lines[0]["beta"] > 0)].sort_values("beta")
        for beta in betas[:MAX_OPTIMA]:
            if len(line) and line["beta"].min() <= beta <= line["beta"].max():
                at = [np.interp(np.log(beta), np.log(line["beta"]), line[name]) for name in ("kl", "reward")]
                points.append((beta, *at))
    return pd.DataFrame(points, columns=["beta", "kl", "reward"], dtype=float)


def _draw_optima(axis: Axes, optima: pd.DataFrame) -> None:
    for beta, kl, reward in optima.itertuples(index=False):
        axis.plot(kl, reward, "kx", ms=5, zorder=6)
        axis.annotate(
            f"β = {beta:g}",
            (kl, reward),
            (-4, 5),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            annotation_clip=True,
        )
