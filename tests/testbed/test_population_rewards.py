"""rlpref.testbed.population_rewards: what a reward model learns is the gold reward, or the Borda count."""

import pytest
import torch

from rlpref.losses import make_loss
from rlpref.testbed.duels import win_probability
from rlpref.testbed.exact import answer_logps, expectation
from rlpref.testbed.population_rewards import reward_argmin
from rlpref.testbed.preferences import bradley_terry, mixture
from rlpref.testbed.task import make_testbed


@pytest.fixture
def small():
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=1, reward="ngram")


def test_bradley_terry_labels_give_back_the_gold_reward(small, finished):
    found = reward_argmin(small, make_loss("bradley_terry"), small.ref, bradley_terry(small))
    assert torch.allclose(finished(small, found), finished(small, small.rewards), atol=1e-5)
    assert expectation(small, small.ref, found).abs().max() < 1e-9


def test_the_model_wins_as_often_as_a_mixture_of_annotators_says(small, finished):
    preference = mixture(small, [0.5, 0.5], seed=0, temperature=0.3)
    scores = finished(small, reward_argmin(small, make_loss("bradley_terry"), small.ref, preference))
    chance = finished(small, answer_logps(small, small.ref)).exp()
    wins = ((scores[:, :, None] - scores[:, None, :]).sigmoid() * chance[:, None, :]).sum(-1)
    assert torch.allclose(wins, finished(small, win_probability(small, small.ref, preference)), atol=1e-6)
