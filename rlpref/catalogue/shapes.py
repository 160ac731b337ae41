"""Pictures of losses: value and gradient weight as the margin between a better and a worse answer grows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlpref.catalogue.table import at_defaults, module, ordered
from rlpref.losses import Entry
from rlpref.losses.inputs import AnswerLogps, PairLogps, RewardPairs, RolloutLogps
from rlpref.types import TensorBatch

COLUMNS = 6
LENGTH = 10.0  # tokens of each answer
START = -20.0  # log-prob of each answer under the reference
UP, DOWN = "#0072B2", "#D55E00"
ALONE = (AnswerLogps, RolloutLogps)  # one answer, no other to win against


def margins() -> Tensor:
    return torch.linspace(-8, 8, 321, dtype=torch.float64)


def along(entry: Entry) -> tuple[TensorBatch, list[Tensor]]:
    """A batch in which the better answer rises and the worse one falls, row by row, and the two as leaves [rows]:
    log-ratios, or a reward model's scores. Of single answers the desirable ones rise, the others stand still."""
    x = margins()
    better, worse = (x / 2).requires_grad_(), (-x / 2).requires_grad_()
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)
    given = {"chosen_len": LENGTH * ones, "rejected_len": LENGTH * ones, "length": LENGTH * ones}
    given |= {"chosen_score": ones, "rejected_score": zeros, "soft_label": 0.9 * ones, "margin": ones}
    given |= {"chosen_kl": zeros, "rejected_kl": zeros, "mismatched": zeros, "label": ones.bool()}
    given |= {"chosen_target": ones, "rejected_target": zeros, "score": ones}
    given |= {"ref_chosen": START * ones, "ref_rejected": START * ones}
    if entry.takes is PairLogps:
        given |= {"chosen": START + better, "rejected": START + worse}
    elif entry.takes is RewardPairs:
        given |= {"chosen": better, "rejected": worse}
    elif entry.takes is AnswerLogps:
        given |= {"logps": START + better, "ref_logps": START * ones}
    elif entry.takes is RolloutLogps:
        token = better[:, None]
        given |= {"logps": token - 2, "old_logps": (-2 * ones)[:, None], "ref_logps": (-2 * ones)[:, None]}
        given |= {"advantages": ones[:, None], "mask": ones[:, None].bool()}
    else:
        both = torch.stack([better, worse], 1)
        given |= {"scores": torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2), "length": LENGTH + 0 * both}
        given |= {"logps": START + both, "ref_logps": START + 0 * both.detach(), "rewards": both}
        given |= {"present": torch.ones(len(x), 2, dtype=torch.bool)}
    return entry.takes(**{f.name: given.get(f.name) for f in fields(entry.takes)}), [better, worse]


def curves(entry: Entry) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(margin or log-ratio, loss, gradient weights of the better and of the worse answer), each [rows]. A weight is
    minus the derivative for the better answer, the derivative for the worse: above 0 it pushes the right way."""
    batch, leaves = along(entry)
    loss = at_defaults(entry)
    if entry.coupled:  # every margin is a minibatch of its own: two equal pairs
        value = torch.cat([loss(batch[torch.tensor([i, i])])[:1] for i in range(len(batch))])
    else:
        value = loss(batch)
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    weights = [sign * g for sign, g in zip((-1, 1), gradients) if g is not None]
    return margins() / (2 if entry.takes in ALONE else 1), value.detach().reshape(len(batch), -1)[:, 0], weights


def figure(entries: Iterable[Entry]) -> Figure:
    """One panel for each loss."""
    entries = list(entries)
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    drawn = Figure(figsize=(2.1 * columns + 0.3, 1.75 * rows + 0.3), layout="constrained")
    drawn.supxlabel("log-ratio" if entries[0].takes in ALONE else "margin", fontsize=8)
    for place, entry in enumerate(entries):
        axes = drawn.add_subplot(rows, columns, place + 1)
        x, value, weights = curves(entry)
        axes.plot(x, value, color="black", lw=1.3)
        axes.set_title(entry.name, fontsize=9)
        axes.set_ylim(*_limits(value))
        axes.axvline(0, color="0.85", lw=0.6, zorder=0)
        right = axes.twinx()
        for weight, colour, style in zip(weights, (UP, DOWN), ("-", "--")):
            right.plot(x, weight, color=colour, lw=1.0, ls=style)
        right.set_ylim(*_limits(torch.cat([*weights, torch.zeros(1)])))
        for side in (axes, right):
            side.tick_params(labelsize=6, length=2)
            side.spines["top"].set_visible(False)
        right.tick_params(axis="y", colors=UP)
    return drawn


def _limits(values: Tensor) -> tuple[float, float]:
    """All of the values, unless the largest dwarf the rest: an exponential may leave the panel."""
    low, high = values.quantile(torch.tensor([0.02, 0.95], dtype=values.dtype)).tolist()
    least, most, span = float(values.min()), float(values.max()), high - low
    low, high = least if low - least < span else low, most if most - high < span else high
    room = 0.08 * (high - low) + 1e-3 * (1 + abs(high))
    return low - room, high + room


def write(folder: Path) -> list[Path]:
    """One picture for each family, folder/<file of the family>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    families: dict[str, list[Entry]] = {}
    for entry in ordered():
        families.setdefault(module(entry), []).append(entry)
    paths = []
    for name, entries in families.items():
        paths.append(folder / f"{name}.png")
        figure(entries).savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths
