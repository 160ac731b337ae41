"""Curricula of pairs: which pairs each stage trains on."""

from dataclasses import replace

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.curriculum import ranked, shuffled
from rlpref.algorithms.fit import check_rows
from rlpref.binding import ConfigError

SETTINGS = {"loss": {"name": "dpo", "beta": 0.5}, "by": "scores", "order": "easy", "shares": [0.25, 1.0]}
SETTINGS |= {"epochs": 1, "batch_size": 32}


def curriculum(**changes):
    return make_algorithm("curriculum", SETTINGS | changes, "curriculum_dpo")


def collect(algorithm, models, data, index=0, runs=1):
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    round = Round(index, generators, [Costs() for _ in range(runs)])
    return algorithm.collect(models, data, round), round


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": []}, "for each stage a number above 0 and at most 1"),
        ({"shares": [0.5, 1.5]}, "algorithm.shares is .0.5, 1.5."),
        ({"by": "length"}, "'by' cannot be 'length'"),
        ({"order": "up"}, "'order' cannot be 'up'"),
        ({"loss": {"name": "aot", "beta": 0.5}, "by": "loss"}, "no pair has a loss of its own"),
        ({"rounds": 2}, "does not use 'rounds'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        curriculum(**changes)


@pytest.mark.parametrize(
    ("order", "rows"),
    [("easy", [3, 0, 4, 1, 2]), ("hard", [2, 1, 4, 0, 3]), ("middle", [4, 0, 1, 3, 2]), ("random", [4, 2, 0, 1, 3])],
)
def test_orders_by_hand(order, rows):
    ease = torch.tensor([3.0, 1.0, 0.0, 9.0, 2.0])
    by_chance = torch.tensor([[4, 2, 0, 1, 3]] * 2)
    assert ranked(torch.stack([ease, ease + 1]), order, by_chance).tolist() == [rows, rows]


def test_equal_pairs_and_random_stages_are_taken_by_chance_and_not_as_the_file_has_them():
    round = Round(0, [torch.Generator().manual_seed(seed) for seed in range(2)], [Costs(), Costs()])
    by_chance = shuffled(round, 50)
    assert all(row.sort().values.equal(torch.arange(50)) for row in by_chance)
    assert not by_chance[0].equal(by_chance[1])
    assert ranked(torch.ones(2, 50), "easy", by_chance).equal(by_chance)
    later = Round(1, round.generators, round.costs, carried=round.carried)
    assert shuffled(later, 50).equal(by_chance)


def test_stages_grow_to_all_pairs_and_labels_are_counted_once(laboratory):
    models, data = laboratory
    algorithm, n = curriculum(), len(laboratory[1].train)
    first, start = collect(algorithm, models, data)
    last, end = collect(algorithm, models, data, 1)
    assert (algorithm.rounds, len(first), len(last)) == (2, n // 4, n)
    assert [algorithm.examples(data, index) for index in (0, 1)] == [n // 4, n]
    assert (start.costs[0].labels, end.costs[0].labels) == (n, 0)
    torch.testing.assert_close(last.chosen.ids, data.train.chosen.ids)  # in their own order: the trainer shuffles


@pytest.mark.parametrize("order", ["easy", "hard"])
@pytest.mark.parametrize("by", ["scores", "reference", "loss"])
def test_the_first_stage_is_the_extreme_quarter(by, order, laboratory):
    models, data = laboratory
    pairs = data.train
    with torch.no_grad():
        ref = [models.ref_logps(side).sum(1) for side in (pairs.chosen, pairs.rejected)]
        policy = [models.policy_logps(side)[0].sum(1) for side in (pairs.chosen, pairs.rejected)]
    ease = {
        "scores": (pairs.chosen_score - pairs.rejected_score).abs(),
        "reference": ref[0] - ref[1],
        "loss": (policy[0] - ref[0]) - (policy[1] - ref[1]),  # DPO's loss falls with the margin
    }[by]
    kept, round = collect(curriculum(by=by, order=order), models, data)
    wanted = ease.sort(descending=order == "easy").values[: len(kept)]
    if by != "loss":
        assert float(round.metrics["curriculum/ease"]) == pytest.approx(float(wanted.mean()), abs=1e-5)
    gap = (kept.chosen_score - kept.rejected_score).abs()
    if by == "scores":
        torch.testing.assert_close(gap.sort().values, wanted.sort().values)
    assert float(round.metrics["curriculum/ease"]) != pytest.approx(float(ease.mean()), abs=1e-3)


def test_each_run_has_an_order_of_its_own(laboratory):
    models, data = laboratory
    alone, _ = collect(curriculum(), models, data)
    data.train = data.train[torch.cat([torch.arange(64), torch.arange(64).flip(0)])]
    both, _ = collect(curriculum(), models, data, runs=2)
    torch.testing.assert_close(both.chosen_score[:16], alone.chosen_score)
    assert len(both) == 32
    torch.testing.assert_close(both.chosen_score[16:].sort().values, alone.chosen_score.sort().values)


def test_pairs_without_scores_are_refused_by_name(laboratory):
    pairs = replace(laboratory[1].train, chosen_score=None)
    with pytest.raises(ConfigError, match=r"reads 'chosen_score'.*choose algorithm.by=reference or loss"):
        check_rows(curriculum(), pairs)
    check_rows(curriculum(by="loss"), pairs)
