"""Beirami et al. 2024: log n - (n-1)/n bounds the KL of best-of-n to its reference; loose on peaked references."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from exhibit import Findings, exactly, main, panels, style
from rlpref.report.style import PALETTE, shade
from rlpref.testbed.selection import best_of_n_kl, best_of_n_kl_bound
from rlpref.testbed.task import Testbed, make_testbed


@dataclass(frozen=True)
class Grid:
    answers: int
    top: list[float]
    ranks: list[float]
    largest_n: int
    environments: list[int]


def peaked(task: Testbed, top: float, rank: float) -> Testbed:
    """The task of one prompt and answers of one token with scores in a random order; one of them, at `rank` of the
    order, has probability `top` and the others share the rest at random."""
    answers, generator = task.tree.vocab, torch.Generator().manual_seed(task.seed)
    scores = torch.randperm(answers, generator=generator).double()
    mass = torch.rand(answers, generator=generator, dtype=torch.float64) + 0.5
    likeliest = scores == round(rank * (answers - 1))
    mass = torch.where(likeliest, 0.0, mass)
    mass = torch.where(likeliest, top, (1 - top) * mass / mass.sum())
    return replace(task, ref=mass.log()[None, None], rewards=scores[None, None])


def curves(grid: Grid) -> pd.DataFrame:
    """One row per environment, likeliest answer, its rank, and n: the exact KL and the formula, nats."""
    ns = [2**power for power in range(1, int(math.log2(grid.largest_n)) + 1)]
    rows = []
    for environment in grid.environments:
        plain = make_testbed(vocab=grid.answers, horizon=1, prompts=1, seed=environment, reward="ngram")
        for top in grid.top:
            for rank in grid.ranks:
                task = peaked(plain, top, rank)
                for n in ns:
                    kl = float(best_of_n_kl(task, task.ref, task.rewards, n))
                    row = {"environment": environment, "top": top, "rank": rank, "n": n}
                    rows.append(row | {"kl": kl, "formula": best_of_n_kl_bound(n)})
    return pd.DataFrame(rows)


def draw(rows: pd.DataFrame) -> Figure:
    tops = sorted(rows["top"].unique())
    with style():
        figure, (left, right) = panels(2, title="The best-of-n formula bounds the KL and is loose on peaked references")
        formula = rows.groupby("n")["formula"].first()
        left.plot(formula.index, formula, color="black", lw=1.4, label="log n - (n-1)/n")
        for i, top in enumerate(tops):
            colour = shade(PALETTE[0], i, len(tops))
            own = rows[rows["top"] == top]
            kl, short = own.groupby("n")["kl"], (1 - own["kl"] / own["formula"]).groupby(own["n"])
            left.plot(kl.mean().index, kl.mean(), color=colour, lw=1.1, label=f"likeliest answer {top:g}")
            left.fill_between(kl.min().index, kl.min(), kl.max(), color=colour, alpha=0.25, lw=0)
            right.plot(short.mean().index, short.mean(), color=colour, lw=1.1)
            right.fill_between(short.min().index, short.min(), short.max(), color=colour, alpha=0.25, lw=0)
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("n, answers drawn")
        left.set(ylabel="KL(best-of-n || reference), nats", title="exact KL, mean and range over environments")
        right.set(ylabel="share of the formula that is missing", title="how loose the formula is", ylim=(0, 1))
        left.legend()
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    rows = curves(grid)
    missing = 1 - rows["kl"] / rows["formula"]
    values = {
        "bound": exactly((rows["kl"] - rows["formula"]).max()),
        "tight": exactly(missing[rows["top"] <= 0.05].max()),
        "loose": exactly(missing[(rows["top"] == 0.9) & (rows["n"] == 8)].min()),
    }
    return Findings(draw(rows), values, {"kl": rows})


if __name__ == "__main__":
    main(make, Grid)
