"""Who wins a pair of answers: exact preference probabilities, made from the gold reward r.

A model is `model(task, **options) -> Preference`, a function P(y beats y' | x) of the prompt and of the flat places
of two answers in [inner, vocab]. It can be asked for any number of pairs; `matrix` asks for all. In the formulas
dr = r(x, y) - r(x, y'), sigma is the logistic function and t the temperature. To add a model, write the function
and name it in PREFERENCES: its parameters after the task are its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.binding import ConfigError, bind, choose
from rlpref.testbed.judge import judge_scores
from rlpref.testbed.rewards import ngram, standardised
from rlpref.testbed.task import Testbed, answer_lengths, answer_places

ROUNDING = 1e-9  # rewards that differ by less are equal: equal sums in another order differ by rounding
OfPairs = Callable[[Tensor, Tensor, Tensor], Tensor]  # (prompt [n], y [n], y' [n]) -> [n]


@dataclass
class Preference:
    """P(y beats y' | x) of the pairs that get a winner, and the probability that a pair gets one."""

    wins: OfPairs
    decided: OfPairs | None = None  # None: every pair gets a winner

    def __call__(self, prompt: Tensor, y: Tensor, other: Tensor) -> Tensor:
        """[n] fp64 probability that `y` wins, given that one of the two does. Indices [n] or any shapes that
        broadcast."""
        return self.wins(prompt, y, other)


def preference_model(name: str, options: Mapping[str, Any] | None) -> Callable[[Testbed], Preference]:
    """The model of that name with its options. Raises ConfigError for an unknown name and for an option that the
    model does not use, lacks, or cannot take."""
    return bind(choose(PREFERENCES, name, "data.preference"), options or {}, f"data.preference '{name}'", 1)


def matrix(task: Testbed, preference: Preference) -> Tensor:
    """[prompts, answers, answers] P(row beats column | x), answers in the order of `task.ends.flatten()`. Of the
    order of answers squared: for small spaces."""
    answers = answer_places(task)
    prompts = torch.arange(task.tree.prompts)
    return preference(prompts[:, None, None], answers[None, :, None], answers[None, None])


def tabulated(task: Testbed, table: Tensor) -> Preference:
    """The preference that `matrix` would give as `table` [prompts, answers, answers].

    Raises ValueError for another shape and for a table that is not complementary, P(a, b) + P(b, a) = 1.
    """
    answers = answer_places(task)
    shape = (task.tree.prompts, len(answers), len(answers))
    if table.shape != shape:
        raise ValueError(f"a preference matrix of this task is {list(shape)}; got {list(table.shape)}")
    if not torch.allclose(table + table.mT, torch.ones_like(table), rtol=0, atol=1e-9) or (table < 0).any():
        raise ValueError("a preference matrix needs probabilities with P(a beats b) + P(b beats a) = 1")
    rank = torch.zeros(task.ends.numel(), dtype=torch.long)
    rank[answers] = torch.arange(len(answers))
    return Preference(lambda prompt, y, other: table[prompt, rank[y], rank[other]])


def bradley_terry(task: Testbed, temperature: float = 1.0) -> Preference:
    """sigma(dr / t) (Bradley and Terry 1952)."""
    _require(temperature > 0, "bradley_terry", "temperature > 0", temperature)
    return Preference(_logistic(task.rewards, temperature))


def deterministic(task: Testbed) -> Preference:
    """1 for the larger reward, 0 for the smaller, 1/2 for equal ones."""
    margin = _difference(task.rewards)

    def wins(prompt: Tensor, y: Tensor, other: Tensor) -> Tensor:
        dr = margin(prompt, y, other)
        return (dr > ROUNDING).double() + 0.5 * (dr.abs() <= ROUNDING)

    return Preference(wins)


def thurstone(task: Testbed, temperature: float = 1.0) -> Preference:
    """Phi(dr / t), the normal distribution function: the larger of two rewards that each are seen with independent
    normal noise of standard deviation t / sqrt(2) (Thurstone 1927, case V)."""
    _require(temperature > 0, "thurstone", "temperature > 0", temperature)
    margin = _difference(task.rewards)
    return Preference(lambda *pair: torch.special.ndtr(margin(*pair) / temperature))


def flips(task: Testbed, epsilon: float, temperature: float = 1.0) -> Preference:
    """Bradley-Terry labels of which each is turned round with probability `epsilon`: (1 - eps) P + eps (1 - P)
    (the noise model of robust DPO, Chowdhury et al. 2024, 2403.00409)."""
    _require(0 <= epsilon <= 0.5, "flips", "epsilon between 0 and 0.5", epsilon)
    clean = bradley_terry(task, temperature)

    def wins(*pair: Tensor) -> Tensor:
        p = clean(*pair)
        return (1 - epsilon) * p + epsilon * (1 - p)

    return Preference(wins)


def instance_flips(task: Testbed, temperature: float = 1.0, flip_temperature: float = 1.0) -> Preference:
    """Bradley-Terry labels, each turned round with probability sigma(-|dr| / flip_temperature): close pairs are
    mislabelled more often. (Deterministic labels with such flips would be Bradley-Terry itself.)"""
    _require(flip_temperature > 0, "instance_flips", "flip_temperature > 0", flip_temperature)
    clean, margin = bradley_terry(task, temperature), _difference(task.rewards)

    def wins(*pair: Tensor) -> Tensor:
        p, flipped = clean(*pair), (-margin(*pair).abs() / flip_temperature).sigmoid()
        return p * (1 - flipped) + (1 - p) * flipped

    return Preference(wins)


def mixture(task: Testbed, weights: Sequence[float], seed: int, temperature: float = 1.0) -> Preference:
    """Each label is that of one of several annotators: sum_k w_k sigma(dr_k / t). Who labelled is not told (the
    hidden context of Siththaranjan et al. 2023, 2312.08358, under which reward learning ranks by Borda count).

    The first annotator has the gold reward, every other one an ngram reward of its own, drawn from `seed`.
    """
    positive = bool(weights) and all(w >= 0 for w in weights)
    _require(positive and abs(sum(weights) - 1) < 1e-9, "mixture", "weights >= 0 that sum to 1", list(weights))
    _require(temperature > 0, "mixture", "temperature > 0", temperature)
    generator = torch.Generator().manual_seed(seed)
    others = [standardised(task, ngram(task, generator)) for _ in weights[1:]]
    return mixed_annotators([task.rewards, *others], weights, temperature)


def mixed_annotators(rewards: Sequence[Tensor], weights: Sequence[float], temperature: float = 1.0) -> Preference:
    """sum_k w_k sigma(dr_k / t) for any reward functions [prompts, inner, vocab]."""
    annotators = [_logistic(table, temperature) for table in rewards]
    return Preference(lambda *pair: sum(w * p(*pair) for w, p in zip(weights, annotators)))


def length_biased(task: Testbed, bias: float, temperature: float = 1.0) -> Preference:
    """sigma((dr + bias (|y| - |y'|)) / t): `bias` is the reward that one more token seems worth; EOS not counted."""
    _require(temperature > 0, "length_biased", "temperature > 0", temperature)
    return Preference(_logistic(task.rewards + bias * answer_lengths(task), temperature))


def position_biased(task: Testbed, bias: float, temperature: float = 1.0) -> Preference:
    """(sigma((dr + bias) / t) + sigma((dr - bias) / t)) / 2: the answer shown first seems worth `bias` more, and
    which one is shown first is tossed."""
    _require(temperature > 0, "position_biased", "temperature > 0", temperature)
    margin = _difference(task.rewards)

    def wins(*pair: Tensor) -> Tensor:
        dr = margin(*pair)
        return (((dr + bias) / temperature).sigmoid() + ((dr - bias) / temperature).sigmoid()) / 2

    return Preference(wins)


def non_transitive(task: Testbed, gamma: float, seed: int, features: int = 2) -> Preference:
    """sigma(dr + gamma phi(y)^T A phi(y')) with A skew-symmetric of Frobenius norm 1; gamma = 0 is Bradley-Terry.

    The `features` of phi are ngram rewards drawn from `seed`, of variance 1 per prompt under the reference, and A
    is the skew part of a normal matrix. Only with gamma large enough against dr are there cycles.
    """
    _require(features >= 2, "non_transitive", "features >= 2", features)
    generator = torch.Generator().manual_seed(seed)
    phi = torch.stack([standardised(task, ngram(task, generator)).flatten(1) for _ in range(features)], -1)
    skew = torch.randn(features, features, generator=generator, dtype=torch.float64)
    skew = skew - skew.T
    turned = phi @ (skew / skew.norm())  # phi(y)^T A
    margin = _difference(task.rewards)

    def wins(prompt: Tensor, y: Tensor, other: Tensor) -> Tensor:
        cycle = (turned[prompt, y] * phi[prompt, other]).sum(-1)
        return (margin(prompt, y, other) + gamma * cycle).sigmoid()

    return Preference(wins)


def ties(task: Testbed, band: float, rule: Literal["drop", "half"], temperature: float = 1.0) -> Preference:
    """y wins with probability sigma((dr - band) / t), y' with sigma((-dr - band) / t), else the pair is a tie (Rao and
    Kupper 1967, theta = exp(band / t)). With t near 0 the ties are the pairs of |dr| < band.

    `rule` says what becomes of a tie: 'half' gives it to either with probability 1/2, 'drop' leaves the pair out.
    """
    _require(band >= 0 and temperature > 0, "ties", "band >= 0 and temperature > 0", (band, temperature))
    margin = _difference(task.rewards)

    def log_clear(*pair: Tensor) -> tuple[Tensor, Tensor]:
        dr = margin(*pair)
        return logsigmoid((dr - band) / temperature), logsigmoid((-dr - band) / temperature)

    def half(*pair: Tensor) -> Tensor:
        won, lost = log_clear(*pair)
        return (1 + won.exp() - lost.exp()) / 2

    def among_decided(*pair: Tensor) -> Tensor:
        won, lost = log_clear(*pair)
        return (won - lost).sigmoid()  # in logs: both may be too small for a quotient

    def decided(*pair: Tensor) -> Tensor:
        won, lost = log_clear(*pair)
        return won.exp() + lost.exp()

    return Preference(half) if rule == "half" else Preference(among_decided, decided)


def judge(task: Testbed, labels: int, seed: int, l2: float = 1e-3, temperature: float = 1.0) -> Preference:
    """sigma(ds / t) with the scores s of a reward model that learned from `labels` Bradley-Terry labels of the gold
    reward: labels by an AI instead of by people (in the manner of RLAIF, Lee et al. 2023, 2309.00267).

    The model is linear in token and neighbour counts (`judge_scores`), so it can become right for the ngram reward
    and stays wrong for the automata's. Its pairs come from the task's own reference, drawn with `seed`.
    """
    _require(temperature > 0, "judge", "temperature > 0", temperature)
    scores = judge_scores(task, bradley_terry(task), labels, torch.Generator().manual_seed(seed), l2)
    return Preference(_logistic(scores, temperature))


def table(task: Testbed, wins: Sequence[Sequence[float]]) -> Preference:
    """P(y beats y') written by hand: a square of probabilities with wins[i][j] + wins[j][i] = 1, the same for every
    prompt, answers in the order of `task.ends.flatten()`. For small spaces."""
    size = len(answer_places(task))
    _require(len(wins) == size and {len(row) for row in wins} == {size}, "table", f"wins of {size} by {size}", wins)
    square = torch.tensor([list(row) for row in wins], dtype=torch.float64)
    try:
        return tabulated(task, square.expand(task.tree.prompts, -1, -1))
    except ValueError as error:
        raise ConfigError(f"data.preference 'table': {error}.") from error


PREFERENCES: dict[str, Callable[..., Preference]] = {
    "bradley_terry": bradley_terry,
    "deterministic": deterministic,
    "thurstone": thurstone,
    "flips": flips,
    "instance_flips": instance_flips,
    "mixture": mixture,
    "length_biased": length_biased,
    "position_biased": position_biased,
    "non_transitive": non_transitive,
    "ties": ties,
    "judge": judge,
    "table": table,
}


def _difference(rewards: Tensor) -> OfPairs:
    """Reward of the first answer less that of the second, looked up in [prompts, inner, vocab]."""
    flat = rewards.flatten(1)
    return lambda prompt, y, other: flat[prompt, y] - flat[prompt, other]


def _logistic(rewards: Tensor, temperature: float) -> OfPairs:
    margin = _difference(rewards)
    return lambda *pair: (margin(*pair) / temperature).sigmoid()


def _require(holds: bool, name: str, needs: str, got: Any) -> None:
    if not holds:
        raise ConfigError(f"data.preference '{name}' needs {needs}; got {got}.")
