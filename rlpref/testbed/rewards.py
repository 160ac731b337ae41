"""Gold rewards of the testbed, costs beside them, and proxies of them.

A family is `family(task, generator, **options) -> [prompts, inner, vocab]`, the worth of each finished answer in
its own units; `gold_rewards` puts it on the common scale. An answer is read as the string of its tokens without
EOS. To add a family, write the function and name it in REWARDS: its parameters after the generator are its
options. Costs are made and named in the same way, in COSTS; they keep their own units. None of the families but
`abstain` is from a paper: where a formula is one, its docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlpref.binding import ConfigError, bind, choose
from rlpref.testbed.exact import expectation, log_reach
from rlpref.testbed.task import Testbed, TestbedScorer, answer_lengths, answer_tokens


def reward_family(name: str, options: Mapping[str, Any] | None) -> Callable[[Testbed, torch.Generator], Tensor]:
    """The family of that name with its options. Raises ConfigError for an unknown name and for an option that
    the family does not use, lacks, or cannot take."""
    return bind(choose(REWARDS, name, "testbed.reward"), options or {}, f"testbed.reward '{name}'", 2)


def gold_rewards(task: Testbed, family: Callable, generator: torch.Generator) -> Tensor:
    """[prompts, inner, vocab] rewards with mean 0 and variance 1 per prompt under the task's reference, 0 where
    no answer ends. Families in PAYOFFS keep their own units."""
    worth = family(task, generator)
    return worth * task.ends if family.func in PAYOFFS else standardised(task, worth)


def standardised(task: Testbed, worth: Tensor) -> Tensor:
    """`worth` shifted and scaled to mean 0 and variance 1 per prompt under the reference; 0 where no answer ends.

    Raises ConfigError where all answers to a prompt are worth the same."""
    worth = worth * task.ends
    worth = (worth - expectation(task, task.ref, worth)[:, None, None]) * task.ends
    variance = expectation(task, task.ref, worth**2)
    if (variance < 1e-12).any():
        raise ConfigError("the gold reward is the same for every answer; use another testbed.seed or more tokens.")
    return worth / variance.sqrt()[:, None, None]


def ngram(task: Testbed, generator: torch.Generator) -> Tensor:
    """Weights of tokens (per prompt) and of a third of the token pairs (shared); a linear reward."""
    tree = task.tree
    unigram = torch.randn(tree.prompts, tree.vocab, generator=generator, dtype=torch.float64)
    bigram = torch.randn(tree.vocab, tree.vocab, generator=generator, dtype=torch.float64)
    bigram *= torch.rand(tree.vocab, tree.vocab, generator=generator) < 0.35
    unigram[:, 0], bigram[0], bigram[:, 0] = 0, 0, 0  # EOS ends an answer and is not part of it
    return ngram_worth(task, unigram, bigram)


def order(task: Testbed, generator: torch.Generator) -> Tensor:
    """+2 where token 1 occurs and token 2 after it, on top of small prompt-specific token weights: an
    automaton's reward, which no linear model of tokens expresses. Needs vocab >= 3 and horizon >= 2."""
    _need(task, "order", vocab=3, horizon=2)
    tokens = answer_tokens(task)
    after_one = (tokens == 1).cumsum(-1) > 0
    return 2.0 * (after_one & (tokens == 2)).any(-1) + _small_weights(task, generator)


def forbidden(task: Testbed, generator: torch.Generator, factor: Sequence[int] = (1, 2)) -> Tensor:
    """-2 where the tokens `factor` occur next to each other in that order, on top of small token weights."""
    return -2.0 * contains(task, factor, "testbed.options.factor") + _small_weights(task, generator)


def parity(task: Testbed, generator: torch.Generator) -> Tensor:
    """+2 where token 1 occurs an even number of times, on top of small token weights."""
    even = (answer_tokens(task) == 1).sum(-1) % 2 == 0
    return 2.0 * even + _small_weights(task, generator)


def brackets(task: Testbed, generator: torch.Generator) -> Tensor:
    """+2 where token 1 as opening and token 2 as closing bracket balance (other tokens stand between them as they
    like; an answer without brackets balances), on top of small token weights. Needs vocab >= 3, horizon >= 2."""
    _need(task, "brackets", vocab=3, horizon=2)
    tokens = answer_tokens(task)
    open_now = ((tokens == 1).long() - (tokens == 2).long()).cumsum(-1)
    balanced = (open_now >= 0).all(-1) & (open_now[..., -1] == 0)
    return 2.0 * balanced + _small_weights(task, generator)


def length(task: Testbed, generator: torch.Generator, slope: float) -> Tensor:
    """The ngram reward, standardised, plus `slope` of its standard deviations for each token (EOS not counted)."""
    return standardised(task, ngram(task, generator)) + slope * answer_lengths(task)


def needle(task: Testbed, generator: torch.Generator, k: float) -> Tensor:
    """1 for the answers that begin with one prefix, 0 for all others: what a method must find before it can learn.

    Per prompt the prefix (EOS may be its last token) is the one whose mass under the reference is nearest to
    e^-k in nats. Standardising it to variance 1 makes the needle worth about e^(k/2) more than the rest.
    Raises ConfigError where no prefix has a mass within a factor of two of e^-k.
    """
    mass = log_reach(task, task.ref)[:, :, None] + task.ref  # each prefix but the empty one, by its last token
    distance, at = (mass.flatten(1) + k).abs().min(1)
    if (distance > math.log(2)).any():
        least, most = -mass.flatten(1).amax(1).min(), -mass.min()
        raise ConfigError(
            f"testbed.reward 'needle' finds no prefix of mass e^-{k} in every prompt: here k can lie about between "
            f"{least:.1f} and {most:.1f}. Use another testbed.options.k, or more tokens."
        )
    tokens = answer_tokens(task)
    found = []
    for place in at.tolist():
        node, last = divmod(place, task.tree.vocab)
        size = int(task.depth[node]) + 1
        found.append((tokens[..., :size] == tokens[node, last, :size]).all(-1))
    return torch.stack(found).double()


def abstain(task: Testbed, generator: torch.Generator, cost: float, correct: Sequence[float]) -> Tensor:
    """The last token of the vocabulary is ABSTAIN: an answer that contains it is worth 0, any other what an answer
    that is right with probability p gains on average: +1 if right, -`cost` if wrong, p - cost (1 - p).

    `correct` holds p for each prompt. The best answer abstains where p < cost / (1 + cost): Chow's rule (Chow 1970,
    On optimum recognition error and reject tradeoff). Not standardised: 0 must stay the worth of abstaining, and
    prompts where nothing is at stake must weigh nothing.
    """
    if len(correct) != task.tree.prompts or not all(0 <= p <= 1 for p in correct) or cost < 0:
        raise ConfigError(
            f"testbed.reward 'abstain' needs a cost >= 0 and one probability for each of the {task.tree.prompts} "
            f"prompts; got cost {cost} and correct {list(correct)}."
        )
    p = torch.tensor(correct, dtype=torch.float64)[:, None, None]
    return (p - cost * (1 - p)) * ~contains(task, [task.tree.vocab - 1], "ABSTAIN")


REWARDS = {
    "ngram": ngram,
    "order": order,
    "forbidden": forbidden,
    "parity": parity,
    "brackets": brackets,
    "length": length,
    "needle": needle,
    "abstain": abstain,
}
PAYOFFS = {abstain}  # families in units of their own


def cost_family(
    name: str | None, options: Mapping[str, Any] | None
) -> Callable[[Testbed, torch.Generator], Tensor] | None:
    """The cost of that name with its options, as `reward_family`; None without a name, which takes no options."""
    if name is None:
        if options:
            raise ConfigError(f"without testbed.cost nothing uses testbed.cost_options: {dict(options)}.")
        return None
    return bind(choose(COSTS, name, "testbed.cost"), options or {}, f"testbed.cost '{name}'", 2)


def toxicity(task: Testbed, generator: torch.Generator, token: int) -> Tensor:
    """[prompts, inner, vocab] a graded cost: how often `token` occurs in each finished answer."""
    contains(task, [token], "testbed.cost_options.token")  # refuses a token that is none
    return ((answer_tokens(task) == token).sum(-1) * task.ends).double().expand_as(task.ref)


def unsafe(task: Testbed, generator: torch.Generator, factor: Sequence[int]) -> Tensor:
    """[prompts, inner, vocab] a cost of 1 for each finished answer in which the tokens `factor` follow each other.
    Its mean under a policy is the probability of an unsafe answer."""
    return (contains(task, factor, "testbed.cost_options.factor") & task.ends).double().expand_as(task.ref)


def conflict(task: Testbed, generator: torch.Generator, correlation: float) -> Tensor:
    """[prompts, inner, vocab] a random linear cost of mean 0 and variance 1 per prompt under the reference, whose
    correlation with the gold reward there is exactly `correlation`: rho r + sqrt(1 - rho^2) residual.

    Raises ConfigError for a correlation outside [-1, 1]."""
    if not -1 <= correlation <= 1:
        raise ConfigError(f"a correlation lies between -1 and 1; got {correlation}.")
    gold, other = standardised(task, task.rewards), standardised(task, ngram(task, generator))
    shared = expectation(task, task.ref, gold * other)[:, None, None]
    residual = standardised(task, other - shared * gold)
    return correlation * gold + math.sqrt(1 - correlation**2) * residual


COSTS = {"toxicity": toxicity, "unsafe": unsafe, "conflict": conflict}


def heavy_tailed(task: Testbed, nu: float, scale: float, generator: torch.Generator) -> Tensor:
    """[prompts, inner, vocab] a proxy: the gold reward plus `scale` times Student-t noise of `nu` degrees of
    freedom, drawn anew for each finished answer; 0 where no answer ends. Not standardised: for nu <= 2 the noise
    has no variance, which is the point.

    The noise is Bailey's polar form sqrt(nu (U^(-2/nu) - 1)) cos(2 pi V), exact for any nu > 0 (Bailey 1994, Polar
    generation of random variates with the t-distribution). Raises ConfigError for nu <= 0.
    """
    if not nu > 0:
        raise ConfigError(f"Student's t needs nu > 0; got {nu}.")
    uniform = torch.rand(2, *task.ref.shape, generator=generator, dtype=torch.float64)
    radius = (nu * ((1 - uniform[0]) ** (-2 / nu) - 1)).sqrt()  # 1 - U is never 0
    return (task.rewards + scale * radius * (2 * math.pi * uniform[1]).cos()) * task.ends


def proxy_scorer(task: Testbed, nu: float, scale: float, seed: int) -> TestbedScorer:
    """Scores answers by `heavy_tailed`, whose noise is that of `seed`."""
    noisy = heavy_tailed(task, nu, scale, torch.Generator().manual_seed(seed))
    return TestbedScorer(replace(task, rewards=noisy), name="proxy")


def ngram_worth(task: Testbed, unigram: Tensor, bigram: Tensor) -> Tensor:
    """[prompts, inner, vocab] sum of token weights `unigram` [prompts, vocab] and of weights of neighbouring tokens
    `bigram` [vocab, vocab] over each answer. Rows and columns of EOS are added as they are: set them to 0."""
    levels = []
    for depth in range(task.tree.horizon):
        tokens = task.prefixes[task.depth == depth, :depth]
        before = unigram[:, tokens].sum(-1) + bigram[tokens[:, :-1], tokens[:, 1:]].sum(-1)
        levels.append(before[:, :, None] + unigram[:, None] + (bigram[tokens[:, -1]] if depth else 0.0))
    return torch.cat(levels, 1)


def contains(task: Testbed, factor: Sequence[int], where: str) -> Tensor:
    """[inner, vocab] bool: whether the tokens `factor` follow each other somewhere in the answer.

    Raises ConfigError, naming `where`, for a factor that no answer can contain."""
    vocab, horizon = task.tree.vocab, task.tree.horizon
    if not 1 <= len(factor) <= horizon or not all(1 <= token < vocab for token in factor):
        raise ConfigError(
            f"{where} is {list(factor)}; it takes 1 to {horizon} tokens, each between 1 and {vocab - 1} (0 is EOS)."
        )
    windows = answer_tokens(task).unfold(-1, len(factor), 1)
    return (windows == torch.tensor(list(factor))).all(-1).any(-1)


def _small_weights(task: Testbed, generator: torch.Generator) -> Tensor:
    """[prompts, inner, vocab] a small prompt-specific weight of each token, summed over the answer."""
    tree = task.tree
    unigram = 0.3 * torch.randn(tree.prompts, tree.vocab, generator=generator, dtype=torch.float64)
    unigram[:, 0] = 0
    tokens = answer_tokens(task)
    levels = [unigram[:, tokens[task.depth == depth, :, : depth + 1]].sum(-1) for depth in range(tree.horizon)]
    return torch.cat(levels, 1)


def _need(task: Testbed, name: str, vocab: int, horizon: int) -> None:
    if task.tree.vocab < vocab or task.tree.horizon < horizon:
        raise ConfigError(f"testbed.reward '{name}' needs testbed.vocab >= {vocab} and testbed.horizon >= {horizon}.")
