"""The losses as the registry has them: GPO's functions, HALOs' value functions, gradient weights, margins and links.

Every curve is a registered loss on pairs or answers made for it, with beta 1: nothing is written down a second time but
the formulas that the values are checked against at three points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import make_loss
from rlpref.losses.anchored import link
from rlpref.losses.inputs import AnswerLogps, PairLogps
from rlpref.report.style import LINES, PALETTE

GPO = ("logistic", "exponential", "square", "truncated_square", "savage", "hinge")
SMOOTH = ("logistic", "exponential", "square", "truncated_square")
GAMMA = 1.0  # SimPO's target margin
AT = (-1.0, 0.0, 2.0)  # where values are compared with formulas
STEP = 1e-4


@dataclass(frozen=True)
class Grid:
    reach: float
    points: int


@dataclass(frozen=True)
class Curve:
    panel: str
    name: str
    of: Callable[[Tensor], Tensor]  # of points [n]
    by_hand: Callable[[float], float]
    kinks: tuple[float, ...] = ()


def pair(points: Tensor) -> PairLogps:
    """Pairs with these margins in nats: the rejected answer is as likely as under the reference."""
    zero, one = torch.zeros_like(points), torch.ones_like(points)
    return PairLogps(points, zero, zero, zero, one, one)


def answer(points: Tensor, desirable: bool) -> AnswerLogps:
    """Single answers with these log-ratios; the answers of other prompts are at the reference."""
    zero, one = torch.zeros_like(points), torch.ones_like(points)
    return AnswerLogps(points, zero, one, torch.full_like(points, desirable, dtype=torch.bool), mismatched=zero)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def curves() -> list[Curve]:
    """All curves of the gallery with their formulas."""
    formulas = {
        "logistic": lambda z: softplus(-z),
        "exponential": lambda z: math.exp(-z),
        "square": lambda z: (1 - z) ** 2,
        "truncated_square": lambda z: max(0.0, 1 - z) ** 2,
        "savage": lambda z: (1 + math.exp(z)) ** -2,
        "hinge": lambda z: max(0.0, 1 - z),
    }
    found = []
    for name in GPO:
        loss = make_loss("gpo", beta=1.0, f=name)
        kinks = (1.0,) if name in ("hinge", "truncated_square") else ()
        found.append(Curve("gpo", name, lambda z, loss=loss: loss(pair(z)), formulas[name], kinks))
    dpo, kto = make_loss("dpo", beta=1.0), make_loss("kto", beta=1.0)
    found += [
        Curve("value", "DPO", lambda z: -dpo(pair(z)), lambda z: -softplus(-z)),
        Curve("value", "KTO, desirable", lambda z: 1 - kto(answer(z, True)), sigmoid),
        Curve("value", "KTO, undesirable", lambda z: 1 - kto(answer(z, False)), lambda z: sigmoid(-z)),
    ]
    simpo = make_loss("simpo", beta=1.0, gamma=GAMMA)
    found += [
        Curve("simpo", "DPO", lambda z: dpo(pair(z)), lambda z: softplus(-z)),
        Curve("simpo", f"SimPO, gamma {GAMMA:g}", lambda z: simpo(pair(z)), lambda z: softplus(GAMMA - z)),
    ]
    links = {
        "reverse_kl": lambda h: h,
        "js": lambda h: math.log(2) - softplus(-h),
        "forward_kl": lambda h: 1 - math.exp(-h),
    }
    for name, formula in links.items():
        found.append(Curve("link", name, lambda h, name=name: link(h, name), formula))
    found.append(Curve("link", "chi_po", chi_po_link, lambda h: math.exp(h) + h))
    return found


def chi_po_link(h: Tensor) -> Tensor:
    """phi(pi/ref) up to a constant, read off the registry's loss: the logit of exp(-loss) at h for the chosen and 0 for
    the rejected answer is phi(e^h) - phi(1), and phi(1) = 1. The small beta keeps it off the clip."""
    beta = 1e-3
    loss = make_loss("chi_po", beta=beta)(pair(h))
    return -torch.log(torch.expm1(loss)) / beta + 1


def with_slope(curve: Curve, points: Tensor) -> tuple[Tensor, Tensor]:
    """([n], [n]) values and autograd's slopes."""
    z = points.clone().requires_grad_()
    value = curve.of(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def second(curve: Curve, points: Tensor) -> Tensor:
    """[n] second derivatives, from autograd twice."""
    z = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(curve.of(z).sum(), z, create_graph=True)
    (found,) = torch.autograd.grad(slope.sum(), z)
    return found


def off_difference(curve: Curve, points: Tensor) -> float:
    """Largest distance between autograd and a central difference, kinks left out."""
    away = [(points - kink).abs() > 10 * STEP for kink in curve.kinks]
    points = points[torch.stack(away).all(0)] if away else points
    difference = (curve.of(points + STEP) - curve.of(points - STEP)) / (2 * STEP)
    return float((difference - with_slope(curve, points)[1]).abs().max())


def tables(grid: Grid, shown: list[Curve]) -> pd.DataFrame:
    """One row per curve and point: value and slope."""
    points = torch.linspace(-grid.reach, grid.reach, grid.points, dtype=torch.float64)
    parts = []
    for curve in shown:
        value, slope = with_slope(curve, points)
        columns = {"z": points.numpy(), "value": value.numpy(), "slope": slope.numpy()}
        parts.append(pd.DataFrame(columns).assign(panel=curve.panel, name=curve.name))
    return pd.concat(parts, ignore_index=True)


def draw(rows: pd.DataFrame, grid: Grid) -> Figure:
    with style():
        figure, axes = panels(3, 2, 2.3, "Every loss of GPO falls at a margin of 0; all but Savage are convex")
        titles = {
            "gpo": ("GPO: f(z), z = beta margin", "loss", "z"),
            "weight": ("what a pair weighs: -f'(z)", "-slope", "z"),
            "value": ("value (0: reference point)", "value", "beta log pi/ref"),
            "simpo": ("SimPO asks for a margin of gamma", "loss", "beta margin"),
            "link": ("links f'(pi/ref), up to a constant", "link", "log pi/ref"),
        }
        for axis, (panel, (title, ylabel, xlabel)) in zip(axes, titles.items()):
            own = rows[rows["panel"] == ("gpo" if panel == "weight" else panel)]
            for i, (name, one) in enumerate(own.groupby("name", sort=False)):
                y = -one["slope"] if panel == "weight" else one["value"]
                axis.plot(one["z"], y, color=PALETTE[i], ls=LINES[i % 4], lw=1.2, label=name.replace("_", " "))
            axis.axvline(0, color="black", lw=0.6, ls=":")
            axis.set(title=title, ylabel=ylabel, xlabel=xlabel)
            if panel not in ("gpo", "weight"):
                axis.legend(fontsize=7, handlelength=1.6)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        axes[0].set_ylim(-0.2, 6)
        axes[1].set_ylim(-0.2, 6)
        axes[4].set_ylim(-5, 6)
        families = {"logistic": "DPO", "square": "IPO", "hinge": "SLiC"}
        for name, family in families.items():
            one, i = rows[(rows["panel"] == "gpo") & (rows["name"] == name)], GPO.index(name)
            axes[5].plot(one["z"], one["slope"] / one["slope"].iloc[0], color=PALETTE[i], ls=LINES[i % 4], label=family)
        axes[5].axhline(0, color="black", lw=0.6)
        axes[5].set(title="IPO's pull turns round", xlabel="z", ylabel="-f'(z), share of the first")
        axes[5].legend(fontsize=7)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    shown = curves()
    rows = tables(grid, shown)
    points = torch.linspace(-grid.reach, grid.reach, grid.points, dtype=torch.float64)
    at, zero = torch.tensor(AT, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    gpo = {curve.name: curve for curve in shown if curve.panel == "gpo"}
    bends = {name: curve.of(points).diff().diff().min() for name, curve in gpo.items() if name != "savage"}
    off = [abs(float(v) - c.by_hand(z)) for c in shown for v, z in zip(c.of(at), AT)]
    values = {
        "differences": exactly(max(off_difference(curve, points) for curve in shown)),
        "slope": exactly(max(float(with_slope(curve, zero)[1]) for curve in gpo.values())),
        "curvature": exactly(min(float(second(gpo[name], zero)) for name in SMOOTH)),
        "convex": exactly(min(bends.values())),
        "savage": exactly(second(gpo["savage"], points).min()),
        "by_hand": exactly(max(off)),
    }
    return Findings(draw(rows, grid), values, {"curves": rows})


if __name__ == "__main__":
    main(make, Grid)
