"""rlpref.testbed.stationary: kinks against a linear program, stop-gradients, and losses without a minimum."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from rlpref.losses import LOSSES, make_loss
from rlpref.testbed import exact, preferences, stationary
from rlpref.testbed.listwise import expected_list_loss
from rlpref.testbed.population import argmin, expected_loss
from rlpref.testbed.task import make_testbed

pytestmark = pytest.mark.slow

BETA = 0.5


@pytest.fixture(scope="module")
def task():
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=5, reward="ngram")


def expected(task, loss, preference=None):
    return expected_loss(task, loss, task.ref, task.ref, preference or preferences.bradley_terry(task), task.rewards)


def gain(task, loss, preference=None):
    found = stationary.rest(expected(task, loss, preference), task.ref).argmin
    everything = task.ends.expand_as(task.ref)
    return stationary.gain_beyond(task, expected(task, loss, preference), found.policy, task.ref, everything)


def smallest_hinge(task):
    """min over values u of answers of E max(0, 1 - (u_w - u_l)), a linear program per prompt."""
    wins = preferences.matrix(task, preferences.bradley_terry(task)).numpy()
    mass = exact.answer_logps(task, task.ref)[:, task.ends].exp().numpy()
    total, n = 0.0, mass.shape[1]
    won, lost = (index.flatten() for index in np.indices((n, n)))
    pair = np.arange(n * n)
    bounds = np.zeros((n * n, n + n * n))  # -u_w + u_l - slack <= -1
    np.add.at(bounds, (pair, won), -1)
    np.add.at(bounds, (pair, lost), 1)
    bounds[pair, n + pair] = -1
    for x in range(len(mass)):
        weight = 2 * mass[x, won] * mass[x, lost] * wins[x, won, lost]
        cost = np.concatenate([np.zeros(n), weight])
        variables = [(None, None)] * n + [(0, None)] * (n * n)
        total += linprog(cost, A_ub=bounds, b_ub=-np.ones(n * n), bounds=variables).fun / len(mass)
    return total


def test_a_hinge_is_followed_to_the_bottom_of_its_linear_program(task, random_policy):
    loss = expected(task, make_loss("hinge", beta=BETA))
    ends = [stationary.kinked_argmin(loss, start) for start in (task.ref, random_policy(task, 3))]
    for found in ends:
        assert found.loss == pytest.approx(smallest_hinge(task), abs=1e-8)
    assert stationary.rest(loss, task.ref).kind == "kink"


def test_a_smooth_loss_is_left_to_the_smooth_method(task):
    loss = expected(task, make_loss("dpo", beta=BETA))
    found = stationary.rest(loss, task.ref)
    assert found.kind == "minimum"
    assert found.argmin.loss == argmin(loss, task.ref).loss
    assert stationary.kinked_argmin(loss, task.ref).loss == pytest.approx(found.argmin.loss, abs=1e-10)


@pytest.mark.parametrize(("name", "stops"), [("tdpo2", True), ("tdpo1", False), ("dpo", False), ("hinge", False)])
def test_a_stop_gradient_is_seen_from_outside(task, name, stops):
    assert stationary.detaches(expected(task, make_loss(name, beta=BETA)), task.ref) is stops


def test_a_loss_that_jumps_is_told_from_one_with_a_kink(task):
    """LiPO weighs pairs by the ranks that the policy gives, which all tie at the reference."""
    loss = expected_list_loss(task, make_loss("lipo_lambda", beta=BETA), task.ref, task.ref, task.rewards, 3)
    assert stationary.rest(loss, task.ref).kind == "jump"


def test_a_stop_gradient_comes_to_rest_where_its_own_gradient_vanishes(task, random_policy):
    """Away from the smallest value of the loss, at the same place from two starts."""
    loss = expected(task, make_loss("tdpo2", beta=BETA))
    ends = [stationary.rest(loss, start) for start in (task.ref, random_policy(task, 3))]
    assert [end.kind for end in ends] == ["fixed point"] * 2
    assert max(end.argmin.gradient for end in ends) < 1e-10
    assert exact.sequence_kl(task, *(end.argmin.policy for end in ends)).max() < 1e-8
    least = stationary.kinked_argmin(expected(task, make_loss("tdpo1", beta=BETA)), task.ref)
    assert exact.sequence_kl(task, ends[0].argmin.policy, least.policy).min() > 0.01


@pytest.mark.parametrize("name", ["dpo", "ipo", "odpo", "exo", "nca"])
def test_a_minimum_rises_on_every_side(task, name):
    assert gain(task, make_loss(name, **{LOSSES[name].regularisation: BETA})) < -1e-5


@pytest.mark.parametrize("name", ["apo_zero", "apo_down"])
def test_a_loss_that_is_smallest_at_probability_0_does_not(task, name):
    assert gain(task, make_loss(name, beta=BETA)) > -1e-9


def test_the_robust_loss_has_no_minimum_where_labels_are_cleaner_than_it_is_told():
    """Its weights are (P - eps)/(1 - 2 eps): below 0 for pairs whose labels are clearer than the flips allow. Under
    flips at that rate they are the clean probabilities."""
    task = make_testbed(vocab=3, horizon=3, prompts=2, seed=5, reward="ngram")
    loss = make_loss("robust", beta=BETA, label_smoothing=0.1)
    fall = stationary.rest(expected(task, loss), task.ref)
    assert fall.kind == "unbounded below"
    assert fall.argmin.loss < stationary.UNBOUNDED
    assert torch.isfinite(fall.argmin.policy).all()
    noisy = preferences.flips(task, 0.1)
    assert stationary.rest(expected(task, loss, noisy), task.ref).kind == "minimum"
    assert gain(task, loss, noisy) < -1e-5
