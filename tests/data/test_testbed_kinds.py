"""K-wise and unpaired data of the testbed: scores and labels that follow from the gold reward."""

import math
from itertools import permutations

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.data.testbed import answer_texts
from rlpref.testbed import exact
from rlpref.types import Answers, Lists, Pairs

K = {"kind": "kwise", "k": 3}


@pytest.fixture
def build(testbed_models, testbed_data, task):
    def make(pairs=400, **settings):
        return testbed_data(task, testbed_models(task), pairs, 40, **settings)

    return make


@pytest.fixture
def gold(task):
    """The reward of an answer, by the words of prompt and answer."""
    ends, texts = task.ends.flatten().tolist(), answer_texts(task)
    tables = [
        {text: r for text, r, end in zip(texts, rewards, ends) if end} for rewards in task.rewards.flatten(1).tolist()
    ]
    return lambda prompt, text: tables[int(prompt[7:-1])][text]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_ranking_of_a_list_is_plackett_luce_in_the_gold_rewards(build, gold, temperature):
    rows = build(4_000, preference_options={"temperature": temperature}, **K).rows.train
    rewards = [[gold(row.prompt, text) / temperature for text in row.responses] for row in rows]
    rankings = [tuple(sorted(range(3), key=lambda i: -row.scores[i])) for row in rows]
    orders = list(permutations(range(3)))
    p = torch.tensor([[plackett_luce(each, order) for order in orders] for each in rewards])
    seen = torch.tensor([[ranking == order for order in orders] for ranking in rankings])
    for statistic in (p.log(), *torch.eye(6).expand(len(rows), 6, 6).unbind(1)):  # the likelihood tells the temperature
        mean = (p * statistic).sum(1)
        spread = (p * statistic**2).sum(1) - mean**2
        assert abs((statistic[seen] - mean).sum()) < 4 * spread.sum().sqrt()


def plackett_luce(rewards, order):
    """Probability of a ranking: each place goes to one of those left, in proportion to exp(reward)."""
    worths = [math.exp(rewards[i]) for i in order]
    return math.prod(worth / sum(worths[place:]) for place, worth in enumerate(worths))


def test_a_random_pair_of_two_answers_is_a_bradley_terry_pair(build, gold):
    data = build(8_000, kind="kwise", k=2, pairs_by="random")
    surprise = spread = 0.0
    apart = [row for row in data.rows.train if row.chosen != row.rejected]
    for row in apart:
        first, second = sorted((row.chosen, row.rejected))
        p = 1 / (1 + math.exp(gold(row.prompt, second) - gold(row.prompt, first)))
        margin = math.log(p / (1 - p))  # as a weight it tells labels that are too noisy or too clear
        surprise, spread = surprise + margin * ((row.chosen == first) - p), spread + margin**2 * p * (1 - p)
    assert abs(surprise) < 4 * spread**0.5
    assert len(data.train) == 8_000


def test_unpaired_labels_are_coins_against_the_mean_reward_of_the_reference(build, task, gold):
    data = build(8_000, kind="unpaired")
    mean = exact.expectation(task, task.ref, task.rewards)
    rewards = torch.tensor([row.score for row in data.rows.train], dtype=torch.float64)
    prompt = torch.tensor([int(row.prompt[7:-1]) for row in data.rows.train])
    label = torch.tensor([row.label for row in data.rows.train]).double()
    p = (rewards - mean[prompt]).sigmoid()
    for weight in (torch.ones_like(p), p - 0.5, (prompt == 0).double()):
        assert abs((weight * (label - p)).sum()) < 4 * (weight * (p * (1 - p)).sqrt()).norm()
    assert all(row.score == gold(row.prompt, row.completion) for row in data.rows.train[:50])


def test_pairs_carry_the_probability_that_the_chosen_wins(build, gold):
    rows = build().rows.train
    for row in rows[:100]:
        margin = gold(row.prompt, row.chosen) - gold(row.prompt, row.rejected)
        assert row.soft_label == pytest.approx(1 / (1 + math.exp(-margin)))
    assert any(row.soft_label < 0.5 for row in rows)


def test_each_kind_has_its_batch(build):
    lists, answers, pairs = build(**K), build(kind="unpaired"), build(pairs_by="all", **K)
    assert (type(lists.train), type(lists.test), len(lists.train)) == (Lists, Pairs, 400)
    assert (type(answers.train), answers.test, len(answers.train)) == (Answers, None, 400)
    assert type(pairs.train) is Pairs
    assert (pairs.train.chosen_score > pairs.train.rejected_score).all()
    assert lists.card["kwise_train"] == {"rows": 400, "responses": 1200, "unscored": 0}
    assert pairs.card["n_train"] == len(pairs.train) == 1200
    assert pairs.card["kwise_train"]["rows_without_pair"] == 0
    assert {data.card["kind"] for data in (lists, pairs)} == {"kwise"}
    assert lists.card["rows_hash"] == pairs.card["rows_hash"] != answers.card["rows_hash"]
    assert (lists.card["pairs_by"], pairs.card["pairs_by"]) == (None, "all")
    best = build(pairs_by="best_worst", **K)
    assert torch.equal(best.test.chosen.ids, lists.test.chosen.ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "kwise"}, "needs data.k of 2 or more"),
        ({"kind": "kwise", "k": 1}, "needs data.k of 2 or more answers to a prompt, not 1"),
        ({"k": 3}, "data.kind 'pairs' does not use 'k'"),
        ({"kind": "unpaired", "preference": "flips"}, "'flips' labels pairs; data.kind 'unpaired'"),
        (K | {"pairs_from": "near"}, "data.pairs_from 'near' makes pairs"),
        ({"kind": "lists"}, "'kind' cannot be 'lists'; it takes one of 'pairs', 'kwise', 'unpaired'"),
    ],
)
def test_settings_that_do_not_go_with_the_kind_are_refused(build, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)
