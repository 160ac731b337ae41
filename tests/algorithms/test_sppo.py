"""SPPO: win rates among the policy's own answers, and where its rounds lead."""

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.testbed import duels
from rlpref.testbed.task import places

SETTINGS = {"loss": {"name": "sppo_single", "beta": 0.5}, "rounds": 3, "epochs": 1, "batch_size": 16}
SETTINGS |= {"prompts_per_round": 6, "k": 4}


def sppo(**changes):
    return make_algorithm("sppo", SETTINGS | changes, "sppo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 1}, "algorithm.k is 1: an answer plays against the others"),
        ({"loss": {"name": "apo_zero_unpaired", "beta": 0.5}}, "does not read how often an answer wins"),
        ({"loss": {"name": "dpo", "beta": 0.5}}, "takes data of kind 'pairs', not 'unpaired'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        sppo(**changes)


def test_scores_are_win_rates_against_the_other_answers(laboratory):
    models, data = laboratory
    round = Round(0, [torch.Generator().manual_seed(0)], [Costs()])
    answers = sppo().collect(models, data, round)
    assert (round.costs[0].samples, round.costs[0].labels) == (24, 36)
    for prompt in range(6):
        own = slice(4 * prompt, 4 * prompt + 4)
        gold = models.gold(answers.sequences[own])
        wins = (gold[:, None] - gold).sigmoid()
        torch.testing.assert_close(answers.score[own], (wins.sum(1) - 0.5) / 3)
    assert torch.equal(answers.label, answers.score > 0.5)


def test_the_mean_score_of_an_answer_is_its_probability_to_beat_the_policy(laboratory, task, random_policy):
    """Over 6,000 contests among three answers: the rate over the others is unbiased, with oneself it would not be."""
    models, data = laboratory
    models.preference = duels.preference_of(task, "non_transitive", {"gamma": 4.0, "seed": 0})
    round = Round(0, [torch.Generator().manual_seed(0)], [Costs()])
    answers = sppo(k=3, prompts_per_round=6000).collect(models, data, round)
    truth = duels.win_probability(task, random_policy(task, 1), models.preference.preference).flatten(1)
    prompt, place = places(task.tree, answers.sequences)
    for x in range(task.tree.prompts):
        often = torch.bincount(place[prompt == x], minlength=truth.shape[1]) > 300
        clear = torch.where(often, (truth[x] - 0.5).abs(), 0.0).argmax()
        found = answers.score[(prompt == x) & (place == clear)].double()
        expected = truth[x, clear].item()
        assert abs(found.mean() - expected) < 5 * found.std() / len(found) ** 0.5
        assert abs(expected - 0.5) > 0.05
