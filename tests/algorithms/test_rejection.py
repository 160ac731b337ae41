"""Rejection sampling: which answers are kept, by hand, and their distribution against order statistics."""

from types import SimpleNamespace

import pytest
import torch
from tuples import every_tuple

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.ops.blocks import Unstackable
from rlpref.testbed.exact import answer_logps, expectation
from rlpref.testbed.selection import order_statistic
from rlpref.testbed.task import answer_places, make_testbed
from rlpref.types import Samples

SETTINGS = {
    "rounds": 3,
    "epochs": 1,
    "batch_size": 32,
    "prompts_per_round": 4,
    "k": 4,
    "keep": "max",
    "stages": "last",
    "top": None,
    "threshold": None,
    "growth": None,
    "temperature": None,
}
REST = {"keep": "threshold", "threshold": 4.5, "growth": 2.0}


def rejection(**changes):
    return make_algorithm("rejection", SETTINGS | changes, "rejection")


def collect(algorithm, models, data, index=0, previous=None, runs=1):
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    round = Round(index, generators, [Costs() for _ in range(runs)], previous)
    return algorithm.collect(models, data, round), round


@pytest.fixture
def laboratory(task, testbed_models, testbed_data):
    """Answers score 3, 1, 0, 2 for the first prompt and 4 more for each prompt after it."""
    models = testbed_models(task)
    data = testbed_data(task, models)
    models.reward = lambda sequences: (
        torch.tensor([3.0, 1.0, 0.0, 2.0]).repeat(len(sequences) // 4) + 4 * (torch.arange(len(sequences)) // 4)
    )
    return models, data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "best"}, "'keep' cannot be 'best'"),
        ({"keep": "top"}, "keep 'top' needs a value for 'top'"),
        ({"top": 0.5}, "keep 'max' does not use 'top'; set it to null"),
        ({"keep": "top", "top": 1.5}, "algorithm.top must be above 0 and at most 1, not 1.5"),
        ({"keep": "threshold", "threshold": 1.0}, "keep 'threshold' needs a value for 'growth'"),
        ({"growth": 1.0}, "keep 'max' does not use 'growth'"),
        ({"temperature": 0.0}, "algorithm.temperature must be above 0, not 0.0; null: the policy's own"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        rejection(**changes)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [3, 7, 11, 15]),
        ({"keep": "median"}, [1, 5, 9, 13]),
        ({"keep": "random"}, [3, 7, 11, 15]),  # the first that was drawn
        ({"keep": "top", "top": 0.25}, [15, 12, 13, 14]),
        (REST, [7, 5, 6, 11, 9, 8, 10, 15, 13, 12, 14]),
    ],
)
def test_what_is_kept_by_hand(changes, kept, laboratory):
    algorithm = rejection(**changes)
    answers, round = collect(algorithm, *laboratory)
    assert sorted(answers.score.tolist()) == sorted(kept)
    assert len(answers) <= algorithm.examples(laboratory[1], 0)
    assert round.metrics["objective/scores"] == pytest.approx(7.5)
    assert round.metrics["objective/scores_kept"] == pytest.approx(sum(kept) / len(kept))
    assert round.metrics["answers/kept"] == pytest.approx(len(kept) / 16)
    assert round.costs[0].samples == round.costs[0].labels == 16


def test_the_threshold_grows_until_nothing_is_left(laboratory):
    assert collect(rejection(**REST), *laboratory, index=5)[0].score.tolist() == [15.0]
    with pytest.raises(ValueError, match="round 6: no answer scores above 16"):
        collect(rejection(**REST), *laboratory, index=6)


def test_all_stages_are_kept_run_by_run(laboratory):
    models, data = laboratory
    data.prompts = data.prompts.map(lambda tensor: tensor.repeat(2, 1))
    algorithm = rejection(stages="all")
    first, _ = collect(algorithm, models, data, runs=2)
    second, _ = collect(algorithm, models, data, 1, first, runs=2)
    assert second.score.tolist() == [3, 7, 11, 15] * 2 + [19, 23, 27, 31] * 2
    assert len(second) == 2 * algorithm.examples(data, 1)
    last, _ = collect(rejection(), models, data, 1, first, runs=2)
    assert len(last) == len(first)


def test_runs_that_keep_different_numbers_cannot_go_together(laboratory):
    models, data = laboratory
    data.prompts = data.prompts.map(lambda tensor: tensor.repeat(2, 1))
    with pytest.raises(Unstackable, match=r"the threshold left the runs \[11, 16\] answers"):
        collect(rejection(**REST), models, data, runs=2)


@pytest.mark.parametrize(("keep", "rank"), [("max", 3), ("median", 2)])
def test_kept_answers_follow_the_order_statistic(keep, rank, random_policy, testbed_models, testbed_data):
    """Every triple of answers once: the chance that an answer is kept is known in closed form."""
    task, k = make_testbed(vocab=3, horizon=2, prompts=2, seed=0, reward="order"), 3
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    sequences, chance = every_tuple(task, policy, k)
    drawn = Samples(sequences, torch.zeros(sequences.ids.shape), prompt=torch.arange(len(chance)) // k)
    models.engine = SimpleNamespace(sample=lambda *_: drawn)
    answers, _ = collect(rejection(k=k, keep=keep), models, testbed_data(task, models))
    weight = chance.view(-1, k).sum(1) * task.tree.prompts  # of each triple, kept once
    expected = answer_logps(task, order_statistic(task, policy, task.rewards, rank, k)).flatten(1)
    rows = answers.sequences
    tokens = [tuple(ids[mask].tolist()) for ids, mask in zip(rows.ids, rows.mask)]
    for x in range(task.tree.prompts):
        own = rows.ids[:, 0] == task.tree.vocab + x
        found = {}
        for answer, share, mine in zip(tokens, weight.tolist(), own.tolist()):
            if mine:
                found[answer] = found.get(answer, 0.0) + share
        wanted = expected[x, answer_places(task)].exp().sort().values
        torch.testing.assert_close(torch.tensor(sorted(found.values())).double(), wanted[wanted > 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("keep", "rank"), [("max", 5), ("median", 3)])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_draws_at_another_temperature_follow_the_tempered_policy(
    keep, rank, temperature, task, random_policy, testbed_models, testbed_data
):
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    algorithm = rejection(prompts_per_round=4000, k=5, keep=keep, temperature=temperature)
    answers, _ = collect(algorithm, models, testbed_data(task, models))
    tempered = (policy / temperature).log_softmax(-1)
    kept = order_statistic(task, tempered, task.rewards, rank, 5)
    expected = float(expectation(task, kept, task.rewards).mean())
    error = float(answers.score.std()) / len(answers) ** 0.5
    assert float(answers.score.mean()) == pytest.approx(expected, abs=4 * error)
    if keep == "max":  # the median hardly feels the temperature
        at_one = order_statistic(task, policy, task.rewards, rank, 5)
        assert abs(float(expectation(task, at_one, task.rewards).mean()) - expected) > 4 * error
    assert models.temperature == 1.0  # of the policy, which is imitated at its own
