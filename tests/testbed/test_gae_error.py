"""Generalised advantages beside the exact ones, state by state: what lambda trades, enumerated."""

from types import SimpleNamespace

import pytest
import torch

from rlpref.ops.gae import gae, penalised_rewards
from rlpref.testbed.gradients import enumerate_draws
from rlpref.testbed.task import answer_places, answer_tokens, make_testbed

BETA = 0.3
LAMBDAS = (0.0, 0.3, 0.6, 0.9, 1.0)


@pytest.fixture
def answers(random_policy):
    """Every answer with its chance, rewards, exact values, and which state and token each of its columns is."""
    task = make_testbed(vocab=3, horizon=4, prompts=2, seed=3, reward="ngram")
    policy = random_policy(task, 1)
    drawn = enumerate_draws(task, policy, task.ref, task.rewards, BETA, k=1)
    d = drawn.draws
    mask = d.mask.flatten(0, 2)
    tokens = answer_tokens(task).flatten(0, 1)[answer_places(task)][drawn.answers[:, 0]].repeat(len(d.chance), 1)
    prompt = torch.arange(len(d.chance)).repeat_interleave(d.chance.shape[1])[:, None]
    after = [torch.where(torch.arange(4) <= t, tokens, -2) for t in range(4)]
    keys = torch.stack([torch.cat([prompt, prefix], 1) for prefix in after], 1)[mask]
    return SimpleNamespace(
        mask=mask,
        chance=(d.chance.flatten()[:, None] * mask)[mask],
        rewards=penalised_rewards(d.scores.flatten(), (d.logps - d.ref_logps).flatten(0, 2), mask, BETA),
        values=d.values.flatten(0, 2),
        group=torch.unique(keys, dim=0, return_inverse=True)[1],
    )


def bias_and_variance(answers, values, gae_lambda):
    """Squared distance of the mean estimate to the exact advantage, and the estimate's variance around its mean, both
    averaged over the states and tokens that the policy comes to."""

    def mean_of(numbers):
        sums = torch.zeros(2, int(answers.group.max()) + 1, dtype=torch.float64)
        sums[0].index_add_(0, answers.group, answers.chance * numbers)
        sums[1].index_add_(0, answers.group, answers.chance)
        return (sums[0] / sums[1])[answers.group]

    exact = gae(answers.rewards, answers.values, answers.mask, 1.0, 0.0)[answers.mask]
    torch.testing.assert_close(exact, mean_of(exact))  # one number for each state and token
    found = gae(answers.rewards, values, answers.mask, 1.0, gae_lambda)[answers.mask]
    # Whatever depends on the state alone is a baseline: it is no bias of the gradient, and not counted as one.
    before = torch.where(answers.mask, answers.values - values, 0.0)[answers.mask]
    center = mean_of(found - before)
    total = answers.chance.sum()
    return tuple(
        float((answers.chance * square).sum() / total)
        for square in ((center - exact).square(), (found - before - center).square())
    )


def test_bias_falls_and_variance_rises_with_lambda(answers):
    noise = torch.randn(answers.group.max() + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = torch.zeros_like(answers.values)
    wrong[:, 1:][answers.mask[:, 1:]] = 1.0
    state = torch.zeros_like(answers.values)  # a column's state is the state and token of the column before
    state[answers.mask] = noise[answers.group]
    noisy = torch.where(answers.mask, answers.values + wrong * torch.nn.functional.pad(state[:, :-1], (1, 0)), 0.0)
    for values in (torch.zeros_like(answers.values), noisy):
        bias, variance = zip(*(bias_and_variance(answers, values, one) for one in LAMBDAS))
        assert list(bias) == sorted(bias, reverse=True)
        assert list(variance) == sorted(variance)
        assert bias[0] > 0.1
        assert bias[-1] < 1e-20
        assert variance[0] < 1e-20
        assert variance[-1] > 0.1


def test_with_exact_values_no_lambda_is_biased(answers):
    found = [bias_and_variance(answers, answers.values, one) for one in LAMBDAS]
    assert max(bias for bias, _ in found) < 1e-20
    assert [variance for _, variance in found] == sorted(variance for _, variance in found)
