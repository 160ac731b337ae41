"""A reward model that ranks the policy's pairs and is trained along: who says what of a pair, who learns from it."""

from dataclasses import replace

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.objective import objective_loss
from rlpref.algorithms.reward_model import score_pairs
from rlpref.binding import ConfigError
from rlpref.losses.rewards import bt_soft
from rlpref.models.heads import answer_scores, scalar_model

SETTINGS = {
    "loss": {"name": "dpo", "beta": 0.5},
    "warmup": 1,
    "rounds": 3,
    "epochs": 1,
    "batch_size": 16,
    "prompts_per_round": 200,
    "k": 4,
    "labels": "soft",
    "pairing": "best_worst",
    "head_std": None,
    "reward_lr_scale": 3.0,
}


def retrained(**changes):
    return make_algorithm("retrained", SETTINGS | changes, "iterative_dpo_retrained")


@pytest.fixture
def laboratory(task, testbed_models, testbed_data, random_policy):
    models = testbed_models(task, random_policy(task, 1))
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    with torch.no_grad():
        models.reward_model.backbone.rows.weight.normal_(generator=torch.Generator().manual_seed(1))
    return models, testbed_data(task, models)


def collected(laboratory, index=1, **changes):
    round = Round(index, [torch.Generator().manual_seed(0)], [Costs()])
    return retrained(**changes).collect(*laboratory, round), round


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 1}, "algorithm.k is 1: a pair needs two answers"),
        ({"warmup": 3}, "algorithm.warmup must be 0 to 2, not 3"),
        ({"pairing": "preference"}, "algorithm.pairing of a reward model's scores 'preference' is not known"),
        ({"labels": "hard"}, "'labels' cannot be 'hard'"),
        ({"loss": {"name": "sppo", "beta": 0.5, "labels": "soft"}}, "loss 'sppo' reads 'soft_label', the judge's word"),
        ({"modifiers": {"soft_labels": True}}, "modifier 'soft_labels' reads 'soft_label', the judge's word"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        retrained(**changes)
    assert message in str(refusal.value)


@pytest.mark.parametrize("pairing", ["best_worst", "all", "bradley_terry"])
def test_the_reward_model_orders_the_pairs_and_the_judge_labels_them(laboratory, pairing):
    models, _ = laboratory
    pairs, round = collected(laboratory, pairing=pairing)
    for side, scores in ((pairs.chosen, pairs.chosen_score), (pairs.rejected, pairs.rejected_score)):
        torch.testing.assert_close(answer_scores(models.reward_model, side).detach(), scores)
    if pairing != "bradley_terry":
        assert (pairs.chosen_score > pairs.rejected_score).all()
    truth = (models.gold(pairs.chosen) - models.gold(pairs.rejected)).sigmoid()
    torch.testing.assert_close(pairs.soft_label, truth)
    assert round.metrics["pairs/agreement"] == pytest.approx(float(truth.mean()))
    assert 0.1 < (truth > 0.5).double().mean() < 0.9  # the two do not agree


def test_judged_pairs_are_the_labels_and_scores_are_free(laboratory):
    pairs, round = collected(laboratory)
    assert round.costs[0].samples == 800
    assert round.costs[0].labels == len(pairs) <= 200


def test_a_reward_model_whose_scores_all_tie_can_warm_up(laboratory):
    models, _ = laboratory
    torch.nn.init.zeros_(models.reward_model.backbone.rows.weight)
    pairs, _ = collected(laboratory, index=0)
    assert len(pairs) == retrained().examples(None, 0) == 400
    assert retrained().examples(None, 1) == 200
    with pytest.raises(ValueError, match="equal scores"):
        collected(laboratory, index=1)


def test_drawn_labels_have_the_judges_chances(laboratory):
    pairs, _ = collected(laboratory, labels="drawn", prompts_per_round=4000)
    p = laboratory[0].preference(pairs.chosen, pairs.rejected)
    assert set(pairs.soft_label.tolist()) == {0.0, 1.0}
    for part in (p < 0.3, (p > 0.3) & (p < 0.7), p > 0.7):
        error = float((p[part] * (1 - p[part])).sum() ** 0.5 / part.sum())
        assert float(pairs.soft_label[part].mean() - p[part].mean()) == pytest.approx(0, abs=4 * error)


def gradients(models, value):
    found = torch.autograd.grad(
        value.mean(), [*models.policy.parameters(), *models.reward_model.parameters()], allow_unused=True
    )
    return [gradient if gradient is None else gradient.clone() for gradient in found]


def test_each_part_of_the_loss_moves_its_own_model_alone(laboratory):
    models, _ = laboratory
    pairs, _ = collected(laboratory)
    algorithm, theirs = retrained(), len(list(models.policy.parameters()))
    both = gradients(models, algorithm.loss(models, pairs).value)
    policy = gradients(models, objective_loss(models, algorithm.objective, 0.5, pairs).value)
    fit = gradients(models, bt_soft(score_pairs(models.reward_model, pairs)[0]))
    assert policy[theirs:] == [None] * len(policy[theirs:])
    assert fit[:theirs] == [None] * theirs
    torch.testing.assert_close(both, policy[:theirs] + fit[theirs:])
    assert all(gradient.abs().max() > 0 for gradient in (both[0], both[theirs]))
    other = gradients(models, algorithm.loss(models, replace(pairs, soft_label=1 - pairs.soft_label)).value)
    torch.testing.assert_close(other[:theirs], both[:theirs])  # the policy never sees the judge
    assert not torch.allclose(other[theirs], both[theirs])


@pytest.mark.parametrize(("index", "moves"), [(0, False), (1, True)])
def test_while_the_reward_model_warms_up_no_policy_moves(laboratory, index, moves):
    models, _ = laboratory
    pairs, _ = collected(laboratory)
    algorithm = retrained()
    algorithm.loss(models, pairs).value.mean().backward()
    assert algorithm.before_step(models, pairs, index) == {}
    assert all((parameter.grad is not None) == moves for parameter in models.policy.parameters())
    assert all(parameter.grad is not None for parameter in models.reward_model.parameters())
    assert algorithm.trains == {"policy": 1.0, "reward_model": 3.0}
