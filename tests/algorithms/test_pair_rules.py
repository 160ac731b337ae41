"""rlpref.algorithms.pairing: which answers become pairs, and how often each wins."""

import pytest
import torch
from tuples import drawn_once

from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.pair_rules import (
    PAIRINGS,
    all_pairs,
    best_below,
    best_random,
    best_worst,
    bradley_terry,
    contest,
    preference,
    random_pair,
    win_rate,
)
from rlpref.algorithms.pairing import form_pairs, preferring
from rlpref.ops.blocks import Unstackable

N = 20_000
SCORES = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, -1.0, 0.0]])
SCORED = [name for name, rule in PAIRINGS.items() if not rule.compares]


def generators(seed=0):
    return [torch.Generator().manual_seed(seed)]


def near(found, p):
    return abs(found - p) < 4 * (p * (1 - p) / N) ** 0.5


def shares(chosen, rejected, k):
    """[k, k] how often each answer was chosen against each."""
    return torch.bincount(chosen * k + rejected, minlength=k * k).view(k, k) / len(chosen)


def test_best_against_worst_and_no_pair_where_all_tie():
    prompt, chosen, rejected = best_worst(SCORES, generators())
    assert prompt.tolist() == [0, 2]
    assert chosen[0] == 1
    assert rejected.tolist() == [0, 1]
    assert SCORES[2, chosen[1]] == 0.0


def test_best_against_any_lower_one_each_as_often():
    found = shares(*best_random(torch.tensor([1.0, 3.0, 3.0, 2.0, -5.0]).expand(N, 5), generators(1))[1:], 5)
    assert all(near(found[1:3, other].sum().item(), 1 / 3) for other in (0, 3, 4))  # either of the best two
    assert best_random(SCORES, generators())[0].tolist() == [0, 2]


def test_best_against_what_is_two_deviations_below_the_mean():
    scores = torch.tensor([[0.0] * 13 + [-1.0, -4.0, -9.0], [1.0, 1.0, 1.0, 1.0] * 4])
    goal = scores[0].mean() - 2 * scores[0].std()
    rows, chosen, rejected = best_below(scores, generators())
    assert rows.tolist() == [0]
    assert scores[0, chosen[0]] == 0
    assert (scores[0, rejected[0]] - goal).abs() == (scores[0] - goal).abs()[13:].min()
    assert rejected[0] != scores[0].argmin()  # the outlier is left alone


def test_all_pairs_of_unequal_scores_the_better_one_chosen():
    rows, chosen, rejected = all_pairs(SCORES, generators())
    found = sorted(zip(rows.tolist(), chosen.tolist(), rejected.tolist()))
    assert found == [(0, 1, 0), (0, 1, 2), (0, 2, 0), (2, 0, 1), (2, 2, 1)]


def test_any_pair_of_unequal_scores_each_as_often():
    found = shares(*random_pair(torch.tensor([1.0, 3.0, 3.0, 2.0]).expand(N, 4), generators())[1:], 4)
    for better, worse in [(1, 0), (2, 0), (1, 3), (2, 3), (3, 0)]:
        assert near(found[better, worse].item(), 1 / 5)


def test_bradley_terry_pairs_are_disjoint():
    scores = torch.randn(5, 7)
    prompt, chosen, rejected, _ = bradley_terry(scores, generators())
    for x in range(5):
        used = chosen[prompt == x].tolist() + rejected[prompt == x].tolist()
        assert sorted(used) == [0, 1, 2, 3, 4, 5]  # the seventh answer has no partner


@pytest.mark.parametrize("rule", [bradley_terry, preference])
def test_a_drawn_label_follows_its_probability(rule):
    """Bradley-Terry of scores, and any preference: here one that is the other's."""
    scores = torch.tensor([1.3, 0.5, -2.0, 0.0]).expand(N, 4)
    asked = (scores,) if rule is bradley_terry else (lambda r, a, b: (scores[r, a] - scores[r, b]).sigmoid(), N, 4)
    _, chosen, rejected, soft = rule(*asked, generators())
    torch.testing.assert_close(soft, (scores[0, chosen] - scores[0, rejected]).sigmoid())
    for first, difference in [(0, 0.8), (2, -2.0)]:
        pairs = (chosen == first) | (chosen == first + 1)
        assert pairs.sum() == N
        assert near((chosen[pairs] == first).double().mean().item(), torch.tensor(difference).sigmoid().item())


def test_in_a_cycle_the_one_that_wins_most_stands_against_the_one_that_wins_least():
    table = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])  # 1.6, 1.3, 1.6: 0 > 1 > 2 > 0
    table = table + torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0], [-0.1, 0.0, 0.0]])
    rows, chosen, rejected, soft = win_rate(lambda r, a, b: table[a, b], 2, 3, generators())
    assert (rows.tolist(), chosen.tolist(), rejected.tolist()) == ([0, 1], [0, 0], [1, 1])
    torch.testing.assert_close(soft, table[0, 1].expand(2))
    torch.testing.assert_close(contest(lambda r, a, b: table[a, b], 1, 3)[0], table)


@pytest.fixture
def laboratory(task, random_policy, testbed_models):
    models = testbed_models(task, random_policy(task, 1))
    return models, drawn_once(models, task, random_policy(task, 1), 2)[0].sequences


@pytest.mark.parametrize("name", PAIRINGS)
def test_pairs_are_answers_to_one_prompt_and_cost_what_was_asked(name, laboratory):
    models, answers = laboratory
    round = Round(0, generators(), [Costs()])
    pairs, chosen = form_pairs(models, PAIRINGS[name], answers, 2, round)
    assert torch.equal(pairs.chosen.ids[:, 0], pairs.rejected.ids[:, 0])
    assert round.costs[0].labels == len(answers) // (2 if PAIRINGS[name].compares else 1)
    assert (pairs.chosen_score is None) == PAIRINGS[name].compares
    assert (pairs.soft_label is None) == (not PAIRINGS[name].chance)
    if PAIRINGS[name].chance:
        gap = models.gold(pairs.chosen) - models.gold(pairs.rejected)
        torch.testing.assert_close(pairs.soft_label, gap.sigmoid())
    else:
        assert (pairs.chosen_score > pairs.rejected_score).all()
    assert set(chosen.tolist()) == {0, 1}
    assert round.metrics["pairs/ties_dropped"] == pytest.approx(1 - len(pairs) / (len(answers) / 2))


def test_every_two_answers_are_judged_once(laboratory):
    models, answers = laboratory
    round, n = Round(0, generators(), [Costs()]), len(answers) // 3
    wins = contest(preferring(models, answers[: 3 * n], 3, round), n, 3)
    assert round.costs[0].labels == 3 * n
    torch.testing.assert_close(wins + wins.mT, torch.ones_like(wins))
    torch.testing.assert_close(wins[:, 2, 0], models.preference(answers[2 : 3 * n : 3], answers[: 3 * n : 3]))


def test_runs_left_with_unequally_many_pairs_are_not_stacked(laboratory):
    models, answers = laboratory
    models.reward = lambda sequences: (sequences.ids[:, 1] * (sequences.ids[:, 0] == 3)).float()
    with pytest.raises(Unstackable, match="pairing dropped ties"):
        form_pairs(models, PAIRINGS["best_worst"], answers, 2, Round(0, generators() * 2, [Costs(), Costs()]))
