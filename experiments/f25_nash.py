"""Nash-MD, IPO-MD, SPPO: online IPO ends at the regularised equilibrium of preferences with cycles, offline does not.

Exact iterations of whole policies, nothing drawn: rock, paper, scissors and a fourth answer that loses to each, and the
testbed with cycles of strength gamma. `rlpref experiment=nash` trains the same methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from exhibit import Findings, exactly, look, main, panels, style
from rlpref.losses.registry import make_loss
from rlpref.report import mean_interval
from rlpref.report.style import PALETTE
from rlpref.testbed.duels import exploitability, ipo_optimum, nash, played
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.optima import conditionals_of, optimum
from rlpref.testbed.population import population_loss
from rlpref.testbed.preferences import Preference, non_transitive, tabulated
from rlpref.testbed.self_play import geometric, nash_md_step, self_play_step
from rlpref.testbed.task import Testbed, make_testbed

NAMES = {"online_ipo": "online IPO", "nash_md": "Nash-MD", "ipo": "offline IPO"}
WINS = [[0.5, 0.9, 0.1, 0.6], [0.1, 0.5, 0.9, 0.6], [0.9, 0.1, 0.5, 0.6], [0.4, 0.4, 0.4, 0.5]]
REPLIES = 100
ANSWERS = ("rock", "scissors", "paper", "fourth")


@dataclass(frozen=True)
class Grid:
    environments: list[int]
    tau: float
    steps: int
    rate: float  # of online IPO: the share of the way to the best reply in a step
    eta: float  # of SPPO
    gammas: list[float]
    shares: list[float]  # of the reference in IPO-MD's opponent


def game(environment: int) -> tuple[Testbed, Preference]:
    """Four answers to one prompt with the preferences WINS; the reference is the environment's."""
    task = make_testbed(vocab=4, horizon=1, prompts=1, seed=environment, reward="ngram")
    return task, tabulated(task, torch.tensor([WINS], dtype=torch.float64))


def online_ipo(task: Testbed, preference: Preference, tau: float, steps: int, rate: float) -> list[Tensor]:
    """Policies of descent on the registry's IPO loss, pairs drawn from the policy itself and taken as fixed. The
    gradient by logits, over 4 pi, is the way to the best reply: h - p(y beats pi)/tau with h = log pi/ref."""
    loss, policy, found = make_loss("ipo", tau=tau), task.ref, [task.ref]
    for _ in range(steps):
        logits = policy.clone().requires_grad_()
        value = population_loss(task, loss, logits.log_softmax(-1), task.ref, policy, preference)
        (gradient,) = torch.autograd.grad(value, logits)
        policy = (policy - rate * gradient / (4 * policy.exp())).log_softmax(-1)
        found.append(policy)
    return found


def nash_md(task: Testbed, preference: Preference, tau: float, steps: int) -> list[Tensor]:
    """Policies of Nash-MD with the step sizes of its theorem 1."""
    found = [task.ref]
    for t in range(steps):
        found.append(nash_md_step(task, found[-1], task.ref, preference, tau, 2 / (tau * (t + 2))))
    return found


def small_game(environment: int, grid: Grid) -> tuple[list[dict], dict, dict[str, Tensor]]:
    """Rows of exploitability by step, a row of what the claims need, and the last policies by name."""
    task, preference = game(environment)
    runs = {"online_ipo": online_ipo(task, preference, grid.tau, grid.steps, grid.rate)}
    runs["nash_md"] = nash_md(task, preference, grid.tau, grid.steps)
    runs["ipo"] = [ipo_optimum(task, task.ref, task.ref, preference, grid.tau)] * (grid.steps + 1)
    shown = sorted({round(1.25**power) for power in range(60)} & set(range(grid.steps)) | {grid.steps})
    rows, single = [], {"environment": environment}
    for name, policies in runs.items():
        for step in [0, *shown]:
            value = float(exploitability(task, policies[step], task.ref, preference, grid.tau).mean())
            rows.append({"environment": environment, "method": name, "step": step, "exploitability": value})
        single[name] = value
    ends = {name: answer_logps(task, policies[-1]).exp()[0, 0] for name, policies in runs.items()}
    single["tv"] = 0.5 * float((ends["online_ipo"] - ends["nash_md"]).abs().sum())
    free = [task.ref]
    for _ in range(grid.steps):
        free.append(self_play_step(task, free[-1], preference, grid.eta))
    total = torch.stack([answer_logps(task, policy).exp() for policy in free]).cumsum(0)
    for step in shown:
        mean = conditionals_of(task, (total[step - 1] / step).log())
        found = {"sppo, last": free[step], "sppo, mean": mean}
        for name, policy in found.items():
            single[name] = played(task, policy, task.ref, preference, None)["exploitability_free"]
            rows.append({"environment": environment, "method": name, "step": step, "exploitability": single[name]})
    single["hedge"] = float(-task.ref.min()) / (grid.eta * grid.steps) + grid.eta / 8
    equilibrium = nash(task, task.ref, preference, grid.tau).policy
    named = {"reference": task.ref.exp()[0, 0], **ends, "equilibrium": equilibrium.exp()[0, 0]}
    return rows, single, named


def ipo_md(task: Testbed, preference: Preference, tau: float, share: float) -> Tensor:
    """Where IPO against policy^(1 - share) ref^share comes to rest, by damped best replies."""
    policy = task.ref
    for _ in range(REPLIES if share < 1 else 1):
        opponent = geometric(task, policy, task.ref, share)
        reply = ipo_optimum(task, task.ref, opponent, preference, tau)
        policy = geometric(task, policy, reply, 0.15 if share < 1 else 1.0)
    return policy


def stationarity(task: Testbed, preference: Preference, policy: Tensor, tau: float) -> float:
    """Largest entry of the gradient of the registry's IPO loss at a policy on pairs of its own."""
    logits = policy.clone().requires_grad_()
    value = population_loss(task, make_loss("ipo", tau=tau), logits.log_softmax(-1), task.ref, policy, preference)
    return float(torch.autograd.grad(value, logits)[0].abs().max())


def cycles(environment: int, gamma: float, grid: Grid) -> tuple[list[dict], dict]:
    """Exploitability of each method's limit on the testbed with cycles of strength gamma, and the row of claims."""
    task = make_testbed(vocab=4, horizon=2, prompts=4, seed=environment, reward="ngram")
    preference = non_transitive(task, gamma, environment)
    equilibrium = nash(task, task.ref, preference, grid.tau).policy
    found = {"reference": task.ref, "RLHF on gold": optimum(task, task.ref, task.rewards, grid.tau).policy}
    found |= {f"share {share:g}": ipo_md(task, preference, grid.tau, share) for share in grid.shares}
    found |= {"equilibrium": equilibrium}
    rows = []
    for name, policy in found.items():
        value = float(exploitability(task, policy, task.ref, preference, grid.tau).mean())
        apart = 0.5 * (answer_logps(task, policy).exp() - answer_logps(task, equilibrium).exp()).abs().sum((1, 2))
        row = {"environment": environment, "gamma": gamma, "policy": name, "tv": float(apart.mean())}
        rows.append(row | {"exploitability": value})
    return rows, {"gamma": gamma, "gradient": stationarity(task, preference, equilibrium, grid.tau)}


def findings(single: pd.DataFrame, swept: pd.DataFrame, gradients: pd.DataFrame) -> dict:
    at_zero = swept[swept["gamma"] == 0].pivot(index="environment", columns="policy", values="tv")
    return {
        "stationary": exactly(gradients["gradient"].max()),
        "tv": exactly(single["tv"].max()),
        "online": exactly(single["online_ipo"].max()),
        "nash_md": exactly(single["nash_md"].max()),
        "ratio": exactly((single["ipo"] / single["online_ipo"].clip(lower=1e-12)).min()),
        "sppo_mean": exactly((single["sppo, mean"] - single["hedge"]).max()),
        "sppo_near": exactly(single["sppo, mean"].max()),
        "sppo_last": exactly(single["sppo, last"].min()),
        "no_cycles_rlhf": mean_interval(at_zero["RLHF on gold"]),
        "no_cycles_ipo": mean_interval(at_zero["share 1"]),
    }


def banded(axis, rows: pd.DataFrame, by: str, **looks) -> None:
    """Mean and range over environments of the exploitability."""
    groups = rows.groupby(by)["exploitability"]
    axis.plot(groups.mean().index, groups.mean().clip(lower=1e-16), lw=1.2, **looks)
    axis.fill_between(
        groups.mean().index, groups.min().clip(lower=1e-16), groups.max(), color=looks["color"], alpha=0.2
    )


def draw(grid: Grid, rows: pd.DataFrame, policies: dict[str, Tensor], swept: pd.DataFrame) -> Figure:
    with style():
        title = "With cycles, online IPO and Nash-MD end where nobody can exploit them"
        figure, (steps, bars, free, gamma) = panels(2, 2, 2.3, title)
        for name, label in NAMES.items():
            own = rows[(rows["method"] == name) & (rows["step"] > 0)]
            banded(steps, own, "step", color=look(name)["color"], label=label)
        for name, line in (("sppo, last", "-"), ("sppo, mean", "--")):
            banded(
                free,
                rows[rows["method"] == name],
                "step",
                color=look("sppo")["color"],
                ls=line,
                label=name.replace("sppo", "SPPO"),
            )
        colours = {"reference": "0.6", **{name: look(name)["color"] for name in NAMES}, "equilibrium": "black"}
        for i, (name, chances) in enumerate(policies.items()):
            places = torch.arange(len(ANSWERS)) + 0.15 * (i - 2)
            bars.bar(places, chances, 0.14, color=colours[name], label=NAMES.get(name, name))
        shares = {
            f"share {share:g}": f"IPO-MD, share {share:g} of the reference" for share in grid.shares if 0 < share < 1
        }
        ends = {"reference": ("0.6", "reference"), "RLHF on gold": (PALETTE[2], "RLHF on gold")}
        ends |= {"share 1": (look("ipo")["color"], "offline IPO (share 1)")}
        ends |= {key: (PALETTE[5 + i], label) for i, (key, label) in enumerate(shares.items())}
        for name, (colour, label) in ends.items():
            banded(gamma, swept[swept["policy"] == name], "gamma", color=colour, marker="o", ms=3, label=label)
        steps.set(xscale="log", yscale="log", xlabel="step", ylabel="exploitability", ylim=(1e-13, None))
        steps.set_title("rock, paper, scissors and a fourth, with a KL;\nband: range over references")
        bars.set(
            xticks=range(4), ylabel="probability at the end", title="the policies, first reference", ylim=(0, 0.75)
        )
        bars.set_xticklabels(ANSWERS)
        free.set(
            xscale="log", yscale="log", xlabel="round", ylabel="exploitability", title="SPPO in the game without a KL"
        )
        gamma.set(yscale="log", xlabel="strength gamma of the cycles", ylabel="exploitability", ylim=(1e-8, None))
        gamma.set_title("testbed, with a KL; the equilibrium has 0")
        for axis in (steps, bars, free, gamma):
            axis.legend(fontsize=6.5)
    return figure


def make(grid: Grid, folder: Path) -> Findings:
    games = [small_game(environment, grid) for environment in grid.environments]
    rows = pd.DataFrame([row for found, _, _ in games for row in found])
    single = pd.DataFrame([row for _, row, _ in games])
    sweeps = [cycles(environment, gamma, grid) for environment in grid.environments for gamma in grid.gammas]
    swept = pd.DataFrame([row for found, _ in sweeps for row in found])
    values = findings(single, swept, pd.DataFrame([row for _, row in sweeps]))
    return Findings(draw(grid, rows, games[0][2], swept), values, {"steps": rows, "ends": single, "gamma": swept})


if __name__ == "__main__":
    main(make, Grid)
