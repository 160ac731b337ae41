import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.pair_rules import PAIRINGS
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


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("data_kind", ["fresh", "aggregated"])
def test_no_round_has_more_rows_than_the_schedule_was_told(laboratory, pairing, data_kind):
    models, data = laboratory
    algorithm, previous = iterative(pairing=pairing, data=data_kind), None
    for index in range(3):
        previous = algorithm.collect(models, data, round_(index, previous))
        assert 0 < len(previous) <= algorithm.examples(data, index)
        if pairing in ("bradley_terry", "preference"):
            assert len(previous) == algorithm.examples(data, index)


def test_a_coupled_loss_counts_the_rows_of_all_rounds(laboratory):
    """Of the pairs of both rounds together none may be left alone, nor is a round's own number of pairs refused."""
    models, data = laboratory
    settings = {"loss": {"name": "aot", "beta": 0.5}, "data": "aggregated", "pairing": "bradley_terry", "k": 2}
    algorithm = iterative(**settings, prompts_per_round=3, batch_size=5)
    first = algorithm.collect(models, data, round_(0))
    with pytest.raises(ConfigError, match="of 6 rows in minibatches of 5 one is left alone"):
        algorithm.collect(models, data, round_(1, first))


def test_a_rule_that_compares_asks_for_no_score(laboratory):
    models, data = laboratory
    models.reward, round = None, round_(0)
    algorithm = iterative(pairing="preference")
    pairs = algorithm.collect(models, data, round)
    assert algorithm.compares
    assert pairs.chosen_score is None
    torch.testing.assert_close(models.preference(pairs.chosen, pairs.rejected), pairs.soft_label)
    assert (round.costs[0].samples, round.costs[0].labels) == (24, 12)


@pytest.mark.parametrize(
    ("pairing", "changes", "column"),
    [
        ("best_worst", {"loss": {"name": "sppo", "beta": 0.5, "labels": "soft"}}, "loss 'sppo' reads 'soft_label'"),
        ("all", {"modifiers": {"soft_labels": True}}, "modifier 'soft_labels' reads 'soft_label'"),
        ("preference", {"loss": {"name": "rebel", "beta": 0.5}}, "loss 'rebel' reads 'chosen_score'"),
        ("win_rate", {"modifiers": {"score_margin": 0.5}}, "modifier 'score_margin' reads 'chosen_score'"),
    ],
)
def test_what_a_rule_does_not_find_out_no_loss_may_read(pairing, changes, column):
    with pytest.raises(ConfigError, match=column):
        iterative(pairing=pairing, **changes)
    other = "bradley_terry"  # knows both
    iterative(pairing=other, **changes)


def test_an_unknown_rule_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"algorithm.pairing 'best_wors' is not known\. Did you mean 'best_worst'"):
        iterative(pairing="best_wors")
