"""Siththaranjan et al. 2023, figure 1: where annotators differ unseen, reward models learn the Borda count.

The registry's Bradley-Terry loss, minimised exactly over a table of scores: for the paper's alternatives s in [0, 1],
with endless labels and with a number of drawn ones for each pair, and for two kinds of annotators on the testbed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import make_loss
from rlpref.report import mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.duels import win_probability
from rlpref.testbed.population_rewards import reward_argmin
from rlpref.testbed.preferences import mixed_annotators, tabulated
from rlpref.testbed.rewards import ngram, standardised
from rlpref.testbed.task import Testbed, answer_places, make_testbed

EDGE = 0.8  # from here on an alternative is worth 2 s or nothing, with equal chances
LOWER, HIGHER = 0.78, 0.85  # the second has the larger mean utility


@dataclass(frozen=True)
class Grid:
    alternatives: int
    labels: list[int]  # for each pair of alternatives
    shown: int  # of these the one that is drawn and judged
    seeds: list[int]
    environments: list[int]
    weight: float  # of the annotators with the testbed's reward; the others care about something else
    zeal: float  # how many times as large the utilities of the others are


def alternatives(count: int) -> Tensor:
    """[count] middles of equal parts of [0, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def beats(s: Tensor) -> Tensor:
    """[K, K] P(row beats column), each utility drawn by itself: s below EDGE, else 2 s or 0; equal ones by a coin."""
    worth = torch.stack([s, torch.where(s < EDGE, s, 0.0)], 1)  # the outcome "yes", the outcome "no"
    worth[:, 0] = torch.where(s < EDGE, s, 2 * s)
    gap = worth[:, None, :, None] - worth[None, :, None, :]
    return ((gap > 0).double() + 0.5 * (gap == 0).double()).mean((2, 3))


def borda(s: Tensor) -> Tensor:
    """[K] the formula for the share of alternatives that s beats: 0.1 + s below EDGE, 0.275 + 0.25 s above."""
    return torch.where(s < EDGE, 0.1 + s, 0.275 + 0.25 * s)


def learned(task: Testbed, table: Tensor) -> Tensor:
    """[K] scores of the reward model for preferences [K, K], all pairs equally frequent."""
    uniform = torch.zeros_like(task.ref).log_softmax(-1)
    return reward_argmin(task, make_loss("bradley_terry"), uniform, tabulated(task, table[None]))[0, 0]


def drawn(table: Tensor, labels: int, seed: int) -> Tensor:
    """[K, K] shares of that many drawn labels for each pair."""
    generator = torch.Generator().manual_seed(seed)
    wins = torch.binomial(torch.full_like(table, labels), table, generator=generator) / labels
    upper = wins.triu(1)
    return upper + (1 - upper.mT).tril(-1) + 0.5 * torch.eye(len(table), dtype=table.dtype)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's. Values that differ by less than 1e-6 are equal: the fit ends there."""
    return pd.Series(one.numpy()).round(6).corr(pd.Series(other.numpy()).round(6), method="spearman")


def sampled(task: Testbed, s: Tensor, grid: Grid) -> tuple[pd.DataFrame, Tensor]:
    """One row per number of labels and seed, and the scores [seeds, K] of the shown number."""
    table, rows, shown = beats(s), [], []
    low, high = int((s - LOWER).abs().argmin()), int((s - HIGHER).abs().argmin())
    for labels in grid.labels:
        for seed in grid.seeds:
            scores = learned(task, drawn(table, labels, seed))
            row = {"labels": labels, "seed": seed, "spearman": rank_correlation(scores, borda(s))}
            rows.append(row | {"reversal": float(scores[low] - scores[high])})
            if labels == grid.shown:
                shown.append(scores)
    return pd.DataFrame(rows), torch.stack(shown)


def annotators(environment: int, grid: Grid) -> tuple[dict, pd.DataFrame]:
    """On the testbed, pairs of the reference: rank correlations of the reward model with the Borda count and with the
    mean utility, means over prompts; and these three of each answer."""
    task = make_testbed(vocab=4, horizon=3, prompts=3, seed=environment, reward="ngram")
    other = grid.zeal * standardised(task, ngram(task, torch.Generator().manual_seed(environment + 1000)))
    preference = mixed_annotators([task.rewards, other], [grid.weight, 1 - grid.weight])
    scores = reward_argmin(task, make_loss("bradley_terry"), task.ref, preference)
    tables = {"score": scores, "borda": win_probability(task, task.ref, preference)}
    tables["utility"] = grid.weight * task.rewards + (1 - grid.weight) * other
    flat = {name: table.flatten(1)[:, answer_places(task)] for name, table in tables.items()}
    row = {"environment": environment}
    for name in ("borda", "utility"):
        row[name] = sum(rank_correlation(a, b) for a, b in zip(flat["score"], flat[name])) / len(flat["score"])
    return row, pd.DataFrame({name: values[0] for name, values in flat.items()})


def draw(s: Tensor, scores: Tensor, shown: Tensor, rows: pd.DataFrame, points: pd.DataFrame, grid: Grid) -> Figure:
    with style():
        title = "A reward model of annotators who differ learns the Borda count"
        figure, (curve, labels, mixed) = panels(3, 1, 2.6, title)
        utility = curve.twinx()
        utility.plot(s, s, color="0.6", ls="--", lw=1)
        utility.plot(s, borda(s), color="black", lw=1.2)
        utility.set(ylim=(-1.0, 1.2), yticks=[0, 0.5, 1])
        utility.grid(False)
        utility.set_ylabel("share beaten; utility")
        curve.plot(s, scores, color=PALETTE[0], lw=1.2, label="learned, endless labels")
        means = shown.mean(0)
        spread = torch.stack([torch.tensor(mean_interval(column.tolist())[1:]) for column in shown.T])
        curve.fill_between(s, spread[:, 0], spread[:, 1], color=PALETTE[1], alpha=0.4, lw=0)
        curve.plot(s, means, color=PALETTE[1], lw=0.7, label=f"learned, {grid.shown} labels a pair")
        curve.plot([], [], color="black", label="Borda count (right)")
        curve.plot([], [], color="0.6", ls="--", label="mean utility (right)")
        curve.set(
            xlabel="alternative s", ylabel="learned reward", title="the paper's alternatives; band:\n95% interval"
        )
        curve.set(ylim=(scores.min() - 8, scores.max() + 0.5), yticks=[-2, 0, 2])
        found = {k: mean_interval(each) for k, each in rows.groupby("labels")["spearman"]}
        for k, (mean, low, high) in found.items():
            labels.errorbar(k, mean, [[mean - low], [high - mean]], fmt="o", color=PALETTE[1])
        labels.axhline(0.98, color="black", lw=0.8, ls=":")
        labels.set(xscale="log", xlabel="labels for each pair", ylabel="rank correlation with the Borda count")
        labels.set_title("drawn labels: mean and 95%\ninterval over seeds")
        mixed.plot(points["borda"].rank(), points["score"].rank(), "o", ms=3, color=PALETTE[0], label="Borda count")
        mixed.plot(points["utility"].rank(), points["score"].rank(), "s", ms=3, color=PALETTE[3], label="mean utility")
        mixed.set(
            xlabel="rank by ...",
            ylabel="rank by the learned reward",
            title="testbed, two kinds of\nannotators",
            ylim=(-14, None),
        )
        for axis in (curve, mixed):
            axis.legend(fontsize=6.5, loc="lower right")
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    s = alternatives(grid.alternatives)
    task = make_testbed(vocab=grid.alternatives, horizon=1, prompts=1, seed=0, reward="ngram")
    table = beats(s)
    scores = learned(task, table)
    rows, shown = sampled(task, s, grid)
    mixed = [annotators(environment, grid) for environment in grid.environments]
    by_mixture = pd.DataFrame([row for row, _ in mixed])
    judged = rows[rows["labels"] == grid.shown]
    low, high = (int((s - at).abs().argmin()) for at in (LOWER, HIGHER))
    values = {
        "formula": exactly((table.mean(1) - borda(s)).abs().max()),
        "wins": exactly(((scores[:, None] - scores).sigmoid().mean(1) - table.mean(1)).abs().max()),
        "order": exactly(rank_correlation(scores, table.mean(1))),
        "reversal": exactly(scores[low] - scores[high]),
        "sampled_order": mean_interval(judged["spearman"]),
        "sampled_reversal": mean_interval(judged["reversal"]),
        "testbed_borda": exactly(by_mixture["borda"].min()),
        "testbed_utility": mean_interval(by_mixture["utility"]),
    }
    figure = draw(s, scores, shown, rows, mixed[0][1], grid)
    return Findings(figure, values, {"sampled": rows, "testbed": by_mixture})


if __name__ == "__main__":
    main(make, Grid)
