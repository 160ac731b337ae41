"""Where a KL penalty must stand: k1, k2 and k3 in the reward or differentiated as a loss, by exact expected gradients.

The rewards are 0 and the penalty is alone, so that J = -KL(policy || ref). All tuples of answers are enumerated along
the path of log-probs from the reference to pi*. The last claims look at GRPO's k3 of single tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cosine_similarity

from exhibit import Findings, exactly, main, panels, style
from rlpref.report import Interval
from rlpref.report.style import PALETTE
from rlpref.testbed.estimators import KL_PLACEMENTS
from rlpref.testbed.exact import sequence_kl
from rlpref.testbed.gradients import enumerate_draws, moments, objective_gradient, quality
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import Testbed, make_testbed

SHOWN = {  # placement -> colour, marker
    "k1 in reward": (PALETTE[0], "o"),
    "k2 as loss": (PALETTE[2], "s"),
    "k3 in reward and as loss": (PALETTE[5], "P"),
    "k2 as loss, per token": (PALETTE[4], "D"),
    "k3 as loss, per token": (PALETTE[6], "v"),
    "k3 as loss": (PALETTE[1], "^"),
    "k3 in reward": (PALETTE[3], "X"),
    "k1 as loss": (PALETTE[9], "h"),
}
K3 = "k3 as loss"


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    k: int
    beta: float  # of pi*, to which the path of policies leads
    ways: list[float]  # share of log pi*/ref
    environments: list[int]


def forward_gradient(task: Testbed, policy: torch.Tensor) -> torch.Tensor:
    """[prompts, inner, vocab] gradient of -KL(ref || policy), mean over prompts, by the logits of the policy."""
    logits = policy.detach().clone().requires_grad_()
    return torch.autograd.grad(-sequence_kl(task, task.ref, logits.log_softmax(-1)).mean(), logits)[0]


def measure(grid: Grid, environment: int) -> list[dict]:
    """One row per policy and placement: `Quality` beside the gradient of -KL(policy || ref), the length of the mean
    gradient, and its cosine with the gradient of -KL(ref || policy)."""
    task = make_testbed(grid.vocab, grid.horizon, grid.prompts, environment, "ngram")
    best, nothing = optimum(task, task.ref, task.rewards, grid.beta).policy, torch.zeros_like(task.rewards)
    rows = []
    for way in grid.ways:
        policy = (task.ref + way * (best - task.ref)).log_softmax(-1)
        draws = enumerate_draws(task, policy, task.ref, nothing, 1.0, grid.k)
        exact = objective_gradient(task, policy, task.ref, nothing, 1.0)
        forward = forward_gradient(task, policy)
        for name in SHOWN:
            surrogate = KL_PLACEMENTS[name].surrogate
            mean = moments(draws, surrogate)[0].flatten()
            row = {"environment": environment, "way": way, "kl": float(sequence_kl(task, policy, task.ref).mean())}
            row |= {"placement": name, "mean": float(mean.norm()), **vars(quality(draws, surrogate, exact))}
            rows.append(row | {"forward": float(cosine_similarity(mean, forward.flatten(), dim=0))})
    return rows


def draw(rows: pd.DataFrame) -> Figure:
    with style():
        figure, axes = panels(3, height=2.6, title="A KL belongs in the reward as k1, or in the loss as k2")
        titles = ("cosine with the exact gradient", "length along the exact gradient", "E |g - E g|² / |grad KL|²")
        for axis, value, title in zip(axes, ("cosine", "scale", "variance"), titles):
            for name, (colour, marker) in SHOWN.items():
                own = rows[(rows["placement"] == name) & rows[value].notna()]  # no cosine where the mean is 0
                spread, kl = own.groupby("way")[value], own.groupby("way")["kl"].mean()
                axis.plot(kl, spread.mean(), color=colour, marker=marker, ms=3, lw=1, label=name)
                axis.fill_between(kl, spread.min(), spread.max(), color=colour, alpha=0.15, lw=0)
            axis.set(title=title, xlabel="KL(policy || reference), nats", xscale="log")
            axis.set_xticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
        axes[2].set_yscale("log")
        shown = axes[1].get_legend_handles_labels()
        figure.legend(*shown, loc="outside lower center", ncols=4, title="mean and range over tasks", title_fontsize=7)
    return figure


def claims(rows: pd.DataFrame) -> dict[str, Interval]:
    """The worst value over all policies and environments; the names are those of the yaml file."""
    of = rows.set_index("placement")
    far = of[of["way"] >= 0.5]
    return {
        "k1_in_reward": exactly(of.loc["k1 in reward", "cosine"].min()),
        "k2_as_loss": exactly(of.loc["k2 as loss", "cosine"].min()),
        "lengths": exactly((of.loc[["k1 in reward", "k2 as loss"], "scale"] - 1).abs().max()),
        "k3_as_loss": exactly(far.loc[K3, "cosine"].max()),
        "k3_forward": exactly(of.loc[K3, "forward"].min()),
        "k1_as_loss": exactly(of.loc["k1 as loss", "mean"].max()),
        "k3_whole": exactly(of.loc["k3 in reward and as loss", "bias"].max()),
        "k3_near": exactly(of[of["way"] == of["way"].min()].loc[K3, "cosine"].min()),
        "k3_tokens": exactly(far.loc["k3 as loss, per token", "cosine"].max()),
        "k2_variance": exactly((of.loc["k2 as loss", "variance"] / of.loc["k1 in reward", "variance"].values).max()),
    }


def make(grid: Grid, folder: Path) -> Findings:
    rows = pd.DataFrame([row for environment in grid.environments for row in measure(grid, environment)])
    return Findings(draw(rows), claims(rows), {"placements": rows})


if __name__ == "__main__":
    main(make, Grid)
