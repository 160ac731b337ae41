"""Which source of error adds how much to a run's regret: a ladder of policies from pi* to the run, every one exact.

The rungs, each with the source of error that it lets in:

    pi* of the gold reward       regret 0
    pi* of the learned reward    "reward model"    only for methods that score answers with one
    argmin of the expected loss  "objective"       over all policies; the optimum that the method itself aims at
    argmin on the run's data     "statistics"      over all policies
    argmin of the transformer    "function class"  the same loss on the same data, full batch in fp64
    the run                      "optimisation"    minibatches, finite steps, sampling noise, biased gradients

A regret is always that of the gold reward at the run's beta. What a source adds is the difference of two
neighbouring regrets: negative where it undoes an error made before. A ladder is a mapping from sources to policies;
a source that it does not name adds nothing. Policies are conditionals [prompts, inner, vocab].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from rlpref.losses.inputs import PairLogps
from rlpref.testbed.duels import chosen_policy
from rlpref.testbed.exact import answer_logps, expectation, lengths, regret, sequence_kl
from rlpref.testbed.optima import conditionals_of, optimum
from rlpref.testbed.population import PairLoss, minimise, population_argmin
from rlpref.testbed.preferences import Preference
from rlpref.testbed.task import Testbed, answer_places, answer_tokens, conditionals, places
from rlpref.types import Sequences

SOURCES = ("reward model", "objective", "statistics", "function class", "optimisation")
TABLE_STEPS = 2000  # L-BFGS iterations at most
MODEL_STEPS = 1000
EXCESS = 1e-7  # in units of the loss: this close to the smallest value of any policy the model is at its minimum


@dataclass
class Ladder:
    """The policy after each source of error, and how well the minimisations behind them ended."""

    rungs: dict[str, Tensor]
    fits: dict[str, float]  # gradients are Euclidean norms, excesses in units of the loss, the others count answers


@dataclass
class Learner:
    """The run's model as it is at the reference; None: the model is a table, so its class excludes nothing."""

    model: nn.Module | None
    temperature: float = 1.0
    max_iter: int = MODEL_STEPS


@dataclass
class CountedPairs:
    """The distinct (prompt, chosen, rejected) of a data set; answers by their places in a flattened [inner, vocab]."""

    prompt: Tensor  # [n]
    chosen: Tensor  # [n]
    rejected: Tensor  # [n]
    count: Tensor  # [n] fp64, how often each occurs


def widths(task: Testbed, ref: Tensor, beta: float, rungs: Mapping[str, Tensor]) -> dict[str, float]:
    """What each of SOURCES adds to the regret at `beta`, in units of reward; they sum to the regret of the last rung.
    Raises ValueError for a source that is none of SOURCES."""
    if unknown := rungs.keys() - set(SOURCES):
        raise ValueError(f"unknown sources of error: {sorted(unknown)}; known: {', '.join(SOURCES)}")
    before, added = 0.0, {}
    for source in SOURCES:
        after = regret(task, rungs[source], ref, task.rewards, beta) if source in rungs else before
        added[source], before = after - before, after
    return added


def reward_ladder(task: Testbed, ref: Tensor, rewards: Tensor, beta: float, learner: Learner) -> Ladder:
    """Of methods that climb J = E[r] - beta KL on samples of their own (PPO, REINFORCE), r being `rewards`.

    pi* of r is the optimum of their objective, so "objective" adds nothing; they have no data but the pairs that r was
    learned from, which "reward model" answers for, so neither does "statistics". Where r is the gold reward
    "reward model" is 0 as well. "function class" is the model at the end of exact gradient ascent on J.
    """
    best = optimum(task, ref, rewards, beta)

    def shortfall(policy: Tensor) -> Tensor:
        return (best.v[:, 0] - expectation(task, policy, rewards) + beta * sequence_kl(task, policy, ref)).mean()

    return _with_learner(task, {"reward model": best.policy}, {}, shortfall, learner)


def pair_ladder(
    task: Testbed,
    ref: Tensor,
    mu: Tensor,
    preference: Preference,
    loss: PairLoss,
    pairs: CountedPairs,
    learner: Learner,
) -> Ladder:
    """Of a pair loss on fixed pairs drawn i.i.d. from `mu` (conditionals) and labelled by `preference`."""
    aim = population_argmin(task, loss, ref, mu, preference, task.rewards, max_iter=TABLE_STEPS)
    return _with_pairs(task, ref, {"objective": aim.policy}, {"objective_gradient": aim.gradient}, loss, pairs, learner)


def iterative_ladder(
    task: Testbed,
    ref: Tensor,
    rewards: Tensor,
    beta: float,
    loss: PairLoss,
    pairs: CountedPairs | None,
    learner: Learner,
) -> Ladder:
    """Of iterative DPO with the initial reference on Bradley-Terry labels of `rewards`.

    Whatever the distribution of its pairs, as long as it has full support, its expected loss is smallest at pi* of
    `rewards`: "objective" adds nothing. `pairs` are all that the run collected; None: the run kept those of its last
    round only. Then statistics cannot be told from optimisation and add 0 here, and "function class" is that of the
    exact objective, as in `reward_ladder`.
    """
    if pairs is None:
        return reward_ladder(task, ref, rewards, beta, learner)
    return _with_pairs(task, ref, {"reward model": optimum(task, ref, rewards, beta).policy}, {}, loss, pairs, learner)


def chosen_ladder(
    task: Testbed, ref: Tensor, mu: Tensor, preference: Preference, pairs: CountedPairs, learner: Learner
) -> Ladder:
    """Of SFT on the chosen answers of pairs drawn i.i.d. from `mu`. In closed form the expected loss is smallest at 2
    mu(y) p(y beats mu), and the loss on the data at the frequencies of the chosen answers. Raises ValueError where a
    prompt has no pair."""
    counts = torch.zeros_like(task.rewards).flatten(1)
    counts.index_put_((pairs.prompt, pairs.chosen), pairs.count, accumulate=True)
    counts = counts.view_as(ref)

    def cross_entropy(policy: Tensor) -> Tensor:
        return -(counts * torch.where(counts > 0, answer_logps(task, policy), 0.0)).sum() / counts.sum()

    frequencies = conditionals_of(task, counts.log(), elsewhere=ref)
    rungs = {"objective": chosen_policy(task, mu, preference), "statistics": frequencies}
    fits = {"never_compared": unseen(task, pairs)}
    return _with_learner(task, rungs, fits, cross_entropy, learner, float(cross_entropy(frequencies)))


def _with_pairs(
    task: Testbed,
    ref: Tensor,
    rungs: dict[str, Tensor],
    fits: dict[str, float],
    loss: PairLoss,
    pairs: CountedPairs,
    learner: Learner,
) -> Ladder:
    """The rungs "statistics" and "function class" of a loss on pairs.

    The table starts at the reference: what the loss leaves open stays as it is there, up to normalisation. Where the
    minimum lies at infinity (an answer that never loses) L-BFGS ends as elsewhere, see `population.minimise`: the loss
    is then within rounding of its infimum, the answers concerned have next to no mass or all of it, and the regret,
    which is finite at infinity, is as good as there.
    """

    def objective(policy: Tensor) -> Tensor:
        return empirical_loss(task, loss, policy, ref, pairs)

    logits = ref.detach().clone().requires_grad_()
    smallest, gradient = minimise(lambda: objective(logits.log_softmax(-1)), [logits], TABLE_STEPS)
    rungs = rungs | {"statistics": logits.detach().log_softmax(-1)}
    fits = fits | {"statistics_gradient": gradient}
    fits |= {"never_compared": unseen(task, pairs), "separated": separated(task, pairs)}
    return _with_learner(task, rungs, fits, objective, learner, smallest)


def _with_learner(
    task: Testbed,
    rungs: dict[str, Tensor],
    fits: dict[str, float],
    objective: Callable[[Tensor], Tensor],
    learner: Learner,
    smallest: float = 0.0,
) -> Ladder:
    """The rung "function class": the model after L-BFGS on `objective` from the reference in fp64, all parameters
    free. No policy can have an objective below `smallest`: the fit ends within EXCESS of that or after `max_iter`
    iterations, and the excess it reports says how much the class, or a poor local minimum, costs."""
    if learner.model is None:
        return Ladder(rungs, fits)
    model = copy.deepcopy(learner.model).cpu().double().requires_grad_()

    def value() -> Tensor:
        return objective(conditionals(task, model, learner.temperature))

    found, gradient = minimise(value, list(model.parameters()), learner.max_iter, smallest + EXCESS, history=50)
    with torch.no_grad():
        policy = conditionals(task, model, learner.temperature)
    fits = fits | {"model_gradient": gradient, "model_excess": found - smallest}
    return Ladder(rungs | {"function class": policy}, fits)


def empirical_loss(task: Testbed, loss: PairLoss, policy: Tensor, ref: Tensor, pairs: CountedPairs) -> Tensor:
    """Mean loss over a data set's pairs, a scalar in the loss's own units, differentiable in `policy`. A loss that
    reads scores gets the gold ones."""
    tables = [answer_logps(task, table).flatten(1) for table in (policy, ref)]
    tables += [lengths(task).flatten().expand(task.tree.prompts, -1), task.rewards.flatten(1)]
    sides = [table[pairs.prompt, side] for table in tables for side in (pairs.chosen, pairs.rejected)]
    return (pairs.count * loss(PairLogps(*sides))).sum() / pairs.count.sum()


def counted_pairs(task: Testbed, chosen: Sequences, rejected: Sequences) -> CountedPairs:
    """Pairs of sequences [B] as counts. Raises ValueError for a sequence that is no finished answer."""
    prompt, better = places(task.tree, chosen)
    rows = torch.stack([prompt, better, places(task.tree, rejected)[1]], 1).cpu()
    distinct, count = rows.unique(dim=0, return_counts=True)
    return CountedPairs(*distinct.unbind(1), count.double())


def unseen(task: Testbed, pairs: CountedPairs) -> int:
    """How many answers of all prompts stand in no pair: the data say nothing about them."""
    seen = torch.zeros(task.tree.prompts, task.ends.numel(), dtype=torch.bool)
    for side in (pairs.chosen, pairs.rejected):
        seen[pairs.prompt, side] = True
    return int(task.ends.sum()) * task.tree.prompts - int(seen.sum())


def separated(task: Testbed, pairs: CountedPairs) -> int:
    """How many compared answers of all prompts the logistic loss sends to infinity: those outside the largest set in
    which a chain of wins leads from every answer to every other. Ford 1957, "Solution of a ranking problem from
    binary comparisons"."""
    size = task.ends.numel()
    outside = 0
    for x in range(task.tree.prompts):
        chosen, rejected = (side[pairs.prompt == x].numpy() for side in (pairs.chosen, pairs.rejected))
        compared = np.unique(np.concatenate([chosen, rejected]))
        wins = coo_array((np.ones(len(chosen)), (chosen, rejected)), shape=(size, size))
        _, component = connected_components(wins, connection="strong")
        if len(compared):
            outside += len(compared) - int(np.bincount(component[compared]).max())
    return outside


def scored_answers(task: Testbed, score: Callable[[Sequences], Tensor]) -> Tensor:
    """[prompts, inner, vocab] fp64 scores of all finished answers, 0 where no answer ends."""
    tree, ends = task.tree, answer_places(task)
    tokens = answer_tokens(task).flatten(0, 1)[ends].repeat(tree.prompts, 1)
    prompt = torch.arange(tree.prompts).repeat_interleave(len(ends))
    ids = torch.cat([prompt[:, None] + tree.vocab, tokens], 1)
    real = ids >= 0
    answer = real.clone()
    answer[:, 0] = False
    table = torch.zeros(tree.prompts, task.ends.numel(), dtype=torch.float64)
    scores = score(Sequences(ids.clamp(min=0), real, answer))
    table[:, ends] = scores.detach().cpu().double().view(tree.prompts, -1)
    return table.view_as(task.rewards)
