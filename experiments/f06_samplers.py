"""Shi, Zhou and Du 2024: which pairs online DPO should sample; quadratic convergence takes the right step as well.

A bandit of K answers with rewards N(0, 1) and a uniform reference. Every update descends the expected DPO loss over all
ordered pairs, weighted by the sampler, which is held fixed. The error is the mean over pairs of
|r_i - r_j - beta log pi_i/pi_j|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, main, panels, style
from rlpref.losses import PairLogps, make_loss
from rlpref.report import Interval, mean_interval
from rlpref.report.style import PALETTE

UNIFORM, MIX_R, MIX_P, CAPPED = "uniform", "Mix-R", "Mix-P", "Mix-P, capped"
LOOKS = {UNIFORM: (PALETTE[9], "v"), MIX_R: (PALETTE[1], "o"), MIX_P: (PALETTE[0], "s"), CAPPED: (PALETTE[5], "P")}
CONSTANT, NEWTON = "constant step", "step Z / (2 beta² K)"
ROUNDING = 1e-13  # errors below it are those of fp64
DIVERGED = 1e3  # errors are drawn up to here


@dataclass(frozen=True)
class Grid:
    answers: int
    beta: float
    rate: float  # the constant step
    updates: int
    newton_updates: int
    seeds: int
    first_seed: int


def differences(values: Tensor) -> Tensor:
    """[seeds, K, K] value i less value j, from [seeds, K]."""
    return values[:, :, None] - values[:, None, :]


def inverse_slope(gaps: Tensor) -> Tensor:
    """1 / sigmoid'(gap), which is 2 + exp(gap) + exp(-gap): what weighs a pair in the mixed samplers."""
    return 2 + gaps.exp() + (-gaps).exp()


def weights(sampler: str, rewards: Tensor, implicit: Tensor) -> Tensor:
    """[seeds, K, K] weight of each pair before it is normalised; `implicit` is beta log pi, [seeds, K].

    Shi, Zhou and Du 2024 (2409.19605), the joint form of samplers (1) and (2), as in the authors' code; capped: at
    the largest weight that Mix-R gives, theirs for sampled pairs.
    """
    gaps = differences(rewards)
    if sampler == UNIFORM:
        return torch.full_like(gaps, 4.0)  # the value at equal rewards
    if sampler == MIX_R:
        return inverse_slope(gaps)
    own = inverse_slope(differences(implicit))
    return own if sampler == MIX_P else own.minimum(inverse_slope(gaps).amax((1, 2), keepdim=True))


def expected_loss(loss: Callable, logits: Tensor, rewards: Tensor, sampled: Tensor) -> Tensor:
    """[seeds] the registry's loss over all ordered pairs with labels by Bradley-Terry; `sampled` sums to 1."""
    logps, count = logits.log_softmax(-1), logits.shape[1]
    chosen, rejected = torch.broadcast_tensors(logps[:, :, None], logps[:, None, :])
    uniform, length = torch.full_like(chosen, -math.log(count)).flatten(), torch.ones_like(chosen).flatten()
    values = loss(PairLogps(chosen.flatten(), rejected.flatten(), uniform, uniform, length, length)).view_as(chosen)
    first_wins = differences(rewards).sigmoid()
    return (sampled * (first_wins * values + (1 - first_wins) * values.mT)).sum((1, 2))


def descend(grid: Grid, sampler: str, newton: bool) -> Tensor:
    """[updates + 1, seeds] error before each update and after the last."""
    seeds = range(grid.first_seed, grid.first_seed + grid.seeds)
    drawn = [torch.randn(grid.answers, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    rewards, loss = torch.stack(drawn).double(), make_loss("dpo", beta=grid.beta)
    logits, errors = torch.zeros_like(rewards), []
    for _ in range((grid.newton_updates if newton else grid.updates) + 1):
        implicit = grid.beta * logits.log_softmax(-1)
        errors.append((differences(rewards) - differences(implicit)).abs().mean((1, 2)))
        pairs = weights(sampler, rewards, implicit)
        total = pairs.sum((1, 2), keepdim=True)
        step = total[:, 0] / (2 * grid.beta**2 * grid.answers) if newton else grid.rate
        logits = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(expected_loss(loss, logits, rewards, pairs / total).sum(), logits)
        logits = (logits - step * slope).detach()
    return torch.stack(errors).nan_to_num(math.inf, posinf=math.inf)


def orders(errors: Tensor) -> Tensor:
    """[seeds] the smallest of the last three log e' / log e of each seed's path, from errors e below 0.1 to those
    above rounding."""
    found = []
    for path in errors.T.tolist():
        steps = [(e, after) for e, after in pairwise(path) if e < 0.1 and after > ROUNDING]
        found.append(min((math.log(after) / math.log(e) for e, after in steps[-3:]), default=0.0))
    return torch.tensor(found)


def reached(errors: Tensor, level: float) -> Tensor:
    """[seeds] the number of updates after which the error is first below `level`; inf where it never is."""
    below = errors < level
    return torch.where(below.any(0), below.int().argmax(0).double(), math.inf)


def draw(paths: dict[tuple[str, str], Tensor]) -> Figure:
    with style():
        figure, axes = panels(3, height=2.5, title="Mixed samplers make online DPO a Newton method, with Newton's step")
        for (rule, sampler), errors in paths.items():
            axis, (colour, marker) = axes[0 if rule == CONSTANT else 1], LOOKS[sampler]
            shown = errors.clamp(1e-16, DIVERGED)
            low, middle, high = (shown.quantile(share, 1) for share in (0.1, 0.5, 0.9))
            every = max(1, len(shown) // 12)
            axis.plot(middle, color=colour, marker=marker, ms=3, lw=1, markevery=every, label=sampler)
            axis.fill_between(range(len(shown)), low, high, color=colour, alpha=0.2, lw=0)
            if rule == NEWTON and sampler != CAPPED:
                axes[2].plot(shown[:-1].flatten(), shown[1:].flatten(), marker, color=colour, ms=2, mew=0, alpha=0.6)
        axes[0].set(title="the authors' constant step", xlabel="updates", ylabel="error of the implicit reward")
        axes[1].set(title="step Z / (2 beta² K)", xlabel="updates")
        span = torch.logspace(-7, 0, 50)
        axes[2].plot(span, span**2, color="black", lw=1, label="e' = e²")
        axes[2].plot(span, span, color="black", lw=1, ls="--", label="e' = e")
        axes[2].set(title="one update, a dot per seed", xlabel="error e before", ylabel="error e' after", xscale="log")
        axes[2].set(xlim=(1e-7, 20), ylim=(1e-16, 10))
        for axis in axes:
            axis.set_yscale("log")
        axes[2].legend(loc="lower right")
        shown = axes[0].get_legend_handles_labels()
        title = "median, tenth to ninth decile over seeds"
        figure.legend(*shown, loc="outside lower center", ncols=4, title=title, title_fontsize=7)
    return figure


def claims(paths: dict[tuple[str, str], Tensor]) -> dict[str, Interval]:
    """Shares are over seeds; `order` is the smallest of all seeds."""
    unif, mix_r, mix_p = (paths[NEWTON, name] for name in (UNIFORM, MIX_R, MIX_P))
    rate = (unif[14] / unif[4]) ** (1 / 10)
    values = {
        "reached_p": exactly((reached(mix_p, 1e-12) <= 15).double().mean()),
        "reached_r": exactly((reached(mix_r, 1e-12) <= 15).double().mean()),
        "order_p": exactly(orders(mix_p).min()),
        "order_r": exactly(orders(mix_r).min()),
        "uniform_rate": mean_interval(rate.tolist()),
        "uniform_left": exactly((unif[14] > 1e-6).double().mean()),
    }
    for key, name in (("constant_uniform", UNIFORM), ("constant_r", MIX_R), ("constant_p", MIX_P)):
        values[key] = exactly((reached(paths[CONSTANT, name], 1e-6) < math.inf).double().mean())
    ahead = paths[CONSTANT, MIX_R][20].log() - paths[CONSTANT, UNIFORM][20].log()
    return values | {"ahead_r": mean_interval((ahead / math.log(10)).tolist())}


def make(grid: Grid, folder: Path) -> Findings:
    paths = {(rule, name): descend(grid, name, rule == NEWTON) for rule in (CONSTANT, NEWTON) for name in LOOKS}
    rows = [
        {"step": rule, "sampler": name, "update": update, "median": float(row.median()), "largest": float(row.max())}
        for (rule, name), errors in paths.items()
        for update, row in enumerate(errors)
    ]
    return Findings(draw(paths), claims(paths), {"errors": pd.DataFrame(rows)})


if __name__ == "__main__":
    main(make, Grid)
