"""rlpref.testbed.selection against enumeration of tuples, Monte Carlo and identities."""

import itertools
import math

import pytest
import torch

from rlpref.testbed import exact, optima, selection
from rlpref.testbed.task import make_testbed


@pytest.fixture
def small():
    """7 answers per prompt."""
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=1, reward="ngram")


def by_tuples(mass, scores, n, keep):
    """The law of `keep(the scores of n draws, sorted)`, ties shared among the tied draws: all tuples, one by one."""
    law = [0.0] * len(mass)
    for draws in itertools.product(range(len(mass)), repeat=n):
        kept = keep(sorted(scores[i] for i in draws))
        tied = [i for i in draws if scores[i] == kept]
        for i in tied:
            law[i] += math.prod(mass[j] for j in draws) / len(tied)
    return law


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_and_order_statistics_are_those_of_all_tuples(small, finished, random_policy, ties, n):
    ref = random_policy(small, 0)
    scores = small.rewards.round() if ties else small.rewards
    mass = finished(small, exact.answer_logps(small, ref)).exp().tolist()
    levels = finished(small, scores).round(decimals=9).tolist()
    if ties:
        assert len(set(levels[0])) < 7
    policies = [(n, selection.best_of_n(small, ref, scores, n))]
    policies += [(k, selection.order_statistic(small, ref, scores, k, n)) for k in range(1, n + 1)]
    for k, policy in policies:
        found = finished(small, exact.answer_logps(small, policy)).exp()
        for x in range(2):
            expected = by_tuples(mass[x], levels[x], n, lambda ranked, k=k: ranked[k - 1])
            assert found[x].tolist() == pytest.approx(expected, abs=1e-12)


def test_scores_that_differ_by_rounding_alone_are_ties(task):
    scores = task.rewards.round()
    generator = torch.Generator().manual_seed(0)
    shaken = scores + 1e-15 * torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        selection.best_of_n(task, task.ref, shaken, 5), selection.best_of_n(task, task.ref, scores, 5)
    )


def test_best_of_n_agrees_with_draws(task, finished):
    """200,000 times the best of 6 draws: each answer's frequency within 4 standard errors."""
    n, trials = 6, 200_000
    mass = finished(task, exact.answer_logps(task, task.ref)).exp()[0]
    scores = finished(task, task.rewards)[0].round(decimals=9)
    assert len(scores.unique()) < len(scores)  # among draws that tie, argmax takes one as the reference would
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(mass, n * trials, replacement=True, generator=generator).view(trials, n)
    best = draws.gather(1, scores[draws].argmax(1, keepdim=True))[:, 0]
    frequency = torch.bincount(best, minlength=len(mass)) / trials
    p = finished(task, exact.answer_logps(task, selection.best_of_n(task, task.ref, task.rewards, n))).exp()[0]
    error = (p * (1 - p) / trials).sqrt()
    assert ((frequency - p).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("rounding", [False, True])
def test_best_of_n_after_best_of_m_is_best_of_nm(task, rounding):
    scores = task.rewards.round() if rounding else task.rewards
    twice = selection.best_of_n(task, selection.best_of_n(task, task.ref, scores, 3), scores, 4)
    once = selection.best_of_n(task, task.ref, scores, 12)
    torch.testing.assert_close(twice, once, atol=1e-10, rtol=0)
    halved = selection.best_of_n(task, selection.best_of_n(task, task.ref, scores, 2.5), scores, 4.8)
    torch.testing.assert_close(halved, once, atol=1e-10, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 5, 40, 10**6])
def test_the_kl_of_best_of_n_is_exact_and_below_its_bound(task, n):
    kl = selection.best_of_n_kl(task, task.ref, task.rewards, n)
    policy = selection.best_of_n(task, task.ref, task.rewards, n)
    torch.testing.assert_close(kl, exact.sequence_kl(task, policy, task.ref), atol=1e-10, rtol=1e-10)
    assert (kl <= selection.best_of_n_kl_bound(n) + 1e-12).all()
    best = exact.answer_logps(task, task.ref).flatten(1).gather(1, task.rewards.flatten(1).argmax(1)[:, None])
    assert (kl <= -best[:, 0] + 1e-12).all()


@pytest.mark.parametrize("rounding", [False, True])
def test_the_path_of_best_of_n_is_what_each_policy_is_worth(task, rounding):
    scores, ns = task.rewards.round() if rounding else task.rewards, [1, 2.5, 40, 60_000]
    worth = torch.randn(task.rewards.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kl, means = selection.best_of_n_path(task, task.ref, scores, ns, [worth, task.rewards])
    for i, n in enumerate(ns):
        policy = selection.best_of_n(task, task.ref, scores, n)
        expected = [exact.expectation(task, policy, values).mean() for values in (worth, task.rewards)]
        torch.testing.assert_close(means[i], torch.stack(expected), atol=1e-10, rtol=0)
        torch.testing.assert_close(kl[i], selection.best_of_n_kl(task, task.ref, scores, n).mean(), atol=1e-10, rtol=0)


def test_the_bound_is_nearly_met_by_many_small_answers(finished):
    task = make_testbed(vocab=8, horizon=4, prompts=1, seed=0, reward="ngram")
    kl = selection.best_of_n_kl(task, task.ref, task.rewards, 2).item()
    assert selection.best_of_n_kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert 0 < selection.best_of_n_kl_bound(2) - kl < 0.01
    assert finished(task, exact.answer_logps(task, task.ref)).exp().max() < 0.2


def test_the_highest_order_statistic_is_best_of_n_and_all_of_them_mix_to_the_reference(task, finished):
    n = 5
    ranks = [selection.order_statistic(task, task.ref, task.rewards, k, n) for k in range(1, n + 1)]
    torch.testing.assert_close(ranks[-1], selection.best_of_n(task, task.ref, task.rewards, n), atol=1e-10, rtol=0)
    torch.testing.assert_close(selection.mixture(task, ranks), task.ref, atol=1e-10, rtol=0)
    rewards = torch.stack([exact.expectation(task, policy, task.rewards) for policy in ranks])
    assert (rewards.diff(dim=0) > 0).all()


def test_rounds_of_rejection_sampling_raise_n_to_their_number(task):
    step = task.ref
    for _ in range(3):
        step = selection.best_of_n(task, step, task.rewards, 2)
    rounds = selection.rejection_rounds(task, task.ref, task.rewards, 2, 3, keep_all=False)
    torch.testing.assert_close(rounds, step, atol=1e-10, rtol=0)


def test_with_all_rounds_kept_the_policy_is_their_mixture(task, finished):
    def masses(policy):
        return finished(task, exact.answer_logps(task, policy)).exp()

    found = [selection.rejection_rounds(task, task.ref, task.rewards, 2, k, keep_all=True) for k in (1, 2, 3)]
    two, four = (selection.best_of_n(task, task.ref, task.rewards, n) for n in (2, 4))
    torch.testing.assert_close(masses(found[0]), masses(two))
    torch.testing.assert_close(masses(found[1]), (masses(two) + masses(four)) / 2)
    third = selection.best_of_n(task, found[1], task.rewards, 2)
    torch.testing.assert_close(masses(found[2]), (masses(two) + masses(four) + masses(third)) / 3)


def test_a_truncation_keeps_proportions_above_the_threshold_and_rounds_end_at_the_last_one(task, finished):
    cut = selection.truncated(task, task.ref, task.rewards, 0.5)
    mass, scores = (finished(task, table) for table in (exact.answer_logps(task, task.ref).exp(), task.rewards))
    kept = mass * (scores >= 0.5)
    assert torch.allclose(finished(task, exact.answer_logps(task, cut)).exp(), kept / kept.sum(1, keepdim=True))
    twice = selection.truncated(task, selection.truncated(task, task.ref, task.rewards, 0.1), task.rewards, 0.5)
    assert torch.allclose(exact.answer_logps(task, twice).exp(), exact.answer_logps(task, cut).exp(), atol=1e-12)
    with pytest.raises(ValueError, match="without any mass"):
        selection.truncated(task, task.ref, task.rewards, 100.0)


def test_answers_without_mass_are_never_kept(task, finished):
    whole = exact.answer_logps(task, task.ref)
    best = task.rewards.flatten(1).argmax(1)
    whole.view(2, -1)[torch.arange(2), best] = float("-inf")
    policy = optima.conditionals_of(task, whole)
    for kept in (
        selection.best_of_n(task, policy, task.rewards, 3),
        selection.order_statistic(task, policy, task.rewards, 3, 3),
    ):
        mass = exact.answer_logps(task, kept).exp().flatten(1)
        assert (mass[torch.arange(2), best] == 0).all()
        torch.testing.assert_close(mass.sum(1), torch.ones(2).double())
    kl = selection.best_of_n_kl(task, policy, task.rewards, 3)
    assert (kl > 0.1).all()
    assert (kl < selection.best_of_n_kl_bound(3)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda task: selection.best_of_n(task, task.ref, task.rewards, 0),
        lambda task: selection.best_of_n_kl_bound(0.5),
        lambda task: selection.best_of_n_path(task, task.ref, task.rewards, [4, 0], [task.rewards]),
        lambda task: selection.order_statistic(task, task.ref, task.rewards, 0, 3),
        lambda task: selection.order_statistic(task, task.ref, task.rewards, 4, 3),
        lambda task: selection.rejection_rounds(task, task.ref, task.rewards, 2, 0, keep_all=True),
    ],
)
def test_senseless_numbers_are_refused(task, call):
    with pytest.raises(ValueError, match="needs"):
        call(task)
