import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.iterative import best_worst, bradley_terry
from rlpref.binding import ConfigError
from rlpref.models.reference_rule import reference_rule
from rlpref.ops.logps import token_logps
from rlpref.types import cat

SETTINGS = {
    "loss": {"name": "dpo", "beta": 0.5},
    "rounds": 3,
    "epochs": 1,
    "batch_size": 16,
    "prompts_per_round": 6,
    "k": 4,
    "pairing": "best_worst",
    "data": "fresh",
}


def iterative(**changes):
    return make_algorithm("iterative", SETTINGS | changes, "iterative_dpo")


def round_(index, previous=None):
    return Round(index, [torch.Generator().manual_seed(index)], [Costs()], previous)


@pytest.fixture
def laboratory(task, testbed_models, testbed_data):
    models = testbed_models(task)
    return models, testbed_data(task, models)


def test_best_against_worst_and_no_pair_where_all_tie():
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, -1.0, 0.0]])
    prompt, chosen, rejected = best_worst(scores, [torch.Generator()])
    assert prompt.tolist() == [0, 2]
    assert chosen[0] == 1
    assert rejected.tolist() == [0, 1]
    assert scores[2, chosen[1]] == 0.0


def test_bradley_terry_pairs_are_disjoint():
    scores = torch.randn(5, 7)
    prompt, chosen, rejected = bradley_terry(scores, [torch.Generator().manual_seed(0)])
    for x in range(5):
        used = chosen[prompt == x].tolist() + rejected[prompt == x].tolist()
        assert sorted(used) == [0, 1, 2, 3, 4, 5]  # the seventh answer has no partner


def test_bradley_terry_labels_by_the_sigmoid_of_the_difference():
    n = 20_000
    scores = torch.tensor([1.3, 0.5, -2.0, 0.0]).expand(n, 4)
    _, chosen, _ = bradley_terry(scores, [torch.Generator().manual_seed(0)])
    for first, difference in [(0, 0.8), (2, -2.0)]:
        pairs = (chosen == first) | (chosen == first + 1)
        wins = (chosen[pairs] == first).double().mean().item()
        p = torch.tensor(difference).sigmoid().item()
        assert pairs.sum() == n
        assert abs(wins - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_collected_pairs_are_ordered_answers_to_one_prompt(laboratory):
    models, data = laboratory
    round = round_(0)
    pairs = iterative().collect(models, data, round)
    assert (pairs.chosen_score > pairs.rejected_score).all()
    assert torch.equal(pairs.chosen.ids[:, 0], pairs.rejected.ids[:, 0])
    torch.testing.assert_close(models.gold(pairs.chosen), pairs.chosen_score)
    torch.testing.assert_close(models.gold(pairs.rejected), pairs.rejected_score)
    torch.testing.assert_close(token_logps(models.ref.model, pairs.chosen)[0].sum(1), pairs.ref_chosen)
    assert len(pairs) == round.costs[0].samples // 4 * (1 - round.metrics["pairs/ties_dropped"])
    assert round.costs[0].samples == round.costs[0].labels == 24


def test_a_round_of_ties_only_is_an_error(laboratory):
    models, data = laboratory
    models.reward = lambda sequences: torch.zeros(len(sequences))
    with pytest.raises(ValueError, match="equal scores"):
        iterative().collect(models, data, round_(0))


def next_round(models, policy):
    """What the trainer does before a round, after the policy has moved."""
    models.policy.set_conditionals(policy)
    models.rule.before_round(1, models.policy, models.ref)


@pytest.mark.parametrize("data_kind", ["fresh", "aggregated"])
@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_all_pairs_of_a_round_carry_the_reference_of_now(laboratory, random_policy, task, reference, data_kind):
    models, data = laboratory
    models.rule = reference_rule(reference)
    models.ref = models.rule.start(models.policy, models.initial)
    algorithm = iterative(data=data_kind)
    first = algorithm.collect(models, data, round_(0))
    first = cat([first])  # a copy: collect may write into what it gets
    next_round(models, random_policy(task, 1))
    both = algorithm.collect(models, data, round_(1, first))
    kept = len(first) if data_kind == "aggregated" else 0
    assert kept < len(both) <= kept + 6
    assert torch.equal(both.chosen.ids[:kept, : first.chosen.ids.shape[1]], first.chosen.ids[:kept])
    expected = models.policy if reference == "previous" else models.initial.model
    torch.testing.assert_close(both.ref_chosen, token_logps(expected, both.chosen)[0].sum(1).detach())
    torch.testing.assert_close(both.ref_rejected, token_logps(expected, both.rejected)[0].sum(1).detach())


def test_a_reference_that_moves_within_rounds_leaves_no_log_probs_behind(laboratory):
    models, data = laboratory
    models.rule = reference_rule("sync", every=1)
    models.ref = models.rule.start(models.policy, models.initial)
    algorithm = iterative(data="aggregated")
    both = algorithm.collect(models, data, round_(1, algorithm.collect(models, data, round_(0))))
    assert both.ref_chosen is None
    assert both.ref_rejected is None


@pytest.mark.parametrize("pairing", ["best_worst", "bradley_terry"])
@pytest.mark.parametrize("data_kind", ["fresh", "aggregated"])
def test_no_round_has_more_rows_than_the_schedule_was_told(laboratory, pairing, data_kind):
    models, data = laboratory
    algorithm, previous = iterative(pairing=pairing, data=data_kind), None
    for index in range(3):
        previous = algorithm.collect(models, data, round_(index, previous))
        assert 0 < len(previous) <= algorithm.examples(data, index)
        if pairing == "bradley_terry":
            assert len(previous) == algorithm.examples(data, index)


def test_a_coupled_loss_counts_the_rows_of_all_rounds(laboratory):
    """Of the pairs of both rounds together none may be left alone, nor is a round's own number of pairs refused."""
    models, data = laboratory
    settings = {"loss": {"name": "aot", "beta": 0.5}, "data": "aggregated", "pairing": "bradley_terry", "k": 2}
    algorithm = iterative(**settings, prompts_per_round=3, batch_size=5)
    first = algorithm.collect(models, data, round_(0))
    with pytest.raises(ConfigError, match="of 6 rows in minibatches of 5 one is left alone"):
        algorithm.collect(models, data, round_(1, first))
