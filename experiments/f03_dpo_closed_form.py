"""Rafailov et al. 2023, section 4: ref exp(r/beta)/Z is the argmin of DPO on Bradley-Terry pairs; N pairs miss it.

Bandits of K answers to one prompt, references and rewards random. The population loss is exact; the losses on N pairs
are minimised over all policies, so that what is left is the pairs' own noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, look, main, panels, style
from rlpref.losses import make_loss
from rlpref.report import mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.coverage import draw_pairs, reference
from rlpref.testbed.exact import sequence_kl
from rlpref.testbed.ladder import CountedPairs, empirical_loss
from rlpref.testbed.optima import optimum
from rlpref.testbed.population import argmin, expected_loss
from rlpref.testbed.preferences import bradley_terry
from rlpref.testbed.task import Testbed, make_testbed


@dataclass(frozen=True)
class Grid:
    beta: float
    answers: list[int]
    pairs: list[int]
    sampled: int
    draws: int
    environments: list[int]


def bandit(answers: int, environment: int) -> Testbed:
    return make_testbed(answers, 1, 1, environment, "ngram")


def distance(task: Testbed, beta: float, policy: Tensor) -> float:
    """KL(pi* || policy) in nats."""
    best = optimum(task, task.ref, task.rewards, beta).policy
    return float(sequence_kl(task, best, policy.detach()).mean())


def path(task: Testbed, beta: float) -> list[float]:
    """KL(pi* || policy) at every policy that L-BFGS asks the population loss of, and at the end."""
    expected = expected_loss(task, make_loss("dpo", beta=beta), task.ref, task.ref, bradley_terry(task))
    seen = []

    def watched(policy: Tensor) -> Tensor:
        seen.append(distance(task, beta, policy))
        return expected(policy)

    end = argmin(watched, task.ref).policy
    return [*seen, distance(task, beta, end)]


def drawn(task: Testbed, n: int, generator: torch.Generator) -> CountedPairs:
    """n Bradley-Terry pairs of the reference, counted."""
    prompt, answers = draw_pairs(task, reference(task, task.ref), n, generator)
    first, second = answers.T
    wins = torch.rand(n, generator=generator, dtype=torch.float64) < bradley_terry(task)(prompt, first, second)
    size = task.ends.numel()
    cells = torch.where(wins, first * size + second, second * size + first)
    count = torch.bincount(cells, minlength=size**2)
    cell = count.nonzero()[:, 0]
    return CountedPairs(torch.zeros_like(cell), cell // size, cell % size, count[cell].double())


def fitted(task: Testbed, beta: float, pairs: CountedPairs) -> Tensor:
    """The policy, of all, with the smallest DPO loss on these pairs."""
    loss = make_loss("dpo", beta=beta)
    return argmin(lambda policy: empirical_loss(task, loss, policy, task.ref, pairs), task.ref).policy


def descents(grid: Grid) -> pd.DataFrame:
    """One row per number of answers, environment and evaluation of the loss: the KL to pi*."""
    rows = []
    for answers in grid.answers:
        for environment in grid.environments:
            found = path(bandit(answers, environment), grid.beta)
            rows += [
                {"answers": answers, "environment": environment, "evaluation": i, "kl": kl}
                for i, kl in enumerate(found)
            ]
    return pd.DataFrame(rows)


def samples(grid: Grid) -> pd.DataFrame:
    """One row per environment, number of pairs and data set: the KL from pi* to the argmin on these pairs."""
    rows = []
    for environment in grid.environments:
        task, generator = bandit(grid.sampled, environment), torch.Generator().manual_seed(environment)
        for n in grid.pairs:
            for draw in range(grid.draws):
                kl = distance(task, grid.beta, fitted(task, grid.beta, drawn(task, n, generator)))
                rows.append({"environment": environment, "pairs": n, "draw": draw, "kl": kl})
    return pd.DataFrame(rows)


def slopes(rows: pd.DataFrame) -> list[float]:
    """Of each environment, the least-squares slope of log KL by log N."""
    return [float(np.polyfit(np.log(own["pairs"]), np.log(own["kl"]), 1)[0]) for _, own in rows.groupby("environment")]


def draw(paths: pd.DataFrame, rows: pd.DataFrame, slope: float) -> Figure:
    with style():
        figure, (left, right) = panels(2, title="DPO aims at the KL-regularised optimum; N pairs miss it by about 1/N")
        for i, (answers, own) in enumerate(paths.groupby("answers")):
            for j, (_, one) in enumerate(own.groupby("environment")):
                label = f"{answers} answers" if j == 0 else None
                left.plot(one["evaluation"], one["kl"].clip(lower=1e-17), color=PALETTE[i], lw=0.9, label=label)
        left.axhline(1e-8, color="black", lw=0.8, ls=":")
        left.set(yscale="log", xlabel="evaluations of the population loss", ylabel="KL(pi* || policy), nats")
        left.set_title("L-BFGS on the population loss, each environment")
        left.legend()
        found = {n: mean_interval(own.groupby("environment")["kl"].mean()) for n, own in rows.groupby("pairs")}
        means, lows, highs = zip(*found.values())
        floor = [max(low, mean / 10) for mean, low in zip(means, lows)]
        right.plot(list(found), means, ls="none", ms=4, label="argmin on N pairs", **look("dpo"))
        right.vlines(list(found), floor, highs, color=look("dpo")["color"], lw=1)
        middle = math.exp(np.mean(np.log(means)) + np.mean(np.log(list(found))))
        right.plot(
            list(found), [middle / n for n in found], color="black", lw=0.9, label=f"slope -1 (fitted {slope:.2f})"
        )
        right.set(xscale="log", yscale="log", xlabel="N, pairs", ylabel="KL(pi* || policy), nats")
        right.set_title("mean and 95% interval over environments")
        right.legend()
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    paths, rows = descents(grid), samples(grid)
    slope = mean_interval(slopes(rows))
    last = paths.groupby(["answers", "environment"])["kl"].last()
    values = {"population": exactly(last.max()), "slope": slope}
    notes = [f"{grid.sampled} answers and beta {grid.beta:g} in the right panel, {grid.draws} data sets of each size."]
    return Findings(draw(paths, rows, slope.mean), values, {"population": paths, "samples": rows}, notes)


if __name__ == "__main__":
    main(make, Grid)
