"""rlpref.testbed.optima and .exact against definitions and identities."""

import math

import pytest
import torch

from rlpref.testbed import divergences, duels, exact, optima, preferences, selection
from rlpref.testbed.task import make_testbed

BETA = 0.4


def score(task, policy, beta):
    """J of a policy, [prompts]."""
    return exact.expectation(task, policy, task.rewards) - beta * exact.sequence_kl(task, policy, task.ref)


def mean_point(task, policy, values):
    """(mean KL to the reference, mean of a function of answers)."""
    return (
        exact.sequence_kl(task, policy, task.ref).mean().item(),
        exact.expectation(task, policy, values).mean().item(),
    )


def costs_of(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(task.ref.shape, generator=generator, dtype=torch.float64) * task.ends


def test_the_optimum_is_the_tilted_reference_and_its_value_beta_log_z(task, finished):
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    ref, rewards = finished(task, exact.answer_logps(task, task.ref)), finished(task, task.rewards)
    log_z = (ref + rewards / BETA).logsumexp(1)
    torch.testing.assert_close(solved.v[:, 0], BETA * log_z)
    found = finished(task, exact.answer_logps(task, solved.policy))
    torch.testing.assert_close(found, ref + rewards / BETA - log_z[:, None])
    torch.testing.assert_close(score(task, solved.policy, BETA), solved.v[:, 0])


OPTIMA = {
    "optimum": lambda task: optima.optimum(task, task.ref, task.rewards, BETA).policy,
    "length": lambda task: optima.length_penalised(task, task.ref, task.rewards, BETA, 0.3).policy,
    "constrained": lambda task: optima.constrained(task, task.ref, task.rewards, costs_of(task), BETA, 0.3).policy,
    "best of n": lambda task: selection.best_of_n(task, task.ref, task.rewards, 5),
    "median": lambda task: selection.order_statistic(task, task.ref, task.rewards, 2, 3),
    "rounds": lambda task: selection.rejection_rounds(task, task.ref, task.rewards, 3, 3, keep_all=True),
    "ipo": lambda task: duels.ipo_optimum(task, task.ref, task.ref, preferences.bradley_terry(task), 0.1),
    "chosen": lambda task: duels.chosen_policy(task, task.ref, preferences.bradley_terry(task)),
    "nash": lambda task: duels.nash(task, task.ref, preferences.bradley_terry(task), 0.2).policy,
    "forward": lambda task: divergences.f_optimum(task, task.ref, task.rewards, BETA, divergences.FORWARD_KL),
    "js": lambda task: divergences.f_optimum(task, task.ref, task.rewards, BETA, divergences.JENSEN_SHANNON),
    "chi": lambda task: divergences.f_optimum(task, task.ref, task.rewards, BETA, divergences.CHI_SQUARED_KL),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_probabilities_sum_to_one(task, finished, name):
    policy = OPTIMA[name](task)
    torch.testing.assert_close(policy.logsumexp(-1), torch.zeros_like(policy[..., 0]), atol=1e-12, rtol=0)
    whole = finished(task, exact.answer_logps(task, policy)).exp().sum(1)
    torch.testing.assert_close(whole, torch.ones_like(whole), atol=1e-12, rtol=0)
    assert exact.sequence_kl(task, policy, task.ref).min() > 1e-3


def test_advantages_are_beta_log_ratios_and_have_no_mean_gain(task):
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    torch.testing.assert_close(solved.advantages, BETA * (solved.policy - task.ref))
    soft_mean = (task.ref + solved.advantages / BETA).logsumexp(-1)
    torch.testing.assert_close(soft_mean, torch.zeros_like(soft_mean), atol=1e-12, rtol=0)


def test_regret_is_beta_times_the_kl_to_the_optimum_and_a_sum_over_positions(task, random_policy):
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    best = solved.policy
    for seed in range(5):
        policy = random_policy(task, seed)
        regret = exact.regret(task, policy, task.ref, task.rewards, BETA)
        expected = BETA * exact.sequence_kl(task, policy, best).mean().item()
        assert regret == pytest.approx(expected, abs=1e-10)
        assert regret == pytest.approx((solved.v[:, 0] - score(task, policy, BETA)).mean().item(), abs=1e-10)
        each = exact.log_reach(task, policy).exp() * (policy.exp() * (policy - best)).sum(-1)
        positions = [BETA * each[:, task.depth == t].sum(1).mean().item() for t in range(task.tree.horizon)]
        assert min(positions) > 0
        assert sum(positions) == pytest.approx(regret, abs=1e-10)
    assert exact.regret(task, best, task.ref, task.rewards, BETA) == pytest.approx(0, abs=1e-12)


def test_kl_and_entropy_by_the_chain_rule_are_those_over_answers(task, random_policy, finished):
    p, q = random_policy(task, 0), random_policy(task, 1)
    whole_p, whole_q = (finished(task, exact.answer_logps(task, table)) for table in (p, q))
    torch.testing.assert_close(exact.sequence_kl(task, p, q), (whole_p.exp() * (whole_p - whole_q)).sum(1))
    torch.testing.assert_close(exact.entropy(task, p), -(whole_p.exp() * whole_p).sum(1))


def test_kl_and_entropy_of_a_policy_without_full_support(task, finished):
    """It never opens with token 1: what happens below it counts nothing; the other way round the KL is infinite."""
    whole = exact.answer_logps(task, task.ref)
    opens_with_1 = (task.prefixes[:, 0] == 1)[:, None] & torch.ones(3, dtype=torch.bool)
    policy = optima.conditionals_of(task, whole.masked_fill(opens_with_1, float("-inf")))
    assert policy[0, 0, 1] == float("-inf")
    p, q = (finished(task, exact.answer_logps(task, table)) for table in (policy, task.ref))
    kept = p > float("-inf")
    kl = torch.where(kept, p.exp() * (p - q), 0.0).sum(1)
    assert kl.min() > 0.1
    torch.testing.assert_close(exact.sequence_kl(task, policy, task.ref), kl)
    torch.testing.assert_close(exact.entropy(task, policy), -torch.where(kept, p.exp() * p, 0.0).sum(1))
    assert (exact.sequence_kl(task, task.ref, policy) == float("inf")).all()
    differs_where_nobody_comes = policy.masked_fill(opens_with_1, float("-inf"))
    torch.testing.assert_close(exact.sequence_kl(task, policy, differs_where_nobody_comes), torch.zeros(2).double())


def test_conditionals_of_undoes_answer_logps_up_to_a_constant(task, random_policy):
    policy = random_policy(task, 4)
    whole = exact.answer_logps(task, policy) + torch.tensor([3.0, -700.0])[:, None, None]
    torch.testing.assert_close(optima.conditionals_of(task, whole), policy)


def test_prefixes_without_mass_are_uniform_or_those_of_another_policy(task, random_policy):
    nothing = torch.full_like(task.ref, float("-inf"))
    only = nothing.clone()
    only[:, 0, 0] = 5.0
    policy = optima.conditionals_of(task, only)
    assert policy[:, 0].exp().tolist() == [[1, 0, 0]] * 2
    torch.testing.assert_close(policy[:, 1:].exp(), torch.full_like(policy[:, 1:], 1 / 3))
    other = random_policy(task, 1)
    torch.testing.assert_close(optima.conditionals_of(task, only, elsewhere=other)[:, 1:], other[:, 1:])
    with pytest.raises(ValueError, match="without any mass"):
        optima.conditionals_of(task, nothing)


def test_a_small_beta_gives_the_best_answer_and_a_large_one_the_reference(task, finished):
    greedy = optima.optimum(task, task.ref, task.rewards, 1e-3)
    best = finished(task, task.rewards).amax(1)
    torch.testing.assert_close(exact.expectation(task, greedy.policy, task.rewards), best, atol=1e-3, rtol=0)
    timid = optima.optimum(task, task.ref, task.rewards, 1e6)
    assert exact.sequence_kl(task, timid.policy, task.ref).max() < 1e-11
    torch.testing.assert_close(timid.v[:, 0], exact.expectation(task, task.ref, task.rewards), atol=1e-5, rtol=0)


def test_the_slope_of_the_frontier_is_beta_and_the_frontier_is_concave(task):
    betas = torch.logspace(1, -1, 101, dtype=torch.float64).tolist()
    points = optima.frontier(task, task.ref, task.rewards, betas)
    kl, reward = torch.tensor(points["kl"]).double(), torch.tensor(points["reward"]).double()
    slope = reward.diff() / kl.diff()
    between = (torch.tensor(betas[1:]) * torch.tensor(betas[:-1])).sqrt()
    assert ((slope / between - 1).abs() < 0.01).all()
    assert (kl.diff() > 0).all()
    assert (slope.diff() < 0).all()


def test_no_policy_lies_above_the_frontier(task, random_policy):
    for seed in range(5):
        policy = random_policy(task, seed, spread=0.6 * seed)
        kl, reward = mean_point(task, policy, task.rewards)
        assert optima.frontier_reward(task, task.ref, task.rewards, kl) - reward >= -1e-9


@pytest.mark.parametrize("name", [name for name in OPTIMA if name != "optimum"])
def test_no_other_optimum_lies_above_the_frontier(task, name):
    kl, reward = mean_point(task, OPTIMA[name](task), task.rewards)
    assert optima.frontier_reward(task, task.ref, task.rewards, kl) - reward >= -1e-9


@pytest.mark.parametrize("beta", [0.05, 0.4, 5.0])
def test_the_optimum_lies_on_the_frontier(task, beta):
    kl, reward = mean_point(task, optima.optimum(task, task.ref, task.rewards, beta).policy, task.rewards)
    assert optima.frontier_reward(task, task.ref, task.rewards, kl) == pytest.approx(reward, abs=1e-9)
    assert optima.tilted(task, task.ref, task.rewards, beta) == pytest.approx((kl, reward), abs=1e-10)


def test_the_frontier_runs_from_the_reference_to_the_best_answers(task, finished):
    assert optima.frontier_reward(task, task.ref, task.rewards, 0.0) == pytest.approx(0, abs=1e-4)
    best = finished(task, task.rewards).amax(1).mean().item()
    assert optima.frontier_reward(task, task.ref, task.rewards, 50.0) == pytest.approx(best, abs=1e-3)


def test_rounds_with_a_rolling_reference_divide_beta_and_with_the_initial_one_keep_it(task):
    """Each round solves at beta against the reference it is given: the policy before it, or the first one."""
    rounds, rolling, fixed = 4, task.ref, task.ref
    for _ in range(rounds):
        rolling = optima.optimum(task, rolling, task.rewards, BETA).policy
        fixed = optima.optimum(task, task.ref, task.rewards, BETA).policy
    torch.testing.assert_close(rolling, optima.optimum(task, task.ref, task.rewards, BETA / rounds).policy)
    torch.testing.assert_close(fixed, optima.optimum(task, task.ref, task.rewards, BETA).policy)


def test_a_penalty_on_length_is_a_reward_and_shortens_answers(task, finished):
    size = exact.lengths(task)
    assert sorted(size[task.ends].tolist()) == [1] + [2] * 2 + [3] * 12  # EOS is a token of the answer
    short = optima.length_penalised(task, task.ref, task.rewards, BETA, alpha=0.5)
    plain = optima.length_penalised(task, task.ref, task.rewards, BETA, alpha=0.0)
    torch.testing.assert_close(plain.policy, optima.optimum(task, task.ref, task.rewards, BETA).policy)
    logs = finished(task, exact.answer_logps(task, short.policy) - exact.answer_logps(task, plain.policy))
    slope = logs + 0.5 / BETA * size[task.ends]  # constant per prompt
    torch.testing.assert_close(slope, slope[:, :1].expand_as(slope))
    means = [exact.expectation(task, solved.policy, size.expand_as(task.ref)) for solved in (short, plain)]
    assert (means[0] < means[1]).all()


@pytest.mark.parametrize("limit", [0.2, 0.3])
def test_a_binding_limit_is_met_exactly_and_the_multiplier_is_its_price(task, limit):
    costs = costs_of(task)
    solved = optima.constrained(task, task.ref, task.rewards, costs, BETA, limit)
    assert mean_point(task, solved.policy, costs)[1] == pytest.approx(limit, abs=1e-8)
    assert solved.multiplier > 0.1
    step = 1e-4
    either = [optima.constrained(task, task.ref, task.rewards, costs, BETA, limit + d) for d in (step, -step)]
    high, low = (score(task, other.policy, BETA).mean().item() for other in either)
    assert (high - low) / (2 * step) == pytest.approx(solved.multiplier, rel=1e-4)  # the envelope theorem


def test_no_cheap_enough_policy_does_better_than_the_constrained_optimum(task, random_policy):
    costs, limit = costs_of(task), 0.4
    best = score(task, optima.constrained(task, task.ref, task.rewards, costs, BETA, limit).policy, BETA).mean()
    feasible = 0
    for seed in range(100):
        # Near the best tilt at another price, so that some of them come close.
        policy = (OPTIMA["constrained"](task) + 0.1 * random_policy(task, seed)).log_softmax(-1)
        if mean_point(task, policy, costs)[1] <= limit:
            feasible += 1
            assert score(task, policy, BETA).mean() < best
    assert feasible > 20


def test_a_limit_that_does_not_bind_has_no_price_and_an_impossible_one_is_refused(task, finished):
    costs = costs_of(task)
    free = optima.constrained(task, task.ref, task.rewards, costs, BETA, limit=1.0)
    assert free.multiplier == 0
    torch.testing.assert_close(free.policy, optima.optimum(task, task.ref, task.rewards, BETA).policy)
    cheapest = finished(task, costs).amin(1).mean().item()
    with pytest.raises(ValueError, match="no policy costs less"):
        optima.constrained(task, task.ref, task.rewards, costs, BETA, limit=cheapest)


def test_near_the_reference_the_reward_rises_with_the_root_of_the_kl():
    """R - R_ref = sqrt(2 KL Var_ref r) for small KL: the law of Bai et al. 2022 (2204.05862) and Gao et al. 2023."""
    task = make_testbed(vocab=4, horizon=2, prompts=1, seed=0, reward="ngram")
    kl, reward = optima.tilted(task, task.ref, task.rewards, 1e4)
    assert reward == pytest.approx(math.sqrt(2 * kl), rel=1e-3)


def test_the_path_of_a_proxy_is_what_each_of_its_optima_is_worth(task):
    proxy = torch.randn(task.rewards.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * task.ends
    betas = [100.0, 1.0, 0.05]
    kl, means = optima.tilted_path(task, task.ref, proxy, betas, [task.rewards, proxy])
    for i, beta in enumerate(betas):
        policy = optima.optimum(task, task.ref, proxy, beta).policy
        expected = [exact.expectation(task, policy, values).mean() for values in (task.rewards, proxy)]
        torch.testing.assert_close(means[i], torch.stack(expected))
        torch.testing.assert_close(kl[i], exact.sequence_kl(task, policy, task.ref).mean())


DIVERGENCES = [divergences.REVERSE_KL, divergences.FORWARD_KL, divergences.JENSEN_SHANNON, divergences.CHI_SQUARED_KL]


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=["reverse", "forward", "js", "chi"])
def test_the_path_under_a_divergence_is_what_each_of_its_optima_is_worth(task, divergence):
    proxy = torch.randn(task.rewards.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * task.ends
    betas = [100.0, 1.0, 0.05]
    path = divergences.f_path(task, task.ref, proxy, betas, divergence, [task.rewards], DIVERGENCES[:2])
    for i, beta in enumerate(betas):
        policy = divergences.f_optimum(task, task.ref, proxy, beta, divergence)
        own = [divergences.f_divergence(task, policy, task.ref, each).mean() for each in DIVERGENCES[:2]]
        torch.testing.assert_close(path.kl[i], exact.sequence_kl(task, policy, task.ref).mean())
        torch.testing.assert_close(path.entropy[i], exact.entropy(task, policy).mean())
        torch.testing.assert_close(path.divergences[i], torch.stack(own))
        torch.testing.assert_close(path.means[i, 0], exact.expectation(task, policy, task.rewards).mean())


def test_token_divergences_sum_to_that_of_answers_for_the_reverse_kl_alone(task, random_policy):
    policy = random_policy(task, 4)
    tokens = divergences.token_f_divergence(task, policy, task.ref, divergences.REVERSE_KL)
    torch.testing.assert_close(tokens, exact.sequence_kl(task, policy, task.ref))
    for other in DIVERGENCES[1:]:
        tokens = divergences.token_f_divergence(task, policy, task.ref, other)
        assert (tokens - divergences.f_divergence(task, policy, task.ref, other)).abs().min() > 0.005
