"""XPO: an answer of the policy against one of the reference, and the optimism about what the reference does not say."""

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.ops.logps import token_logps
from rlpref.testbed.task import places

SETTINGS = {"loss": {"name": "dpo", "beta": 0.5}, "alpha": 0.1, "rounds": 3, "epochs": 1, "batch_size": 16}
SETTINGS |= {"prompts_per_round": 6, "data": "fresh"}


def xpo(**changes):
    return make_algorithm("xpo", SETTINGS | changes, "xpo")


def collect(algorithm, models, data, index=0, previous=None):
    round = Round(index, [torch.Generator().manual_seed(index)], [Costs()], previous)
    return algorithm.collect(models, data, round), round


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "algorithm.alpha must not be below 0"),
        ({"loss": {"name": "simpo", "beta": 2.0}}, "reads no reference, and XPO explores away from one"),
        ({"loss": {"name": "rebel", "beta": 0.5}}, "reads 'chosen_score'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        xpo(**changes)


def test_one_answer_of_a_pair_is_the_policys_and_one_the_references(laboratory, task):
    """The policy says one answer only, which the reference says seldom."""
    models, data = laboratory
    table = torch.full_like(task.ref, -30.0)
    table[:, :, 0] = 0.0  # ends at once
    models.policy.set_conditionals(table.log_softmax(-1))
    pairs, round = collect(xpo(prompts_per_round=400), models, data)
    at_once = [side.lengths == 1 for side in (pairs.chosen, pairs.rejected)]
    policys = torch.where(pairs.chosen_from_ref, at_once[1], at_once[0])
    references = torch.where(pairs.chosen_from_ref, at_once[0], at_once[1])
    assert policys.all()
    assert references.float().mean() < 0.9
    assert (round.costs[0].samples, round.costs[0].labels) == (800, 400)
    assert round.metrics["objective/win_rate"] == pytest.approx(1 - pairs.chosen_from_ref.double().mean().item())
    prompts = [places(task.tree, side)[0] for side in (pairs.chosen, pairs.rejected)]
    assert torch.equal(*prompts)


def test_the_loss_is_dpo_plus_alpha_times_the_log_prob_of_the_references_answer(laboratory):
    models, data = laboratory
    pairs, _ = collect(xpo(), models, data)
    plain = make_algorithm(
        "iterative",
        {k: v for k, v in SETTINGS.items() if k != "alpha"} | {"k": 2, "pairing": "preference"},
        "iterative_dpo",
    )
    logps = [token_logps(models.policy, side)[0].sum(1) for side in (pairs.chosen, pairs.rejected)]
    of_ref = torch.where(pairs.chosen_from_ref, *logps)
    torch.testing.assert_close(xpo().loss(models, pairs).value, plain.loss(models, pairs).value + 0.1 * of_ref)
    torch.testing.assert_close(xpo(alpha=0.0).loss(models, pairs).value, plain.loss(models, pairs).value)
    assert 0 < pairs.chosen_from_ref.sum() < len(pairs)


def test_the_pairs_of_all_rounds_are_kept_with_their_marks(laboratory):
    models, data = laboratory
    algorithm = xpo(data="aggregated")
    first, _ = collect(algorithm, models, data)
    both, _ = collect(algorithm, models, data, 1, first)
    assert len(both) == 12 == algorithm.examples(data, 1)
    assert torch.equal(both.chosen_from_ref[:6], first.chosen_from_ref)
