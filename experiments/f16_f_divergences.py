"""Wang et al. 2023: what the divergence of f-DPO buys, reward per nat with the reverse KL, diversity with the others.

Closed-form optima of E[gold] - beta D_f on 19,608 answers to each of 4 prompts; intervals are over environments. The
registry's f_dpo is held to the same closed form on a small task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import make_loss
from rlpref.report import Interval, mean_interval
from rlpref.report.style import PALETTE, root_scale
from rlpref.testbed.divergences import (
    FORWARD_KL,
    JENSEN_SHANNON,
    REVERSE_KL,
    Divergence,
    alpha_divergence,
    f_divergence,
    f_optimum,
    f_path,
    token_f_divergence,
)
from rlpref.testbed.exact import sequence_kl
from rlpref.testbed.population import population_argmin
from rlpref.testbed.preferences import bradley_terry
from rlpref.testbed.rewards import standardised
from rlpref.testbed.task import Testbed, make_testbed

DIVERGENCES = {"reverse KL": REVERSE_KL, "alpha 0.5": alpha_divergence(0.5), "Jensen-Shannon": JENSEN_SHANNON}
DIVERGENCES |= {"forward KL": FORWARD_KL}  # in the order of gold reward at equal KL that the paper says
LOSSES = {
    "reverse KL": ("dpo", {}),
    "alpha 0.5": ("f_dpo", {"divergence": "alpha", "alpha": 0.5}),
    "Jensen-Shannon": ("f_dpo", {"divergence": "js"}),
    "forward KL": ("f_dpo", {"divergence": "forward_kl"}),
}
COLOURS = dict(zip(DIVERGENCES, ("black", PALETTE[0], PALETTE[2], PALETTE[1])))


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    vocab: int
    horizon: int
    betas: list[float]  # largest and smallest
    points: int
    kl: float  # nats at which divergences are compared
    peaked: (
        float  # factor of the reference's log-probs: above 1 it has likely and unlikely answers, as a language model
    )


def made(grid: Grid, environment: int, peaked: float) -> Testbed:
    """The task of that environment with its reference made `peaked`."""
    task = make_testbed(grid.vocab, grid.horizon, prompts=4, seed=environment, reward="ngram")
    task = replace(task, ref=(peaked * task.ref).log_softmax(-1))
    return replace(task, rewards=standardised(task, task.rewards))


def paths(task: Testbed, grid: Grid) -> pd.DataFrame:
    """One row per divergence and beta: KL and entropy (nats), gold, and all divergences of the optimum."""
    betas, measured = np.geomspace(*grid.betas, grid.points).tolist(), list(DIVERGENCES.values())
    frames = []
    for name, divergence in DIVERGENCES.items():
        path = f_path(task, task.ref, task.rewards, betas, divergence, [task.rewards], measured)
        rows = {"beta": betas, "kl": path.kl, "entropy": path.entropy, "gold": path.means[:, 0]}
        rows |= dict(zip(DIVERGENCES, path.divergences.T))
        frames.append(pd.DataFrame(rows).assign(environment=task.seed, divergence=name))
    return pd.concat(frames, ignore_index=True)


def at_kl(task: Testbed, name: str, divergence: Divergence, grid: Grid) -> dict:
    """The optimum whose mean KL is that of the grid: gold, entropy, and its divergence summed over tokens for one of
    whole answers."""

    def beyond(log_beta: float) -> float:
        path = f_path(task, task.ref, task.rewards, [math.exp(log_beta)], divergence, [task.rewards])
        return float(path.kl[0]) - grid.kl

    beta = math.exp(brentq(beyond, math.log(min(grid.betas)), math.log(max(grid.betas)), xtol=1e-4))
    path = f_path(task, task.ref, task.rewards, [beta], divergence, [task.rewards])
    policy = f_optimum(task, task.ref, task.rewards, beta, divergence)
    whole, tokens = (of(task, policy, task.ref, divergence).mean() for of in (f_divergence, token_f_divergence))
    found = {"gold": float(path.means[0, 0]), "entropy": float(path.entropy[0]), "tokens": float(tokens / whole)}
    return {"environment": task.seed, "divergence": name, "beta": beta} | found


def apart_from_the_loss(beta: float = 0.5) -> float:
    """Largest KL from the population argmin of each loss to the closed form, on 7 answers to each of two prompts."""
    task = make_testbed(vocab=3, horizon=2, prompts=2, seed=1, reward="ngram")
    furthest = 0.0
    for name, (loss, settings) in LOSSES.items():
        bound = make_loss(loss, beta=beta, **settings)
        found = population_argmin(task, bound, task.ref, task.ref, bradley_terry(task)).policy
        closed = f_optimum(task, task.ref, task.rewards, beta, DIVERGENCES[name])
        furthest = max(furthest, float(sequence_kl(task, closed, found).max()))
    return furthest


def beaten(rows: pd.DataFrame) -> float:
    """How much more of E[gold] - beta D_f any optimum of the reverse KL has than the optimum of that objective, at
    most over environments, divergences and betas."""
    worst = -math.inf
    for _, own in rows.groupby("environment"):
        reverse = own[own["divergence"] == "reverse KL"]
        for name in list(DIVERGENCES)[1:]:
            best = own[own["divergence"] == name]
            others = reverse["gold"].to_numpy() - np.outer(best["beta"], reverse[name])
            worst = max(worst, float((others.max(1) - (best["gold"] - best["beta"] * best[name])).max()))
    return worst


def less(compared: pd.DataFrame, column: str, one: str, other: str) -> Interval:
    """A column at one divergence less that at another, over environments."""
    table = compared.pivot_table(index="environment", columns="divergence", values=column)
    return mean_interval(table[one] - table[other])


def steps(compared: pd.DataFrame, column: str, order: int = 1) -> list[Interval]:
    """Each divergence less the next; `order` -1: the next less each."""
    return [less(compared, column, *pair[::order]) for pair in pairwise(DIVERGENCES)]


def lines(axis: Axes, rows: pd.DataFrame, x: str | None, y: str) -> None:
    """The optima of each divergence, a mean over environments at equal beta; x None: its own divergence."""
    for name, colour in COLOURS.items():
        own = rows[rows["divergence"] == name].groupby("beta")[[*DIVERGENCES, "kl", "gold", "entropy"]].mean()
        axis.plot(own[x or name], own[y], color=colour, lw=1.2, label=name)


def draw(rows: pd.DataFrame, compared: pd.DataFrame, grid: Grid) -> Figure:
    with style():
        title = "The reverse KL buys reward with the least KL to the reference"
        figure, axes = panels(2, 2, 2.3, title=title)
        lines(axes[0], rows, "kl", "gold")
        lines(axes[1], rows, None, "gold")
        lines(axes[2], rows, "gold", "entropy")
        for axis, largest in ((axes[0], 9.0), (axes[1], 6.0)):
            axis.set(ylabel="gold reward, sd")
            root_scale(axis, "x", largest)
        axes[0].set(
            xlabel="KL(policy || reference), nats (square-root scale)", title="gold by KL, mean of environments"
        )
        axes[1].set(xlabel="the divergence that is charged (square-root scale)", title="gold by own divergence")
        axes[2].set(xlabel="gold reward, sd", ylabel="entropy, nats", title="entropy by gold")
        axes[0].axvline(grid.kl, color="0.6", lw=0.8, ls=":")
        axes[0].legend(loc="lower right")
        for i, (name, colour) in enumerate(COLOURS.items()):
            own = compared[compared["divergence"] == name]
            for shift, column, marker in ((-0.12, "gold", "o"), (0.12, "entropy", "s")):
                span = mean_interval(own[column])
                error = [[span.mean - span.low], [span.high - span.mean]]
                axes[3].errorbar([i + shift], [span.mean], error, color=colour, marker=marker, ms=4.5)
        axes[3].set_xticks(range(len(COLOURS)), [name.replace(" ", "\n").replace("-", "-\n") for name in COLOURS])
        axes[3].set(title=f"at {grid.kl:g} nats: gold (circles), entropy (squares)", ylabel="sd; nats", ylim=(0, None))
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    tasks = [made(grid, environment, grid.peaked) for environment in grid.environments]
    flat = [made(grid, environment, 1.0) for environment in grid.environments]
    rows = pd.concat([paths(task, grid) for task in tasks], ignore_index=True)
    compared = pd.DataFrame([at_kl(task, *own, grid) for task in tasks for own in DIVERGENCES.items()])
    ends = [(name, DIVERGENCES[name]) for name in ("reverse KL", "forward KL")]
    on_flat = pd.DataFrame([at_kl(task, *own, grid) for task in flat for own in ends])
    order, diversity = steps(compared, "gold"), steps(compared, "entropy", -1)
    tokens = compared.pivot_table(index="environment", columns="divergence", values="tokens")
    values = {
        "reverse_over_alpha": order[0],
        "alpha_over_js": order[1],
        "js_over_forward": order[2],
        "entropy_alpha": diversity[0],
        "entropy_js": diversity[1],
        "entropy_forward": diversity[2],
        "entropy_flat": less(on_flat, "entropy", "forward KL", "reverse KL"),
        "own_frontier": exactly(beaten(rows)),
        "loss": exactly(apart_from_the_loss()),
        "tokens_reverse": exactly((tokens["reverse KL"] - 1).abs().max()),
        "tokens_forward": mean_interval(tokens["forward KL"]),
        "tokens_js": mean_interval(tokens["Jensen-Shannon"]),
    }
    notes = ["Closed-form optima; the training of f_dpo by minibatches is not part of this exhibit."]
    return Findings(draw(rows, compared, grid), values, {"paths": rows, "at_kl": compared}, notes)


if __name__ == "__main__":
    main(make, Grid)
