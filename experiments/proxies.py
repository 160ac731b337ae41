"""Proxies of the testbed's gold reward: small reward models, many of them trained at once.

A proxy is an MLP of one hidden layer that reads prompt and tokens one-hot. Its size is what the production trainer's
models do not vary so finely or so cheaply: here all proxies of one size, with data and initial weights of their own,
are one stack of weights, and one run of Adam fits them to the registry's Bradley-Terry loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import one_hot

from rlpref.losses import make_loss
from rlpref.losses.inputs import RewardPairs
from rlpref.report import mean_interval
from rlpref.testbed.coverage import draw_pairs, reference
from rlpref.testbed.exact import expectation
from rlpref.testbed.optima import tilted_path
from rlpref.testbed.preferences import deterministic
from rlpref.testbed.rewards import ngram, standardised
from rlpref.testbed.selection import best_of_n_path
from rlpref.testbed.task import Testbed, answer_tokens, make_testbed

FORMS = {"bon": "best_of_n", "rl": "rl"}  # of each path, its form in rlpref.report.gao
NAMES = {"bon": "best-of-n", "rl": "KL path"}


@dataclass(frozen=True)
class Recipe:
    """How proxies are fitted: minibatches drawn with replacement, Adam."""

    steps: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Labelled:
    """Pairs of answers of one task, by prompt and flat places in [inner, vocab]; all [n]."""

    task: Testbed
    prompt: Tensor
    chosen: Tensor
    rejected: Tensor

    def first(self, n: int) -> Labelled:
        return Labelled(self.task, self.prompt[:n], self.chosen[:n], self.rejected[:n])


def peaked_testbed(environment: int, penalty: float) -> Testbed:
    """19,608 answers to each of 4 prompts. The reference is the testbed's with twice the log-probs: answers of the tail
    are seldom seen in data and can be misjudged. The gold reward is `ngram` less `penalty` for each two equal tokens of
    an answer: what is good once is not good five times, as a small proxy believes."""
    task = make_testbed(vocab=8, horizon=5, prompts=4, seed=environment, reward="ngram")
    task = replace(task, ref=(2 * task.ref).log_softmax(-1), reward=f"ngram, repetition -{penalty:g}")
    generator = torch.Generator().manual_seed(1000 + environment)  # apart from what drew the reference
    counts = one_hot(answer_tokens(task).clamp(min=0), task.tree.vocab).sum(-2)[..., 1:].double()
    repeated = (counts * (counts - 1) / 2).sum(-1)
    return replace(task, rewards=standardised(task, ngram(task, generator) - penalty * repeated))


def labelled(task: Testbed, n: int, seed: int, noise: float = 0.0) -> Labelled:
    """n pairs of the task's reference; the label names the answer of the larger gold reward (Gao et al. 2023,
    2210.10760), and with probability `noise` the other one (Coste et al. 2023, 2310.02743)."""
    generator = torch.Generator().manual_seed(seed)
    prompt, answers = draw_pairs(task, reference(task, task.ref), n, generator)
    wins = deterministic(task)(prompt, *answers.T)
    wins = (1 - noise) * wins + noise * (1 - wins)
    first = torch.rand(n, generator=generator, dtype=torch.float64) < wins
    return Labelled(task, prompt, *torch.where(first, answers.T, answers.T.flip(0)))


def fitted(data: Sequence[Labelled], hidden: int, recipe: Recipe, seeds: Sequence[int]) -> list[Tensor]:
    """A proxy for each data set, [prompts, inner, vocab] scores: mean 0 for each prompt and mean variance 1 under the
    task's reference. `seeds` are of initial weights and minibatches. All tasks must be of the same sizes."""
    tree, read = data[0].task.tree, _inputs(data[0].task)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights = [_initial(read.shape[-1], hidden, generator) for generator in generators]
    weights = [torch.stack(parts).requires_grad_() for parts in zip(*weights)]
    batches = torch.stack([_batches(own, recipe, generator) for own, generator in zip(data, generators)], 1)
    optimizer = torch.optim.Adam(weights, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, recipe.steps)
    loss = make_loss("bradley_terry")
    for rows in batches:
        chosen, rejected = _scores(weights, read[rows]).chunk(2, dim=1)
        optimizer.zero_grad()
        loss(RewardPairs(chosen.flatten(), rejected.flatten())).view_as(chosen).mean(1).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        tables = [_scores([part[i : i + 1] for part in weights], read[None])[0] for i in range(len(data))]
    return [
        unit_scale(own.task, table.double().view(tree.prompts, tree.inner, tree.vocab))
        for own, table in zip(data, tables)
    ]


def unit_scale(task: Testbed, scores: Tensor) -> Tensor:
    """Scores with mean 0 for each prompt and variance 1, in the mean over prompts, under the task's reference."""
    centred = (scores - expectation(task, task.ref, scores)[:, None, None]) * task.ends
    return centred / expectation(task, task.ref, centred**2).mean().sqrt()


def correlation(task: Testbed, first: Tensor, second: Tensor) -> float:
    """Of two scores under the reference, within prompts."""
    one, other = unit_scale(task, first), unit_scale(task, second)
    return float(expectation(task, task.ref, one * other).mean())


def selections(largest: int, points: int) -> list[float]:
    """Numbers of answers to choose from, 1 to `largest`, evenly apart in their logs."""
    return np.unique(np.round(np.geomspace(1, largest, points))).tolist()


def strengths(smallest: float, points: int) -> list[float]:
    """Betas from 1,000 down to `smallest`, in standard deviations of the score."""
    return np.geomspace(1e3, smallest, points).tolist()


def both_paths(task: Testbed, score: Tensor, ns: Sequence[float], betas: Sequence[float]) -> pd.DataFrame:
    """Points of best-of-n by n and of the KL-regularised optimum by beta: exact KL (nats), gold reward and score."""
    rewards = [task.rewards, score]
    found = {"bon": (ns, best_of_n_path(task, task.ref, score, ns, rewards))}
    found["rl"] = betas, tilted_path(task, task.ref, score, betas, rewards)
    frames = [
        pd.DataFrame({"path": name, "at": at, "kl": kl, "gold": means[:, 0], "proxy": means[:, 1]})
        for name, (at, (kl, means)) in found.items()
    ]
    return pd.concat(frames, ignore_index=True)


def band(axis: Axes, rows: pd.DataFrame, column: str, colour: tuple, shaded: bool = False, **line) -> None:
    """Mean of a column along the path over environments, at the mean sqrt(KL); `shaded`: with its 95% interval."""
    groups = rows.groupby("at")
    spans = pd.DataFrame([mean_interval(own[column]) for _, own in groups]).to_numpy()
    d = np.sqrt(groups["kl"].mean().clip(lower=0).to_numpy())
    order = np.argsort(d)
    axis.plot(d[order], spans[order, 0], color=colour, lw=1.2, **line)
    if shaded:
        axis.fill_between(d[order], spans[order, 1], spans[order, 2], color=colour, alpha=0.18, lw=0)


def _batches(own: Labelled, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """[steps, 2 batch] rows of `_inputs`: of each minibatch the chosen answers, then the rejected ones."""
    at = torch.randint(len(own.prompt), (recipe.steps, recipe.batch), generator=generator)
    first = own.prompt * own.task.ends.numel()
    return torch.cat([(first + own.chosen)[at], (first + own.rejected)[at]], 1)


def _inputs(task: Testbed) -> Tensor:
    """[prompts * inner * vocab, features] prompt and the token at each place, one-hot; after the end: EOS."""
    tokens = one_hot(answer_tokens(task).flatten(0, 1).clamp(min=0), task.tree.vocab).flatten(1).float()
    prompts = torch.eye(task.tree.prompts)[:, None].expand(-1, len(tokens), -1)
    return torch.cat([prompts, tokens.expand(task.tree.prompts, -1, -1)], -1).flatten(0, 1)


def _initial(features: int, hidden: int, generator: torch.Generator) -> list[Tensor]:
    """Weights of the hidden layer, its biases, and the weights of the head."""
    return [
        torch.randn(features, hidden, generator=generator) * 0.5,
        torch.zeros(1, hidden),
        torch.randn(hidden, 1, generator=generator) / hidden**0.5,
    ]


def _scores(weights: Sequence[Tensor], read: Tensor) -> Tensor:
    """[proxies, rows] of inputs [proxies, rows, features]."""
    layer, bias, head = weights
    return ((read @ layer + bias).relu() @ head)[..., 0]
