"""rlpref.testbed.exact against definitions, identities and independent numerical optimisation."""

import math

import pytest
import torch

from rlpref.losses import make_loss
from rlpref.testbed import exact
from rlpref.testbed.task import make_testbed
from rlpref.types import PairLogps

BETA = 0.4


def finished(task, table):
    """[prompts, answers] of a function of finished answers."""
    return table.flatten(1)[:, task.ends.flatten()]


def test_the_optimum_is_the_tilted_reference_and_its_value_beta_log_z(task):
    solved = exact.optimum(task, task.ref, task.rewards, BETA)
    ref, rewards = finished(task, exact.answer_logps(task, task.ref)), finished(task, task.rewards)
    log_z = (ref + rewards / BETA).logsumexp(1)
    torch.testing.assert_close(solved.v[:, 0], BETA * log_z)
    found = finished(task, exact.answer_logps(task, solved.policy))
    torch.testing.assert_close(found, ref + rewards / BETA - log_z[:, None])
    torch.testing.assert_close(solved.policy.logsumexp(-1), torch.zeros_like(solved.v), atol=1e-12, rtol=0)
    objective = exact.expectation(task, solved.policy, task.rewards) - BETA * exact.sequence_kl(
        task, solved.policy, task.ref
    )
    torch.testing.assert_close(objective, solved.v[:, 0])


def test_regret_is_beta_times_the_kl_to_the_optimum(task, random_policy):
    best = exact.optimum(task, task.ref, task.rewards, BETA).policy
    for seed in range(5):
        policy = random_policy(task, seed)
        expected = BETA * exact.sequence_kl(task, policy, best).mean().item()
        assert exact.regret(task, policy, task.ref, task.rewards, BETA) == pytest.approx(expected, abs=1e-10)
    assert exact.regret(task, best, task.ref, task.rewards, BETA) == pytest.approx(0, abs=1e-12)


def test_kl_and_entropy_by_the_chain_rule_are_those_over_answers(task, random_policy):
    p, q = random_policy(task, 0), random_policy(task, 1)
    whole_p, whole_q = (finished(task, exact.answer_logps(task, table)) for table in (p, q))
    torch.testing.assert_close(exact.sequence_kl(task, p, q), (whole_p.exp() * (whole_p - whole_q)).sum(1))
    torch.testing.assert_close(exact.entropy(task, p), -(whole_p.exp() * whole_p).sum(1))


def test_the_slope_of_the_frontier_is_beta_and_the_frontier_is_concave(task):
    betas = torch.logspace(1, -1, 101, dtype=torch.float64).tolist()
    points = exact.frontier(task, task.ref, task.rewards, betas)
    kl, reward = torch.tensor(points["kl"]).double(), torch.tensor(points["reward"]).double()
    slope = reward.diff() / kl.diff()
    between = (torch.tensor(betas[1:]) * torch.tensor(betas[:-1])).sqrt()
    assert ((slope / between - 1).abs() < 0.01).all()
    assert (kl.diff() > 0).all()
    assert (slope.diff() < 0).all()


def test_no_policy_lies_above_the_frontier(task, random_policy):
    for seed in range(5):
        policy = random_policy(task, seed, spread=0.6 * seed)
        kl = exact.sequence_kl(task, policy, task.ref).mean().item()
        reward = exact.expectation(task, policy, task.rewards).mean().item()
        assert exact.frontier_reward(task, task.ref, task.rewards, kl) - reward >= -1e-9


@pytest.mark.parametrize("beta", [0.05, 0.4, 5.0])
def test_the_optimum_lies_on_the_frontier(task, beta):
    policy = exact.optimum(task, task.ref, task.rewards, beta).policy
    kl = exact.sequence_kl(task, policy, task.ref).mean().item()
    reward = exact.expectation(task, policy, task.rewards).mean().item()
    assert exact.frontier_reward(task, task.ref, task.rewards, kl) == pytest.approx(reward, abs=1e-9)
    assert exact.tilted(task, task.ref, task.rewards, beta) == pytest.approx((kl, reward), abs=1e-10)


def test_the_frontier_runs_from_the_reference_to_the_best_answers(task):
    assert exact.frontier_reward(task, task.ref, task.rewards, 0.0) == pytest.approx(0, abs=1e-4)
    best = finished(task, task.rewards).amax(1).mean().item()
    assert exact.frontier_reward(task, task.ref, task.rewards, 50.0) == pytest.approx(best, abs=1e-3)


def test_win_probability_is_a_probability_and_even_against_oneself(task, random_policy):
    policy = random_policy(task, 3)
    beats = exact.win_probability(task, policy, task.rewards)
    ends = task.ends.expand_as(beats)
    assert ((beats[ends] > 0) & (beats[ends] < 1)).all()
    assert (beats[~ends] == 0).all()
    torch.testing.assert_close(exact.expectation(task, policy, beats), torch.full((2,), 0.5).double())
    x, mass = 1, exact.answer_logps(task, policy).exp()
    node, token = 2, 0
    by_hand = sum(
        mass[x, n, t].item() / (1 + math.exp(task.rewards[x, n, t] - task.rewards[x, node, token]))
        for n, t in task.ends.nonzero().tolist()
    )
    assert beats[x, node, token].item() == pytest.approx(by_hand)


def expected_loss(task, policy, objective):
    """The loss over all pairs that two draws of the reference and a Bradley-Terry label can give."""
    ref, logps = (finished(task, exact.answer_logps(task, table)) for table in (task.ref, policy))
    rewards = finished(task, task.rewards)
    n = logps.shape[1]
    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    ones = torch.ones(len(logps) * n * n)

    def pairs(won, lost):
        at = (logps[:, won], logps[:, lost], ref[:, won], ref[:, lost])
        return PairLogps(*(column.flatten() for column in at), ones, ones)

    weight = (ref[:, first] + ref[:, second]).exp() * (rewards[:, first] - rewards[:, second]).sigmoid()
    # Both orders of a pair are among the n * n, each with the probability that its first answer wins.
    return (weight.flatten() * objective(pairs(first, second))).sum() / len(logps)


def minimiser(task, objective):
    logits = task.ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(task, logits.log_softmax(-1), objective)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


@pytest.mark.parametrize("horizon", [1, 2])
def test_dpo_on_all_pairs_has_the_optimum_of_the_objective_as_its_minimum(horizon):
    task = make_testbed(vocab=4, horizon=horizon, prompts=2, seed=3, reward="ngram")
    best = exact.optimum(task, task.ref, task.rewards, BETA).policy
    found = minimiser(task, make_loss("dpo", beta=BETA))
    assert exact.sequence_kl(task, found, best).max() < 1e-8
    assert exact.sequence_kl(task, task.ref, best).min() > 0.1


def test_ipo_on_all_pairs_has_its_own_optimum_as_its_minimum():
    task = make_testbed(vocab=5, horizon=1, prompts=2, seed=3, reward="ngram")
    own = exact.ipo_optimum(task, task.ref, task.rewards, tau=0.2)
    found = minimiser(task, make_loss("ipo", tau=0.2, normalize="sum"))
    assert exact.sequence_kl(task, found, own).max() < 1e-8
    other = exact.optimum(task, task.ref, task.rewards, 0.2).policy
    assert exact.sequence_kl(task, own, other).min() > 0.01
