"""rlpref.testbed.search against greedy answers taken token by token and against all answers."""

import pytest
import torch

from rlpref.testbed.exact import answer_logps
from rlpref.testbed.gradients import greedy_returns
from rlpref.testbed.search import beam_search
from rlpref.testbed.task import make_testbed


@pytest.fixture
def task():
    return make_testbed(vocab=4, horizon=4, prompts=3, seed=0, reward="ngram")


@pytest.fixture
def policy(task):
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.randn(task.ref.shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_a_beam_of_one_is_greedy_and_a_full_one_is_exact(task, policy):
    greedy = task.rewards.flatten(1).gather(1, beam_search(task, policy, 1)[:, None])[:, 0]
    torch.testing.assert_close(greedy, greedy_returns(task, policy, policy, task.rewards, 0.0))
    assert torch.equal(beam_search(task, policy, 10_000), answer_logps(task, policy).flatten(1).argmax(1))


def test_a_beam_keeps_what_the_greedy_answer_leaves(task):
    """The likeliest first token leads to many even answers, the second likeliest to a certain one."""
    even = torch.full_like(task.ref, 0.25)
    even[:, 0] = torch.tensor([0.1, 0.5, 0.3, 0.1])
    even[:, 2] = torch.tensor([0.97, 0.01, 0.01, 0.01])
    wide = beam_search(task, even.log(), 2)
    assert (wide == 2 * 4).all()  # token 2, then EOS
    assert (beam_search(task, even.log(), 1) != wide).all()


def test_a_finished_answer_stays_in_the_beam(task):
    sure = torch.full_like(task.ref, 0.05)
    sure[:, :, 0] = 0.85
    assert (beam_search(task, sure.log(), 3) == 0).all()


def test_an_empty_beam_is_refused(task, policy):
    with pytest.raises(ValueError, match="at least one"):
        beam_search(task, policy, 0)
