"""Where every preference loss goes: the population optimum of each, beside the exact frontier.

    python experiments/loss_optima.py [--out FOLDER] [--only LOSS ...] [--horizon TOKENS]

The expected loss over all pairs of answers with Bradley-Terry labels of the gold reward is minimised over all policies,
for every registered loss that takes pairs and every choice of its hyperparameters, at BETAS; nothing is sampled. Pairs
come from the reference, and from the reference with a hole that the pairs never show. Each loss starts at the
reference, and at BETA from a second policy, too. Writes loss_optima.csv, .md and .png into the folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from rlpref.logging.folder import write_atomically
from rlpref.losses import LOSSES, make_loss
from rlpref.losses.inputs import ListLogps, PairLogps
from rlpref.losses.registry import Entry, variants
from rlpref.report.figures import save
from rlpref.report.optima import optima_figure
from rlpref.report.tables import markdown
from rlpref.testbed.coverage import holes
from rlpref.testbed.duels import chosen_policy, ipo_optimum
from rlpref.testbed.exact import answer_logps, expectation, sequence_kl
from rlpref.testbed.listwise import expected_list_loss
from rlpref.testbed.measures import out_of_support_mass
from rlpref.testbed.optima import conditionals_of, frontier, frontier_reward, optimum
from rlpref.testbed.population import expected_loss
from rlpref.testbed.preferences import bradley_terry
from rlpref.testbed.stationary import Rest, gain_beyond, rest
from rlpref.testbed.task import Testbed, make_testbed

BETA = 0.5
BETAS = (0.1, 0.25, BETA, 1.0, 2.0)
HOLE = (1, 2)  # tokens that never follow each other in the pairs of "holes"
ANSWERS = 3  # in a list
MAX_ITER = 2000
STRICT = 1e-9  # in units of the loss: a minimum rises by more where rejected answers are pushed further down
FRONTIER_ERROR = 1e-5  # in units of the reward: of `frontier_reward` near a KL of 0
SAME = 1e-4  # nats: two ends that are nearer are one
MEASURES = {
    "kl_optimum": "KL to pi*",
    "kl_ipo": "KL to IPO's optimum",
    "reward": "reward",
    "kl": "KL to the reference",
    "gap": "below the frontier",
    "outside": "out of support",
    "chosen": "log-prob of chosen",
}


class Pairs(NamedTuple):
    """A distribution of pairs on a task."""

    task: Testbed
    name: str
    mu: Tensor  # conditionals
    support: Tensor  # [prompts, inner, vocab] bool

    def expected(self, entry: Entry, settings: dict) -> Callable[[Tensor], Tensor]:
        """The expected loss as a function of the policy."""
        loss, task = make_loss(entry.name, **settings), self.task
        if entry.takes is ListLogps:
            return expected_list_loss(task, loss, task.ref, self.mu, task.rewards, ANSWERS)
        return expected_loss(task, loss, task.ref, self.mu, bradley_terry(task), task.rewards)


def covered() -> list[Entry]:
    """Registered losses that have a population optimum of their own here."""
    return [entry for entry in LOSSES.values() if entry.takes in (PairLogps, ListLogps) and not entry.coupled]


def distributions(task: Testbed) -> list[Pairs]:
    hollow = holes(task, task.ref, HOLE)
    everything = task.ends.expand_as(task.ref)
    return [
        Pairs(task, "reference", task.ref, everything),
        Pairs(task, "holes", conditionals_of(task, hollow, elsewhere=task.ref), hollow > -torch.inf),
    ]


def second_start(task: Testbed) -> Tensor:
    """Conditionals of a policy a few nats from the reference."""
    noise = torch.randn(task.ref.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (task.ref + noise).log_softmax(-1)


def measures(pairs: Pairs, policy: Tensor, beta: float) -> dict[str, float]:
    """The columns of MEASURES; means over prompts, in nats or units of the reward."""
    task = pairs.task
    truth = bradley_terry(task)
    best = optimum(task, task.ref, task.rewards, beta).policy
    own = ipo_optimum(task, task.ref, pairs.mu, truth, beta)
    won = chosen_policy(task, pairs.mu, truth)
    ratio = answer_logps(task, policy) - answer_logps(task, task.ref)
    kl, reward = sequence_kl(task, policy, task.ref), expectation(task, policy, task.rewards)
    kl, reward = float(kl.mean()), float(reward.mean())
    below = frontier_reward(task, task.ref, task.rewards, kl) - reward
    return {
        "kl_optimum": max(0.0, float(sequence_kl(task, policy, best).mean())),
        "kl_ipo": max(0.0, float(sequence_kl(task, policy, own).mean())),
        "reward": reward,
        "kl": max(0.0, kl),
        "gap": below if below > FRONTIER_ERROR else 0.0,
        "outside": float(out_of_support_mass(task, policy, pairs.support).mean()),
        "chosen": float(expectation(task, won, torch.where(pairs.support, ratio, 0.0)).mean()),
        "lowest": float(ratio[pairs.support].min()),
    }


def verdict(found: Rest, gain: float) -> str:
    """What kind of end it is: that of the descent, unless the loss goes on falling as probabilities go to 0."""
    off = found.kind in ("minimum", "kink") and gain > -STRICT
    return "runs off" if off else found.kind


def measure(pairs: Pairs, entry: Entry, settings: dict, beta: float, start: str) -> dict:
    """One row: where this loss goes from this start."""
    began = time.perf_counter()
    task = pairs.task
    expected = pairs.expected(entry, settings)
    found = rest(expected, task.ref if start == "reference" else second_start(task), MAX_ITER)
    gain = gain_beyond(task, expected, found.argmin.policy, task.ref, pairs.support)
    others = {key: value for key, value in settings.items() if key != entry.regularisation}
    name = " ".join([entry.name, *(str(value) for value in others.values())])
    return {
        "family": entry.function.__module__.rsplit(".", 1)[-1],
        "loss": name,
        "beta": beta if entry.regularisation else None,
        "pairs": pairs.name,
        "start": start,
        "end": verdict(found, gain),
        **measures(pairs, found.argmin.policy, beta),
        "value": found.argmin.loss,
        "gradient": found.argmin.gradient,
        "seconds": time.perf_counter() - began,
    }


def study(task: Testbed, entries: list[Entry]) -> pd.DataFrame:
    """One row per loss, beta, distribution of pairs and start. Away from BETA: pairs of the reference, from there."""
    rows = []
    for entry in entries:
        for beta in BETAS if entry.regularisation else (BETA,):
            for settings in variants(entry.name, beta):
                for pairs in distributions(task)[: 2 if beta == BETA else 1]:
                    for start in ("reference", "second")[: 2 if beta == BETA else 1]:
                        rows.append(measure(pairs, entry, settings, beta, start))
        print(f"{entry.name}: {sum(row['seconds'] for row in rows):.0f} s so far", flush=True)
    return pd.DataFrame(rows)


def readable(rows: pd.DataFrame, pairs: str) -> pd.DataFrame:
    """The table of one distribution at BETA as text."""
    at = rows[(rows["pairs"] == pairs) & ((rows["beta"] == BETA) | rows["beta"].isna())]
    ends, others = (at[at["start"] == start].set_index("loss") for start in ("reference", "second"))
    columns = {"loss": list(ends.index)}
    for name, title in MEASURES.items():
        columns[title] = [_number(value) for value in ends[name]]
    columns["gradient"] = [f"{value:.0e}" for value in ends["gradient"]]
    columns["end"] = ends["end"].tolist()
    columns["from elsewhere"] = [_elsewhere(row, others.loc[loss]) for loss, row in ends.iterrows()]
    if pairs == "reference":
        del columns[MEASURES["outside"]]
    return pd.DataFrame(columns)


def _elsewhere(end: pd.Series, other: pd.Series) -> str:
    """Where the second start leads, if not to the same end."""
    names = ["kl_optimum", "kl_ipo", "reward", "kl"]
    if (end[names] - other[names]).abs().max() < SAME:
        return "the same"
    place = f"KL {_number(other['kl'])}, reward {_number(other['reward'])}"
    place += f", outside {_number(other['outside'])}" if end["pairs"] == "holes" else ""
    return place if other["end"] == end["end"] else f"{other['end']}: {place}"


def _number(value: float) -> str:
    if abs(value) < 5e-9:
        return "0"
    return f"{value:.0e}" if abs(value) < 5e-4 or abs(value) >= 1e3 else f"{value:.3f}"


def page(rows: pd.DataFrame) -> str:
    """The whole markdown file."""
    parts = [f"# Where every preference loss goes, at beta {BETA}"]
    for pairs in ("reference", "holes"):
        parts += [f"## Pairs of `{pairs}`", markdown(readable(rows, pairs)).strip()]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/loss_optima"))
    parser.add_argument("--only", nargs="+", help="these losses alone")
    parser.add_argument("--horizon", type=int, default=3, help="tokens of an answer at most, at least 2")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = make_testbed(vocab=3, horizon=options.horizon, prompts=2, seed=5, reward="ngram")
    rows = study(task, [entry for entry in covered() if not options.only or entry.name in options.only])
    line = pd.DataFrame(frontier(task, task.ref, task.rewards))
    write_atomically(options.out / "loss_optima.csv", rows.to_csv(index=False))
    save(optima_figure(rows, line, BETA), options.out, "loss_optima")
    write_atomically(options.out / "loss_optima.md", page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
