"""rlpref.testbed.listwise: expected losses of K answers against pairs and enumeration, and the registry's claims."""

import itertools

import pytest
import torch

from rlpref.losses import LOSSES, make_loss
from rlpref.losses.inputs import ListLogps
from rlpref.testbed import exact, optima, population, preferences, stationary
from rlpref.testbed.listwise import expected_list_loss
from rlpref.testbed.task import answer_places, make_testbed

BETA = 0.4
LISTS = [entry for entry in LOSSES.values() if entry.takes is ListLogps]


@pytest.fixture(scope="module")
def task():
    """Two prompts of 7 answers."""
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=5, reward="ngram")


def bound(name):
    entry = LOSSES[name]
    return make_loss(name, **({entry.regularisation: BETA} if entry.regularisation else {}))


def expected(task, name, k, mu):
    return expected_list_loss(task, bound(name), task.ref, mu, task.rewards, k)


@pytest.mark.parametrize("name", ["plackett_luce", "s_dpo"])
def test_two_ranked_answers_are_a_pair(task, random_policy, name):
    policy, mu = random_policy(task, 0), random_policy(task, 1)
    truth = preferences.bradley_terry(task)
    pairs = population.population_loss(task, make_loss("dpo", beta=BETA), policy, task.ref, mu, truth)
    assert expected(task, name, 2, mu)(policy).item() == pytest.approx(pairs.item(), rel=1e-12)


def test_the_expectation_is_the_sum_over_draws_and_rankings(task, random_policy):
    """Of one prompt of three answers drawn, and each of their six orders."""
    policy, mu = random_policy(task, 0), random_policy(task, 1)
    h = BETA * (exact.answer_logps(task, policy) - exact.answer_logps(task, task.ref)).flatten(1)
    mass, rewards = exact.answer_logps(task, mu).exp().flatten(1), task.rewards.flatten(1)
    total = 0.0
    for x in range(2):
        for drawn in itertools.product(answer_places(task).tolist(), repeat=3):
            for order in itertools.permutations(drawn):
                utilities, values = rewards[x, list(order)], h[x, list(order)]
                chance = mass[x, list(drawn)].prod()
                for j in range(3):
                    chance = chance * utilities[j:].softmax(0)[0]
                total -= float(chance * sum(values[j:].log_softmax(0)[0] for j in range(3))) / 2
    assert expected(task, "plackett_luce", 3, mu)(policy).item() == pytest.approx(total, rel=1e-10)


def test_a_loss_that_reads_values_gets_the_rewards(task, random_policy):
    """And no ranking: the chances of all lists sum to 1."""
    seen = []

    def loss(lists):
        seen.append(lists.scores)
        return lists.scores.sum(1)

    value = expected_list_loss(task, loss, task.ref, task.ref, task.rewards, 3)(task.ref)
    mean = exact.expectation(task, task.ref, task.rewards).mean()
    assert value.item() == pytest.approx(3 * mean.item(), abs=1e-12)
    assert set(seen[-1].flatten().tolist()) == set(task.rewards[:, task.ends].flatten().tolist())


@pytest.mark.parametrize("name", ["plackett_luce", "s_dpo", "infonca", "nca_k", "rrhf", "a2po"])
def test_answers_that_are_never_drawn_do_not_count(task, random_policy, name):
    whole = exact.answer_logps(task, task.ref)
    opens_with_1 = (task.prefixes[:, 0] == 1)[:, None].expand_as(task.ends)
    mu = optima.conditionals_of(task, whole.masked_fill(opens_with_1, -torch.inf))
    policy = random_policy(task, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(expected(task, name, 3, mu)(policy), policy)
    below = task.prefixes[:, 0] == 1
    assert gradient.isfinite().all()
    assert (gradient[:, below] == 0).all()
    assert gradient[:, ~below].abs().sum() > 0.01


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("entry", LISTS, ids=lambda e: e.name)
def test_the_optimum_is_at_rest_under_the_losses_that_claim_it_and_no_other(task, random_policy, entry, k):
    logits = optima.optimum(task, task.ref, task.rewards, BETA).policy.clone().requires_grad_()
    loss = expected(task, entry.name, k, random_policy(task, 1, spread=0.5))
    (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1)), logits)
    assert gradient.norm() < 1e-10 if entry.kl_optimal else gradient.norm() > 1e-3


@pytest.mark.parametrize("entry", [e for e in LISTS if e.kl_optimal], ids=lambda e: e.name)
def test_a_loss_that_claims_the_optimum_goes_there(task, entry):
    best = optima.optimum(task, task.ref, task.rewards, BETA).policy
    found = stationary.rest(expected(task, entry.name, 3, task.ref), task.ref).argmin.policy
    assert exact.sequence_kl(task, found, best).max() < 1e-8


def test_too_many_lists_are_refused(task):
    with pytest.raises(ValueError, match="too many"):
        expected(task, "plackett_luce", 8, task.ref)
