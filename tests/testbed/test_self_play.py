"""rlpref.testbed.self_play against formulas over enumerated answers and the equilibrium it should reach."""

import pytest
import torch

from rlpref.testbed.duels import exploitability, nash, win_probability
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.preferences import non_transitive
from rlpref.testbed.self_play import geometric, nash_md_step, self_play_step
from rlpref.testbed.task import make_testbed


@pytest.fixture
def small():
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=1, reward="ngram")


def test_a_geometric_mixture_multiplies_the_chances_of_answers(small, finished, random_policy):
    policy = random_policy(small, 0)
    logps = [finished(small, answer_logps(small, each)) for each in (policy, small.ref)]
    mixed = finished(small, answer_logps(small, geometric(small, policy, small.ref, 0.3)))
    assert torch.allclose(mixed, (0.7 * logps[0] + 0.3 * logps[1]).log_softmax(1))
    assert torch.allclose(geometric(small, policy, small.ref, 1.0).exp(), small.ref.exp())


def test_a_round_of_self_play_weighs_answers_by_whom_they_beat(small, finished, random_policy):
    policy, preference = random_policy(small, 0), non_transitive(small, 2.0, 0)
    step = finished(small, answer_logps(small, self_play_step(small, policy, preference, 0.5)))
    wins = finished(small, win_probability(small, policy, preference))
    assert torch.allclose(step, (finished(small, answer_logps(small, policy)) + 0.5 * wins).log_softmax(1))


def test_nash_md_goes_to_the_equilibrium(small):
    preference, tau, policy = non_transitive(small, 4.0, 0), 0.2, small.ref
    for t in range(300):
        policy = nash_md_step(small, policy, small.ref, preference, tau, 2 / (tau * (t + 2)))
    assert exploitability(small, policy, small.ref, preference, tau).max() < 1e-4
    assert torch.allclose(policy.exp(), nash(small, small.ref, preference, tau).policy.exp(), atol=0.02)
