"""The stacked proxies: each is what it would be alone, learns its own labels, and has the scale it says."""

import pytest
import torch

import runs
from rlpref.testbed.exact import expectation

proxies = runs.experiment("proxies")


@pytest.fixture(scope="module")
def tasks():
    return [proxies.peaked_testbed(environment, 1.0) for environment in (0, 1)]


@pytest.fixture(scope="module")
def data(tasks):
    return [proxies.labelled(task, 400, seed=3) for task in tasks]


def test_a_stack_is_its_members_and_they_learn_their_labels(tasks, data):
    recipe = proxies.Recipe(steps=150, batch=32, lr=0.03)
    both = proxies.fitted(data, 8, recipe, seeds=[5, 6])
    alone = proxies.fitted(data[1:], 8, recipe, seeds=[6])[0]
    torch.testing.assert_close(both[1], alone, atol=1e-3, rtol=1e-3)  # fp32, summed in another order
    for task, own, scores in zip(tasks, data, both):
        flat = scores.flatten(1)
        assert (flat[own.prompt, own.chosen] > flat[own.prompt, own.rejected]).double().mean() > 0.7
        assert proxies.correlation(task, scores, task.rewards) > 0.3
        torch.testing.assert_close(expectation(task, task.ref, scores), torch.zeros(4).double(), atol=1e-9, rtol=0)
        assert expectation(task, task.ref, scores**2).mean().item() == pytest.approx(1)


def test_labels_name_the_better_answer_and_noise_turns_its_share_of_them(tasks):
    task, rewards = tasks[0], tasks[0].rewards.flatten(1)
    for noise in (0.0, 0.25):
        own = proxies.labelled(task, 4000, seed=1, noise=noise)
        margin = rewards[own.prompt, own.chosen] - rewards[own.prompt, own.rejected]
        assert (margin[margin != 0] < 0).double().mean().item() == pytest.approx(noise, abs=0.03)


def test_the_penalty_for_repetition_is_part_of_the_gold_reward_alone():
    """It changes the reward and not the reference, and the reward keeps the common scale."""
    with_penalty, without = (proxies.peaked_testbed(2, penalty) for penalty in (1.0, 0.0))
    assert torch.equal(with_penalty.ref, without.ref)
    assert proxies.correlation(without, with_penalty.rewards, without.rewards) < 0.95
    for task in (with_penalty, without):
        torch.testing.assert_close(expectation(task, task.ref, task.rewards**2), torch.ones(4).double())
