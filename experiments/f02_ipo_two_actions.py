"""Azar et al. 2024, section 5.3.1: of two answers one always wins; DPO ends at 1 at any tau, IPO at sigma(0.5/tau).

The population optimum of the registry's losses, by L-BFGS over all policies: nothing is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import logsigmoid

from exhibit import Findings, exactly, look, main, panels, style
from rlpref.losses import LOSSES, make_loss
from rlpref.losses.inputs import PairLogps
from rlpref.report.style import shade
from rlpref.testbed.population import population_argmin
from rlpref.testbed.preferences import preference_model
from rlpref.testbed.task import Testbed, make_testbed

ALWAYS = {"wins": [[0.5, 1.0], [0.0, 0.5]]}  # the first answer always wins
FLAT = 1  # beyond this tau the loss of DPO is 0 in fp64 before the policy is there
FARTHEST = math.log(1e6)  # log-odds of 0.999999


@dataclass(frozen=True)
class Grid:
    taus: list[float]
    environments: list[int]
    shown: list[float]


def bandit(environment: int | None) -> Testbed:
    """Two answers of one token; the reference is random, or uniform without an environment."""
    spread = 0.0 if environment is None else 0.5
    return make_testbed(2, 1, 1, environment or 0, "ngram", reference_spread=spread)


def loss_of(name: str, tau: float):
    return make_loss(name, **LOSSES[name].at(tau))


def optima(grid: Grid) -> pd.DataFrame:
    """One row per reference, loss and tau: the winner's probability at the argmin, and by hand."""
    rows = []
    for environment in (None, *grid.environments):
        task = bandit(environment)
        preference = preference_model("table", ALWAYS)(task)
        losses = ("ipo", "dpo") if environment is None else ("ipo",)
        odds = float(task.ref[0, 0, 0] - task.ref[0, 0, 1])
        for name in losses:
            for tau in grid.taus if name == "ipo" else [tau for tau in grid.taus if tau <= FLAT]:
                found = population_argmin(task, loss_of(name, tau), task.ref, task.ref, preference)
                wins, loses = found.policy.exp().flatten().tolist()
                by_hand = 1.0 if name == "dpo" else 1 / (1 + math.exp(-odds - 0.5 / tau))
                row = {"reference": "uniform" if environment is None else environment, "loss": name, "tau": tau}
                rows.append(row | {"wins": wins, "loses": loses, "by_hand": by_hand})
    return pd.DataFrame(rows)


def along(name: str, tau: float, log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """([n], [n]) the loss of the one pair that there is at these log-odds of the winner over a uniform reference, and
    its slope. (The population's other pairs are of an answer with itself, and constant.)"""
    points = log_odds.clone().requires_grad_()
    even, one = torch.full_like(log_odds, math.log(0.5)), torch.ones_like(log_odds)
    losses = loss_of(name, tau)(PairLogps(logsigmoid(points), logsigmoid(-points), even, even, one, one))
    (slope,) = torch.autograd.grad(losses.sum(), points)
    return losses.detach(), slope


def draw(rows: pd.DataFrame, grid: Grid) -> Figure:
    points = torch.linspace(-2, 8, 101, dtype=torch.float64)
    with style():
        figure, (left, right) = panels(
            2, title="The winner takes all under DPO at any tau; IPO gives it sigma(0.5/tau)"
        )
        own = rows[rows["reference"] == "uniform"].set_index("loss")
        fine = torch.logspace(math.log10(min(grid.taus)), math.log10(max(grid.taus)), 200).tolist()
        left.plot(fine, [1 / (1 + math.exp(-0.5 / tau)) for tau in fine], color="black", lw=1, label="sigma(0.5/tau)")
        left.axhline(1, color="black", lw=1, ls="--", label="1")
        for name in ("ipo", "dpo"):
            found = own.loc[[name]]
            left.plot(found["tau"], found["wins"], ls="none", ms=4, label=f"{name.upper()}, argmin", **look(name))
        left.set(
            xscale="log",
            xlabel="tau",
            ylabel="probability of the winner",
            title="population optimum",
            ylim=(0.48, 1.04),
        )
        left.legend(loc="lower left")
        for i, tau in enumerate(grid.shown):
            for name, line in (("ipo", "-"), ("dpo", "--")):
                losses, _ = along(name, tau, points)
                start = losses[int(points.abs().argmin())]  # at even odds, where training begins
                colour = shade(look(name)["color"], i, len(grid.shown))
                right.plot(points, losses / start, color=colour, ls=line, lw=1.1, label=f"{name.upper()}, tau {tau:g}")
        right.set(
            xlabel="log-odds of the winner, nats",
            ylabel="loss, share of that at even odds",
            xlim=(-1, 7),
            ylim=(0, 1.6),
        )
        right.set_title("IPO has a minimum, DPO goes down for ever")
        right.legend(loc="upper right", handlelength=1.5)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = optima(grid)
    off = (rows["wins"] - rows["by_hand"]).abs()
    ipo, uniform = rows["loss"] == "ipo", rows["reference"] == "uniform"
    points = torch.linspace(0, FARTHEST, 50, dtype=torch.float64)
    slopes = torch.stack([along("dpo", tau, points)[1] for tau in grid.taus])
    values = {
        "ipo": exactly(off[ipo & uniform].max()),
        "ipo_reference": exactly(off[ipo & ~uniform].max()),
        "dpo": exactly(rows.loc[~ipo & uniform, "loses"].max()),
        "downhill": exactly(slopes.max()),
    }
    notes = [
        "The right panel is the loss of each policy over its value at even odds, where training begins; larger tau is "
        "the fuller colour. Above tau = 1 the argmin of DPO is not shown: its loss is 0 in fp64 long before it is at 1."
    ]
    return Findings(draw(rows, grid), values, {"optima": rows}, notes)


if __name__ == "__main__":
    main(make, Grid)
