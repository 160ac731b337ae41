"""Feng et al. 2024: by the ratios x = pi/ref of chosen and rejected, DPO's slopes stand to each other as x2 to x1.

The slopes are autograd's, of the losses as the registry has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import LOSSES, make_loss
from rlpref.losses.inputs import PairLogps
from rlpref.losses.registry import of_the_margin
from rlpref.report.style import PALETTE, shade

FELT = 1e-12  # slopes below are those of a loss that is flat there (a hinge beyond its margin)


@dataclass(frozen=True)
class Grid:
    betas: list[float]
    points: int
    smallest: float
    largest: float


def field(name: str, beta: float, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """([n], [n]) slopes of a pair loss by x1 = pi/ref of the chosen and x2 of the rejected answer."""
    x1, x2 = (x.clone().requires_grad_() for x in (chosen, rejected))
    zero, one = torch.zeros_like(x1), torch.ones_like(x1)
    loss = make_loss(name, **LOSSES[name].at(beta))
    pairs = PairLogps(x1.log(), x2.log(), zero, zero, one, one, 0.5 * one, -0.5 * one, 0.9 * one, zero, zero)
    return torch.autograd.grad(loss(pairs).sum(), (x1, x2))


def margin_losses(beta: float) -> list[str]:
    """The pair losses of the registry, one pair at a time, that are functions of the margin at their defaults."""
    pairs = [entry for entry in LOSSES.values() if entry.takes is PairLogps and not entry.coupled]
    return [entry.name for entry in pairs if of_the_margin(make_loss(entry.name, **entry.at(beta)))]


def slopes(grid: Grid) -> pd.DataFrame:
    """One row per loss, beta and point: x1, x2 and the slopes there."""
    axis = torch.linspace(grid.smallest, grid.largest, grid.points, dtype=torch.float64)
    x1, x2 = (table.flatten() for table in torch.meshgrid(axis, axis, indexing="ij"))
    parts = []
    for beta in grid.betas:
        for name in margin_losses(beta):
            by1, by2 = field(name, beta, x1, x2)
            columns = {"x1": x1, "x2": x2, "by_x1": by1, "by_x2": by2}
            parts.append(
                pd.DataFrame({key: value.numpy() for key, value in columns.items()}).assign(loss=name, beta=beta)
            )
    return pd.concat(parts, ignore_index=True)


def draw(rows: pd.DataFrame, grid: Grid) -> Figure:
    dpo = rows[rows["loss"] == "dpo"]
    with style():
        figure, axes = panels(2, height=2.7, title="DPO pushes the rejected answer down faster than the chosen one up")
        left, right = axes
        own = dpo[dpo["beta"] == grid.betas[0]]
        size = np.hypot(own["by_x1"], own["by_x2"])
        arrows = left.quiver(
            *(own["x1"], own["x2"], -own["by_x1"] / size, -own["by_x2"] / size, np.log10(size)),
            **{"cmap": "Blues", "angles": "xy", "scale": 22, "width": 0.004},
        )
        arrows.set_clim(np.log10(size).min() - 1, np.log10(size).max())  # not from white
        bar = figure.colorbar(arrows, ax=left)
        bar.set_label("log10 of the slope's length", fontsize=7)
        left.plot([0, grid.largest], [0, grid.largest], color="black", lw=0.8, ls=":")
        left.plot(1, 1, color="black", marker="o", ms=4)
        left.set(xlabel="x1 = pi/ref of the chosen answer", ylabel="x2 = pi/ref of the rejected answer")
        left.set_title(f"descent direction, beta {grid.betas[0]:g} (dot: the start)")
        x2 = torch.logspace(-2, 0, 60, dtype=torch.float64)
        for i, beta in enumerate(grid.betas):
            by1, by2 = field("dpo", beta, torch.ones_like(x2), x2)
            for colour, slope, name in ((PALETTE[1], by2, "rejected"), (PALETTE[0], -by1, "chosen")):
                shaded = shade(colour, i, len(grid.betas))
                right.plot(x2, slope, color=shaded, lw=1.2, label=f"{name}, beta {beta:g}")
        right.set(xscale="log", yscale="log", xlabel="x2, while x1 = 1", ylabel="size of the slope", ylim=(0.008, 100))
        right.set_title("the rejected slope grows as x2 falls")
        right.legend(ncols=2, loc="upper center", columnspacing=1, handlelength=1.5)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = slopes(grid)
    felt = rows[(rows["by_x1"].abs() > FELT) & (rows["by_x2"].abs() > FELT)]
    off = ((felt["by_x1"] / felt["by_x2"]).abs() * felt["x1"] / felt["x2"] - 1).abs()
    dpo, lower = rows[rows["loss"] == "dpo"], rows["x2"] < rows["x1"]
    faster = (dpo["by_x2"] > -dpo["by_x1"])[lower]
    values = {
        "ratio": exactly(off[felt["loss"] == "dpo"].max()),
        "margin": exactly(off.max()),
        "below": exactly(faster.mean()),
    }
    names = sorted(rows["loss"].unique())
    return Findings(draw(rows, grid), values, {"field": rows}, [f"Losses of the margin: {', '.join(names)}."])


if __name__ == "__main__":
    main(make, Grid)
