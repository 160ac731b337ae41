"""rlpref.testbed.measures against definitions that share no code with it."""

import math

import numpy as np
import pytest
import torch

from rlpref.testbed import exact, measures, optima
from rlpref.testbed.task import make_testbed
from rlpref.types import cat

BETA = 0.4


def truncated(task, table, length):
    """[prompts, outcomes] log-probs of the first `length` tokens of an answer, fewer where it ends earlier."""
    whole = exact.log_reach(task, table)[:, :, None] + table
    depth = task.depth[:, None]
    return whole[:, ((depth < length - 1) & task.ends) | (depth == length - 1).expand_as(task.ends)]


def test_kl_by_position_is_what_each_token_adds_to_the_kl_of_truncated_answers(random_policy):
    task = make_testbed(vocab=4, horizon=3, prompts=2, seed=0, reward="ngram")
    p, q = random_policy(task, 0), random_policy(task, 1)
    kls = []
    for length in (1, 2, 3):
        whole_p, whole_q = truncated(task, p, length), truncated(task, q, length)
        torch.testing.assert_close(whole_p.exp().sum(1), torch.ones(2).double())
        kls.append((whole_p.exp() * (whole_p - whole_q)).sum(1))
    by_position = measures.kl_by_position(task, p, q)
    torch.testing.assert_close(by_position.cumsum(1), torch.stack(kls, 1))
    torch.testing.assert_close(by_position.sum(1), exact.sequence_kl(task, p, q))


def test_regret_by_position_adds_up_to_the_regret_by_prompt_and_of_all(task, random_policy):
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    policy = random_policy(task, 1)
    parts = measures.regret_by_position(task, policy, solved.policy, BETA)
    assert (parts > 0).all()
    objective = exact.expectation(task, policy, task.rewards) - BETA * exact.sequence_kl(task, policy, task.ref)
    torch.testing.assert_close(parts.sum(1), solved.v[:, 0] - objective)
    assert parts.sum(1).mean().item() == pytest.approx(exact.regret(task, policy, task.ref, task.rewards, BETA))
    assert measures.regret_by_position(task, solved.policy, solved.policy, BETA).abs().max() == 0


def test_a_policy_wrong_at_one_depth_has_regret_there_only(task, random_policy):
    best = optima.optimum(task, task.ref, task.rewards, BETA).policy
    for depth in range(3):
        policy = torch.where((task.depth == depth)[:, None], random_policy(task, 1), best)
        parts = measures.regret_by_position(task, policy, best, BETA)
        assert (parts[:, depth] > 1e-3).all()
        assert parts.sum() == parts[:, depth].sum()


def test_tokens_that_are_never_given_count_for_nothing(task):
    """A policy that never ends before the horizon."""
    policy = task.ref.clone()
    policy[:, task.depth < 2, 0] = float("-inf")
    policy = policy.log_softmax(-1)
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    assert torch.isfinite(measures.regret_by_position(task, policy, solved.policy, BETA)).all()
    advantage = solved.q - solved.v[:, :, None]
    assert -1 < measures.credit_correlation(task, policy, task.ref, advantage, policy) < 1


def test_efficiency_is_one_on_the_frontier_and_less_below_it(task, random_policy):
    def efficiency(policy):
        kl = exact.sequence_kl(task, policy, task.ref).mean().item()
        reward, start = (exact.expectation(task, p, task.rewards).mean().item() for p in (policy, task.ref))
        return measures.kl_efficiency(reward, start, optima.frontier_reward(task, task.ref, task.rewards, kl), kl)

    for beta in (0.05, 0.4, 5.0):
        assert efficiency(optima.optimum(task, task.ref, task.rewards, beta).policy) == pytest.approx(1, abs=1e-6)
    assert efficiency(random_policy(task, 1)) < 1
    assert efficiency(optima.optimum(task, task.ref, -task.rewards, 0.4).policy) < 0
    assert efficiency(task.ref) is None


def test_out_of_support_mass_by_hand(task, random_policy):
    policy = random_policy(task, 1)
    only_empty = torch.zeros_like(task.ends)
    only_empty[0, 0] = True  # the answer that is EOS alone
    torch.testing.assert_close(measures.out_of_support_mass(task, policy, only_empty), 1 - policy[:, 0, 0].exp())
    per_prompt = torch.stack([only_empty, task.ends])
    assert measures.out_of_support_mass(task, policy, per_prompt)[1] == 0
    torch.testing.assert_close(
        measures.out_of_support_mass(task, policy, torch.zeros_like(task.ends)), torch.ones(2).double()
    )


def test_the_support_of_data_is_the_set_of_its_answers(task, random_policy, testbed_models, testbed_data):
    """Both sides of all pairs; the mass outside is 1 minus that of the answers listed by hand."""
    pairs = testbed_data(task, testbed_models(task), pairs=6).train
    seen = measures.support(task, cat([pairs.chosen, pairs.rejected]))
    policy = random_policy(task, 1)
    listed = {
        tuple(ids[real].tolist())
        for side in (pairs.chosen, pairs.rejected)
        for ids, real in zip(side.ids, side.attention_mask)
    }
    assert 0 < seen.sum() == len(listed) < seen[:, task.ends].numel()
    mass = [0.0, 0.0]
    for prompt, *answer in listed:
        x, node, logp = prompt - task.tree.vocab, 0, 0.0
        for token in answer:
            logp += policy[x, node, token].item()
            node = node * (task.tree.vocab - 1) + token
        mass[x] += math.exp(logp)
    assert measures.out_of_support_mass(task, policy, seen).tolist() == pytest.approx([1 - m for m in mass])


def advantages(task):
    solved = optima.optimum(task, task.ref, task.rewards, BETA)
    return solved.policy, solved.q - solved.v[:, :, None]


def test_the_optimum_gives_every_token_its_exact_credit(task, random_policy):
    best, advantage = advantages(task)
    for occupancy in (best, task.ref, random_policy(task, 2)):
        found = measures.credit_correlation(task, best, task.ref, advantage, occupancy)
        assert found == pytest.approx(1, abs=1e-12)
    opposite = 2 * task.ref - best  # log-ratios turned round; no policy, but the correlation does not ask
    assert measures.credit_correlation(task, opposite, task.ref, advantage, task.ref) == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("own", [True, False])
def test_credit_correlation_is_the_weighted_one_over_prefixes_and_tokens(task, random_policy, own):
    policy, (_, advantage) = random_policy(task, 1), advantages(task)
    occupancy = policy if own else task.ref
    weights = []
    for x in range(2):
        for node in range(task.tree.inner):
            tokens = task.prefixes[node, : task.depth[node]].tolist()
            at, reach = 0, 1.0
            for token in tokens:
                reach *= occupancy[x, at, token].exp().item()
                at = at * 2 + token
            weights += [reach * p for p in occupancy[x, node].exp().tolist()]
    pairs = np.stack([(policy - task.ref).flatten().numpy(), advantage.flatten().numpy()])
    covariance = np.cov(pairs, aweights=np.array(weights))
    expected = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]) ** 0.5
    assert abs(expected) < 0.95
    found = measures.credit_correlation(task, policy, task.ref, advantage, occupancy)
    assert found == pytest.approx(expected, abs=1e-10)


def test_a_policy_that_has_not_moved_gives_no_credit(task):
    rounded = task.ref.float().double().log_softmax(-1)
    for policy in (task.ref, rounded):
        assert measures.credit_correlation(task, policy, task.ref, advantages(task)[1], task.ref) is None
