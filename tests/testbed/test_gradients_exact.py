"""rlpref.testbed.gradients and estimators: the exact gradient against finite differences, each estimator's
expectation against what theory says, and its variance against Monte Carlo."""

import dataclasses
import math
from functools import partial

import pytest
import torch

from rlpref.ops.kl import k1, k2, k3
from rlpref.testbed import estimators as named
from rlpref.testbed import exact, gradients, optima
from rlpref.testbed.task import make_testbed

BETA = 0.5
ALL = named.ESTIMATORS | named.KL_PLACEMENTS


@pytest.fixture
def small():
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=0, reward="ngram")


@pytest.fixture
def half_way(small):
    best = optima.optimum(small, small.ref, small.rewards, BETA).policy
    return (small.ref + 0.5 * (best - small.ref)).log_softmax(-1)


@pytest.fixture
def draws(small, half_way):
    """`draws(k, kl_only)` -> (all tuples, exact gradient) at the policy half way to pi*."""

    def build(k=2, kl_only=False):
        rewards, beta = (torch.zeros_like(small.rewards), 1.0) if kl_only else (small.rewards, BETA)
        settings = (small, half_way, small.ref, rewards, beta)
        return gradients.enumerate_draws(*settings, k), gradients.objective_gradient(*settings)

    return build


def objective(task, logits):
    logps = logits.log_softmax(-1)
    kl = exact.sequence_kl(task, logps, task.ref)
    return float((exact.expectation(task, logps, task.rewards) - BETA * kl).mean())


def test_the_exact_gradient_is_that_of_finite_differences(small, half_way):
    found = gradients.objective_gradient(small, half_way, small.ref, small.rewards, BETA)
    for place in range(half_way.numel()):
        step = torch.zeros_like(half_way).flatten()
        step[place] = 1e-5
        step = step.view_as(half_way)
        slope = (objective(small, half_way + step) - objective(small, half_way - step)) / 2e-5
        assert float(found.flatten()[place]) == pytest.approx(slope, abs=1e-9)


def test_the_exact_gradient_vanishes_at_the_optimum(small):
    best = optima.optimum(small, small.ref, small.rewards, BETA).policy
    assert gradients.objective_gradient(small, best, small.ref, small.rewards, BETA).abs().max() < 1e-14


def test_values_of_a_policy(task, random_policy):
    """At the root J itself; elsewhere the mean of what the answers below a prefix bring after it. At pi* they
    are the soft values."""
    policy = random_policy(task, 1)
    values = gradients.policy_values(task, policy, task.ref, task.rewards, BETA)
    worth = exact.expectation(task, policy, task.rewards) - BETA * exact.sequence_kl(task, policy, task.ref)
    torch.testing.assert_close(values[:, 0], worth)
    last = task.tree.inner - 1
    step = task.rewards[:, last] - BETA * (policy - task.ref)[:, last]
    torch.testing.assert_close(values[:, last], (policy[:, last].exp() * step).sum(-1))
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    torch.testing.assert_close(
        gradients.policy_values(task, solved.policy, task.ref, task.rewards, BETA), solved.v, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_draws_are_all_answers_with_their_probabilities(small, half_way, draws, k):
    found = draws(k)[0]
    assert found.answers.shape == (7**k, k)
    torch.testing.assert_close(found.draws.chance.sum(1), torch.ones(2).double())
    mean_score = (found.draws.chance * found.draws.scores.mean(-1)).sum(1)
    torch.testing.assert_close(mean_score, exact.expectation(small, half_way, small.rewards))
    kl = (found.draws.chance * (found.draws.logps - found.draws.ref_logps).sum(-1).mean(-1)).sum(1)
    torch.testing.assert_close(kl, exact.sequence_kl(small, half_way, small.ref))


def test_the_greedy_answer_against_a_walk_by_hand(task, random_policy):
    policy = random_policy(task, 1)
    found = gradients.greedy_returns(task, policy, task.ref, task.rewards, BETA)
    for prompt in range(task.tree.prompts):
        node, kl = 0, 0.0
        while True:
            token = int(policy[prompt, node].argmax())
            kl += float((policy - task.ref)[prompt, node, token])
            if task.ends[node, token]:
                break
            node = node * (task.tree.vocab - 1) + token
        assert float(found[prompt]) == pytest.approx(float(task.rewards[prompt, node, token]) - BETA * kl)


def test_near_the_optimum_the_return_of_the_whole_answer_has_the_least_noise(small):
    """Every answer has the same return there; the KL still to come depends on the prefix."""
    best = optima.optimum(small, small.ref, small.rewards, BETA).policy
    found = gradients.enumerate_draws(small, best, small.ref, small.rewards, BETA, 3)
    for name in ("RLOO", "ReMax", "REINFORCE, exact mean"):
        assert gradients.moments(found, ALL[name].surrogate)[1] < 1e-20, name
    assert gradients.moments(found, named.to_come)[1] > 1e-3


def test_derivatives_of_log_probs_are_those_of_autograd(small, half_way, draws):
    found = draws(1)[0]
    logits = half_way.clone().requires_grad_()
    logps = torch.where(small.ends, exact.answer_logps(small, logits.log_softmax(-1)), 0.0)
    for answer, place in enumerate(small.ends.flatten().nonzero()[:, 0]):
        (slope,) = torch.autograd.grad(logps.flatten(1)[:, place].sum(), logits, retain_graph=True)
        torch.testing.assert_close(found.derivatives[:, answer].sum(1), slope.flatten(1))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ALL)
def test_every_estimator_is_what_theory_says(draws, name, k):
    found, gradient = draws(k)
    quality = gradients.quality(found, ALL[name].surrogate, gradient)
    if ALL[name].bias == "none":
        assert quality.bias < 1e-10
        assert quality.cosine == pytest.approx(1, abs=1e-12)
    elif ALL[name].bias == "scale":
        assert quality.cosine == pytest.approx(1, abs=1e-12)
        assert quality.scale == pytest.approx((k - 1) / k)
    else:
        assert quality.bias > 1e-2
        assert quality.cosine < 1 - 1e-4


@pytest.mark.parametrize("name", named.KL_PLACEMENTS)
def test_every_kl_placement_alone_is_what_theory_says(draws, name):
    found, gradient = draws(2, kl_only=True)
    quality = gradients.quality(found, named.KL_PLACEMENTS[name].surrogate, gradient)
    if named.KL_PLACEMENTS[name].bias == "none":
        assert quality.bias < 1e-10
    else:
        assert quality.bias > 1e-2
        assert quality.cosine is None or quality.cosine < 0.999


def mean(found, surrogate):
    return gradients.moments(found, surrogate)[0]


@pytest.mark.parametrize("per_token", [False, True])
def test_k1_as_loss_has_no_gradient_on_average(draws, per_token):
    found = draws(2, kl_only=True)[0]
    loss = partial(named.kl_in_loss, kl=k1, per_token=per_token)
    assert mean(found, loss).abs().max() < 1e-15
    assert gradients.moments(found, loss)[1] > 0.01


def test_k2_as_loss_is_k1_in_the_reward(draws):
    """On average for any number of answers, and answer by answer without a baseline."""
    found = draws(2)[0]
    torch.testing.assert_close(mean(found, partial(named.kl_in_loss, kl=k2)), mean(found, named.rloo))
    alone = draws(1, kl_only=True)[0]
    as_loss = gradients.tuple_gradients(alone, lambda logps, d: -k2((logps - d.ref_logps).sum(-1)).mean(-1))
    torch.testing.assert_close(as_loss, gradients.tuple_gradients(alone, named.reinforce))


def test_k3_as_loss_pulls_along_the_forward_kl(small, half_way, draws):
    found = draws(2, kl_only=True)[0]
    logits = half_way.clone().requires_grad_()
    forward = exact.sequence_kl(small, small.ref, logits.log_softmax(-1)).mean()
    (slope,) = torch.autograd.grad(forward, logits)
    torch.testing.assert_close(mean(found, partial(named.kl_in_loss, kl=k3)), -slope.flatten(1))


def test_at_the_reference_all_kl_placements_agree(small):
    settings = (small, small.ref, small.ref, small.rewards, BETA)
    found, gradient = gradients.enumerate_draws(*settings), gradients.objective_gradient(*settings)
    for entry in named.KL_PLACEMENTS.values():
        assert gradients.quality(found, entry.surrogate, gradient).bias < 1e-10


def test_wrong_values_bias_gae_below_lambda_one_and_not_at_one(draws):
    found, gradient = draws()
    biases = []
    for gae_lambda in (0.0, 0.5, 0.95, 1.0):
        right = partial(named.ppo, gae_lambda=gae_lambda, critic="exact")
        assert gradients.quality(found, right, gradient).bias < 1e-10
        wrong = partial(named.ppo, gae_lambda=gae_lambda, critic="zero")
        biases.append(gradients.quality(found, wrong, gradient).bias)
    assert biases == sorted(biases, reverse=True)
    assert biases[0] > 0.1
    assert biases[-1] < 1e-10


def test_baselines_cut_the_variance(draws):
    found = draws(4)[0]
    variance = {name: gradients.moments(found, ALL[name].surrogate)[1] for name in named.ESTIMATORS}
    assert variance["REINFORCE, exact mean"] < variance["RLOO"] < variance["REINFORCE, no baseline"]
    assert variance["PPO, GAE 1, exact values"] < variance["REINFORCE, exact mean"]


def test_a_shifted_reward_costs_only_the_estimator_without_a_baseline(small, half_way, draws):
    plain = draws(4)[0]
    shifted = gradients.enumerate_draws(small, half_way, small.ref, small.rewards + 1.0, BETA, 4)
    rloo = [gradients.moments(found, named.rloo)[1] for found in (plain, shifted)]
    assert rloo[0] == pytest.approx(rloo[1], rel=1e-12)
    assert rloo[1] < 0.5 * gradients.moments(shifted, named.reinforce)[1]


def sampled_gradients(task, policy, surrogate, k, n):
    """[prompts, n, inner * vocab] gradients of n batches, drawn token by token and put through autograd through a
    table of logits for each batch. Only for estimators that read no values."""
    generator = torch.Generator().manual_seed(0)
    prompts, vocab = len(policy), policy.shape[-1]
    logits = policy[:, None].repeat(1, n, 1, 1).requires_grad_()
    table, row, batch = logits.log_softmax(-1), torch.arange(prompts)[:, None, None], torch.arange(n)[:, None]
    node, alive = torch.zeros(prompts, n, k, dtype=torch.long), torch.ones(prompts, n, k, dtype=torch.bool)
    scores, columns = torch.zeros(prompts, n, k, dtype=torch.float64), []
    for t in range(task.tree.horizon):
        at = torch.where(alive, node, 0)
        token = torch.multinomial(policy[row, at].exp().view(-1, vocab), 1, generator=generator).view_as(node)
        columns.append((alive, table[row, batch, at, token] * alive, task.ref[row, at, token] * alive))
        ended = alive & ((token == 0) | (t == task.tree.horizon - 1))
        scores = torch.where(ended, task.rewards[row, at, token], scores)
        node, alive = node * (vocab - 1) + token, alive & ~ended
    mask, logps, ref_logps = (torch.stack(column, -1) for column in zip(*columns))
    values = torch.zeros_like(ref_logps)
    chance = torch.ones(prompts, n) / n
    greedy = gradients.greedy_returns(task, policy, task.ref, task.rewards, BETA)[:, None].expand(-1, n)
    draws = gradients.Draws(BETA, chance, mask, logps.detach(), ref_logps, scores, values, greedy)
    return torch.autograd.grad(surrogate(logps, draws).sum(), logits)[0].flatten(2)


@pytest.mark.parametrize("name", ["REINFORCE, no baseline", "RLOO", "ReMax", "GRPO as published", "k3 as loss"])
def test_mean_and_variance_against_monte_carlo(small, half_way, draws, name):
    mean, variance = gradients.moments(draws(2)[0], ALL[name].surrogate)
    n = 40_000
    found = sampled_gradients(small, half_way, ALL[name].surrogate, 2, n) / small.tree.prompts
    off = (found.mean(1) - mean).abs()
    assert (off <= 4 * found.std(1) / math.sqrt(n) + 1e-12).all()
    squares = (found - mean[:, None]).square().sum(-1)
    error = float(squares.var(1).sum().sqrt()) / math.sqrt(n)
    assert error < 0.05 * variance
    assert float(squares.mean(1).sum()) == pytest.approx(variance, abs=4 * error)


def test_the_gradient_of_one_tuple_is_that_of_autograd_through_the_table(small, half_way, draws):
    """GRPO whole, which uses everything: one batch looked up in the table by hand."""
    found = draws(2)[0]
    logits = half_way.clone().requires_grad_()
    table = logits.log_softmax(-1)
    # The answers (1, EOS) and (EOS): the root is prefix 0, token 1 leads to prefix 1.
    logps = torch.stack(
        [torch.stack([table[0, 0, 1], table[0, 1, 0]]), torch.stack([table[0, 0, 0], table[0, 0, 0] * 0])]
    )
    mask = torch.tensor([[True, True], [True, False]])
    index = next(
        n
        for n in range(len(found.answers))
        if torch.equal(found.draws.mask[0, n], mask) and torch.allclose(found.draws.logps[0, n], logps)
    )
    one = {
        field.name: value[:1, index : index + 1] if torch.is_tensor(value) else value
        for field in dataclasses.fields(found.draws)
        for value in [getattr(found.draws, field.name)]
    }
    (slope,) = torch.autograd.grad(named.grpo(logps[None, None], gradients.Draws(**one)).sum(), logits)
    torch.testing.assert_close(gradients.tuple_gradients(found, named.grpo)[0, index], slope[0].flatten())
    assert slope[1].abs().max() == 0


def test_what_cannot_be_measured_is_refused(small, half_way, draws):
    with pytest.raises(ValueError, match="at least two"):
        gradients.moments(draws(1)[0], named.rloo)
    with pytest.raises(ValueError, match="at least one"):
        draws(0)
    with pytest.raises(ValueError, match="at most"):
        draws(8)
    with pytest.raises(ValueError, match="is 0 here"):
        gradients.quality(draws()[0], named.rloo, torch.zeros_like(half_way))
