"""Every reward family against its definition on strings, one answer at a time."""

import itertools
import math
import time

import pytest
import scipy.stats
import torch

from rlpref.binding import ConfigError
from rlpref.testbed import rewards
from rlpref.testbed.exact import answer_logps, expectation
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import answer_lengths, make_testbed

OPTIONS = {"length": {"slope": 0.5}, "needle": {"k": 3.0}, "abstain": {"cost": 1.0, "correct": [0.1, 0.6, 0.9]}}


def make(reward, sizes=(4, 4, 3), seed=0, **options):
    return make_testbed(*sizes, seed=seed, reward=reward, options=options or OPTIONS.get(reward))


def strings(task):
    """(node, token, tokens without EOS) of every finished answer, walked from the tree's own numbering."""
    for node, token in task.ends.nonzero().tolist():
        tokens, up = [], node
        while up:
            tokens.insert(0, (up - 1) % (task.tree.vocab - 1) + 1)
            up = (up - 1) // (task.tree.vocab - 1)
        yield node, token, [*tokens, token] if token else tokens


def seeded(seed=9):
    return torch.Generator().manual_seed(seed)


def adjacent(tokens, *factor):
    return any(tuple(tokens[i : i + len(factor)]) == factor for i in range(len(tokens)))


def balanced(tokens):
    brackets = "".join("()"[t - 1] for t in tokens if t in (1, 2))
    while "()" in brackets:
        brackets = brackets.replace("()", "")
    return not brackets


BONUS = {
    "order": lambda s: 2 * (1 in s and 2 in s[s.index(1) :]),
    "forbidden": lambda s: -2 * adjacent(s, 1, 2),
    "parity": lambda s: 2 * (s.count(1) % 2 == 0),
    "brackets": lambda s: 2 * balanced(s),
}


@pytest.mark.parametrize("family", BONUS)
def test_an_automatons_reward_is_its_bonus_and_small_weights(family):
    task = make("ngram")
    found = rewards.REWARDS[family](task, seeded())
    weights = 0.3 * torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    outcomes = set()
    for node, token, tokens in strings(task):
        outcomes.add(BONUS[family](tokens))
        for x in range(3):
            by_hand = BONUS[family](tokens) + sum(weights[x, t].item() for t in tokens)
            assert found[x, node, token].item() == pytest.approx(by_hand, abs=1e-12)
    assert len(outcomes) == 2


def ngram_by_hand(tokens, unigram, bigram):
    pairs = sum(bigram[a, b].item() for a, b in itertools.pairwise(tokens))
    return sum(unigram[t].item() for t in tokens) + pairs


def test_the_ngram_reward_is_the_sum_of_its_weights():
    task = make("ngram")
    found, generator = rewards.ngram(task, seeded()), seeded()
    unigram, bigram = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 4))
    bigram *= torch.rand(4, 4, generator=generator) < 0.35
    for node, token, tokens in strings(task):
        for x in range(3):
            by_hand = ngram_by_hand(tokens, unigram[x], bigram)
            assert found[x, node, token].item() == pytest.approx(by_hand, abs=1e-12)


GOLDEN = {  # what the first version of the testbed gave: some rewards of prompt 1, and the sum of all squares
    ("ngram", 4, 2, 4, 0): [-0.4588594244680924, 0.03308212019841196, 0.10551761178792757, 69.57513182568042],
    ("order", 4, 2, 4, 0): [-0.5427558038039036, 5.230407556444415, 0.14960109458344495, 104.64659405911785],
    ("ngram", 5, 4, 3, 3): [0.570796610924204, 0.0, 0.7095644780094221, 1871.072752765336],
    ("order", 5, 4, 3, 3): [0.14560329926603174, 0.0, 0.24838700361125968, 1490.1216242974124],
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_the_first_two_rewards_keep_their_numbers(case):
    reward, vocab, horizon, prompts, seed = case
    table = make_testbed(vocab, horizon, prompts, seed, reward).rewards
    found = [*table[1].flatten()[[0, 6, 15]].tolist(), (table**2).sum().item()]
    assert found == pytest.approx(GOLDEN[case], abs=1e-12)


def test_length_adds_its_slope_in_standard_deviations():
    task = make("ngram")
    plain, sloped = (rewards.length(task, seeded(), slope) for slope in (0.0, 0.7))
    torch.testing.assert_close(plain, rewards.standardised(task, rewards.ngram(task, seeded())))
    for node, token, tokens in strings(task):
        gained = (sloped - plain)[:, node, token]
        torch.testing.assert_close(gained, torch.full_like(gained, 0.7 * len(tokens)))
        assert answer_lengths(task)[node, token] == len(tokens)


@pytest.mark.parametrize("k", [1.0, 3.0, 6.0])
def test_the_needle_is_one_prefix_of_about_the_asked_mass(k):
    task = make("ngram", (5, 4, 3))
    found = rewards.needle(task, seeded(), k)
    mass = expectation(task, task.ref, found)
    assert (mass.log() + k).abs().max() < math.log(2)
    answers = [(node, token, [*tokens, *([0] if token == 0 else [])]) for node, token, tokens in strings(task)]
    for x in range(3):
        inside = [tokens for node, token, tokens in answers if found[x, node, token] == 1]
        common = list(itertools.takewhile(lambda column: len(set(column)) == 1, zip(*inside)))
        prefix = [column[0] for column in common]
        assert inside == [tokens for _, _, tokens in answers if tokens[: len(prefix)] == prefix]
        assert set(found[x].unique().tolist()) == {0.0, 1.0}


def test_a_needle_of_no_prefixs_mass_is_refused_with_the_range():
    with pytest.raises(ConfigError, match=r"'needle' finds no prefix of mass e\^-40\.0.*can lie about between"):
        make("needle", k=40.0)


def test_abstaining_is_worth_nothing_and_an_answer_its_average_payoff():
    task = make("abstain", cost=2.0, correct=[0.0, 0.5, 0.9])
    for node, token, tokens in strings(task):
        by_hand = [0, 0, 0] if 3 in tokens else [-2.0, 0.5 - 2 * 0.5, 0.9 - 2 * 0.1]
        assert task.rewards[:, node, token].tolist() == pytest.approx(by_hand)
    assert (task.rewards[:, ~task.ends] == 0).all()


@pytest.mark.parametrize("cost", [0.5, 2.0])
def test_the_best_policy_abstains_below_chows_threshold(cost):
    threshold = cost / (1 + cost)
    task = make("abstain", cost=cost, correct=[threshold - 0.1, threshold + 0.1, threshold])
    best = optimum(task, task.ref, task.rewards, 0.005).policy
    abstains = rewards.contains(task, [3], "ABSTAIN").double()
    chance, before = (expectation(task, policy, abstains) for policy in (best, task.ref))
    assert chance[0] > 0.999
    assert chance[1] < 0.001
    assert chance[2].item() == pytest.approx(before[2].item())


def test_every_family_but_the_payoffs_is_standard_under_the_reference():
    for name, family in rewards.REWARDS.items():
        task = make(name)
        mean = expectation(task, task.ref, task.rewards)
        variance = expectation(task, task.ref, task.rewards**2)
        standard = mean.abs().max() < 1e-12 and (variance - 1).abs().max() < 1e-12
        assert standard != (family in rewards.PAYOFFS), name
        assert task.rewards.dtype == torch.float64


@pytest.mark.parametrize(
    ("reward", "options", "message"),
    [
        ("ngram", {"slope": 1.0}, "testbed.reward 'ngram' does not use 'slope'"),
        ("length", {}, "testbed.reward 'length' needs a value for: slope"),
        ("length", {"slop": 1.0}, "Did you mean 'slope'"),
        ("needle", {"k": "many"}, "'k' cannot be 'many'; it takes a number"),
        ("forbidden", {"factor": 3}, "'factor' cannot be 3; it takes a list whose every entry is a whole number"),
        ("forbidden", {"factor": [1, 4]}, r"testbed.options.factor is \[1, 4\]; it takes 1 to 4 tokens"),
        ("forbidden", {"factor": [1] * 5}, "it takes 1 to 4 tokens"),
        ("abstain", {"cost": 1.0, "correct": [0.5]}, "one probability for each of the 3 prompts"),
        ("abstain", {"cost": 1.0, "correct": [0.5, 0.5, 1.5]}, "one probability"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(reward, options, message):
    with pytest.raises(ConfigError, match=message):
        make_testbed(4, 4, 3, seed=0, reward=reward, options=options)


@pytest.mark.parametrize(("reward", "sizes"), [("brackets", (2, 3, 1)), ("order", (3, 1, 1))])
def test_a_task_too_small_for_its_reward_is_refused(reward, sizes):
    with pytest.raises(ConfigError, match=f"'{reward}' needs testbed.vocab >= 3 and testbed.horizon >= 2"):
        make(reward, sizes)


def test_costs_count_and_mark():
    task = make("ngram")
    toxic, unsafe = rewards.toxicity(task, seeded(), 2), rewards.unsafe(task, seeded(), [2, 1])
    for node, token, tokens in strings(task):
        assert toxic[:, node, token].tolist() == [tokens.count(2)] * 3
        assert unsafe[:, node, token].tolist() == [adjacent(tokens, 2, 1)] * 3
    assert (toxic[:, ~task.ends] == 0).all()
    assert (unsafe[:, ~task.ends] == 0).all()
    with pytest.raises(ConfigError, match=r"cost_options\.token is"):
        rewards.toxicity(task, seeded(), 4)


@pytest.mark.parametrize("correlation", [-1.0, -0.6, 0.0, 0.3])
def test_a_conflicting_cost_has_exactly_the_asked_correlation(correlation):
    task = make("brackets")
    cost = rewards.conflict(task, seeded(), correlation)
    assert expectation(task, task.ref, cost).abs().max() < 1e-12
    for product, value in ((cost**2, 1.0), (cost * task.rewards, correlation)):
        torch.testing.assert_close(expectation(task, task.ref, product), torch.full((3,), value).double())
    with pytest.raises(ConfigError, match="between -1 and 1"):
        rewards.conflict(task, seeded(), 1.5)


@pytest.mark.parametrize("nu", [0.7, 1.0, 3.0])
def test_the_heavy_tailed_proxy_adds_students_noise(nu):
    task = make("ngram", (5, 5, 4))
    proxy = rewards.heavy_tailed(task, nu, 2.0, seeded())
    noise = ((proxy - task.rewards) / 2.0)[:, task.ends].flatten()
    assert scipy.stats.kstest(noise.numpy(), scipy.stats.t(nu).cdf).pvalue > 0.01
    assert (proxy[:, ~task.ends] == 0).all()
    assert torch.equal(rewards.heavy_tailed(task, nu, 0.0, seeded()), task.rewards)
    with pytest.raises(ConfigError, match="nu > 0"):
        rewards.heavy_tailed(task, 0.0, 1.0, seeded())


@pytest.mark.parametrize("reward", rewards.REWARDS)
def test_the_default_size_of_the_experiments_is_made_at_once(reward):
    options = {"abstain": {"cost": 1.0, "correct": [0.2, 0.4, 0.6, 0.8]}}.get(reward, OPTIONS.get(reward))
    started = time.process_time()
    task = make_testbed(8, 5, 4, seed=0, reward=reward, options=options)
    assert time.process_time() - started < 2
    assert answer_logps(task, task.ref).exp().sum().item() == pytest.approx(4)


@pytest.mark.parametrize(("cost", "options"), [("toxicity", {"token": 2}), ("conflict", {"correlation": 0.3})])
def test_a_cost_leaves_the_task_as_it_is(cost, options):
    plain = make("ngram")
    costly = make_testbed(4, 4, 3, seed=0, reward="ngram", cost=cost, cost_options=options)
    assert plain.costs is None
    assert torch.equal(plain.rewards, costly.rewards)
    assert torch.equal(plain.ref, costly.ref)
    again = make_testbed(4, 4, 3, seed=0, reward="ngram", cost=cost, cost_options=options)
    assert torch.equal(again.costs, costly.costs)
    if cost == "conflict":
        torch.testing.assert_close(
            expectation(plain, plain.ref, costly.costs * plain.rewards), torch.full((3,), 0.3).double()
        )


def test_the_proxy_scores_an_answer_alike_every_time():
    task = make("ngram")
    first, again, other = (rewards.proxy_scorer(task, 2.0, 1.0, seed) for seed in (0, 0, 1))
    assert torch.equal(first.task.rewards, again.task.rewards)
    assert not torch.equal(first.task.rewards, other.task.rewards)
    assert first.name == "proxy"
    assert torch.equal(rewards.proxy_scorer(task, 2.0, 0.0, 0).task.rewards, task.rewards)
