import itertools
import math
from dataclasses import replace

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.losses import bradley_terry
from rlpref.losses.inputs import RewardLists, RewardPairs
from rlpref.models.heads import answer_scores, scalar_model

ROUND = Round(0, [torch.Generator()], [Costs()])


def reward_model(name="bradley_terry", head_std=None, **hyperparameters):
    settings = {"epochs": 1, "batch_size": 200, "head_std": head_std, "loss": {"name": name, **hyperparameters}}
    return make_algorithm("reward_model", settings, "reward_model")


@pytest.fixture
def laboratory(task, testbed_models, testbed_data):
    models = testbed_models(task)
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    return models, testbed_data(task, models, pairs=40)


def test_it_learns_the_order_of_the_pairs_and_leaves_the_policy(task, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models, pairs=200)
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    algorithm = reward_model()
    pairs = algorithm.collect(models, data, ROUND)
    before = {name: p.clone() for name, p in models.policy.named_parameters()}
    optimizer = torch.optim.Adam(models.reward_model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = algorithm.loss(models, pairs)
        loss.value.mean().backward()
        optimizer.step()
        losses.append(loss.value.mean().item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.2)
    assert losses[-1] < 0.6
    agrees = (loss.metrics["rewards/margins"] > 0).float()
    untied = (pairs.chosen.ids != pairs.rejected.ids).any(1)
    assert loss.metrics["rewards/accuracies"][untied].mean().item() == pytest.approx(agrees[untied].mean().item())
    assert (loss.metrics["rewards/accuracies"][~untied] == 0.5).all()
    assert all(torch.equal(p, before[name]) for name, p in models.policy.named_parameters())
    assert all(p.grad is None for p in models.policy.parameters())


def test_labels_of_every_kind_reach_the_loss(laboratory):
    """Margins and targets are the data's scores, soft labels and weights their own columns."""
    models, data = laboratory
    n = len(data.train)
    data.train = replace(data.train, soft_label=torch.linspace(0, 1, n), weight=torch.linspace(1, 2, n))
    pairs = reward_model().collect(models, data, ROUND)
    scores = [answer_scores(models.reward_model, side).detach() for side in (pairs.chosen, pairs.rejected)]
    margin, plain = pairs.chosen_score - pairs.rejected_score, bradley_terry(RewardPairs(*scores))
    turned = bradley_terry(RewardPairs(*scores[::-1]))
    squares = (scores[0] - pairs.chosen_score) ** 2 + (scores[1] - pairs.rejected_score) ** 2
    expected = {
        "bradley_terry": plain,
        "bt_scaled": margin.clamp(min=0) * plain,
        "bt_margin": -torch.nn.functional.logsigmoid(scores[0] - scores[1] - margin),
        "bt_soft": pairs.soft_label * plain + (1 - pairs.soft_label) * turned,
        "reward_mse": squares / 2,
    }
    for name, value in expected.items():
        loss = reward_model(name).loss(models, pairs)
        torch.testing.assert_close(loss.value.detach(), value.to(loss.value))
        assert torch.equal(loss.weight, pairs.weight)


def test_lists_of_answers_are_scored_one_by_one(laboratory, task, testbed_data):
    """The loss sees each answer's own score; accuracies are over all pairs of a list, ties one half."""
    models, _ = laboratory
    data = testbed_data(task, models, pairs=20, kind="kwise", k=3)
    lists = reward_model("reward_plackett_luce").collect(models, data, ROUND)
    lists = replace(lists, present=lists.present.clone(), weight=torch.linspace(1, 2, 20))
    lists.present[3, 2] = False
    loss = reward_model("reward_plackett_luce").loss(models, lists)
    assert torch.equal(loss.weight, lists.weight)
    for row in range(20):
        places = [k for k in range(3) if lists.present[row, k]]
        scores = [
            answer_scores(
                models.reward_model, lists.answers[row : row + 1].map(lambda tensor, k=k: tensor[:, k])
            ).item()
            for k in places
        ]
        order = sorted(range(len(places)), key=lambda i: -float(lists.scores[row, places[i]]))
        ranked = [scores[i] for i in order]
        expected = sum(math.log(sum(map(math.exp, ranked[j:]))) - ranked[j] for j in range(len(ranked)))
        assert loss.value[row].item() == pytest.approx(expected, abs=1e-5)
        found = {name: values[row].item() for name, values in loss.metrics.items()}
        assert found["rewards/chosen"] == pytest.approx(ranked[0], abs=1e-6)
        assert found["rewards/rejected"] == pytest.approx(ranked[-1], abs=1e-6)
        pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]]
        right = [0.5 if abs(a - b) < 1e-7 else float(a > b) for a, b in pairs]
        assert found["rewards/accuracies"] == pytest.approx(sum(right) / len(right), abs=1e-6)


@pytest.mark.parametrize("name", ["reward_plackett_luce", "reward_all_pairs", "reward_listnet"])
def test_the_gold_reward_is_at_rest_under_every_ranking_drawn_from_it(name):
    """Plackett-Luce rankings of three answers: expected gradient 0 at the worths. ListNet's scores are the worths."""
    worths = torch.tensor([0.4, -0.8, 1.5], dtype=torch.float64)
    rewards = (worths + 2.0).requires_grad_()
    loss, total = reward_model(name).objective, 0.0
    for order in itertools.permutations(range(3)):
        ranked = worths[list(order)]
        chance = math.prod(float(ranked[j:].softmax(0)[0]) for j in range(3))
        scores = worths if name == "reward_listnet" else -torch.tensor([order.index(i) for i in range(3)]).double()
        lists = RewardLists(rewards[None], scores[None], torch.ones(1, 3, dtype=torch.bool))
        total = total + chance * loss(lists).sum()
    assert torch.autograd.grad(total, rewards)[0].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("name", "column"), [("bt_margin", "margin"), ("reward_mse", "chosen_target"), ("bt_soft", "soft_label")]
)
def test_what_the_data_lack_is_refused_before_training(laboratory, name, column):
    models, data = laboratory
    data.train = replace(data.train, chosen_score=None, rejected_score=None, soft_label=None)
    with pytest.raises(ConfigError) as refusal:
        reward_model(name).collect(models, data, ROUND)
    mend = "give every row 'soft_label'" if name == "bt_soft" else "give every row 'chosen_score' and 'rejected_score'"
    assert f"loss '{name}' reads '{column}', which the data do not have: {mend}" in str(refusal.value)
    reward_model().collect(models, data, ROUND)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dpo", "beta": 0.1}, "loss 'dpo' takes data of kind 'pairs', not 'reward pairs'"),
        ({"name": "plackett_luce", "beta": 0.1}, "takes data of kind 'kwise', not 'reward pairs' or 'reward lists'"),
        ({"name": "bradley_terry", "head_std": -0.1}, "algorithm.head_std must not be below 0, but is -0.1"),
        ({"name": "bt_center", "margin": 1.0}, "loss 'bt_center' does not use 'margin'"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError, match=message):
        reward_model(**settings)
