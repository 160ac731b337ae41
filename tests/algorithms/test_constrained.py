"""A policy gradient under a limit on the mean cost: its reward, its multiplier, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from tuples import drawn_once, mean_gradient

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.constrained import constrained
from rlpref.algorithms.stacked import stack_algorithms
from rlpref.binding import ConfigError
from rlpref.rewards.gold import AnswerLength
from rlpref.testbed.gradients import objective_gradient
from rlpref.testbed.task import make_testbed

BETA = 0.3
SETTINGS = {"beta": BETA, "rounds": 4, "prompts_per_round": 4, "k": 8, "baseline": "leave_one_out"}
SETTINGS |= {"baseline_rate": None, "eos_rule": "none", "eos_penalty": None, "lr_scale": 1.0}


def limited(limit=0.2, multiplier=0.0, rate=0.5, **changes):
    method = make_algorithm("reinforce", SETTINGS | changes, "reinforce")
    return constrained(method, "reinforce", limit, multiplier, rate)


def collect(algorithm, models, data, index=0, carried=None, runs=1):
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    round = Round(index, generators, [Costs() for _ in range(runs)], carried={} if carried is None else carried)
    return algorithm.collect(models, data, round), round


@pytest.fixture
def laboratory(task, testbed_models, testbed_data):
    """Answers cost as many units as they have tokens."""
    models = testbed_models(task)
    models.cost = AnswerLength()
    return models, testbed_data(task, models)


@pytest.mark.parametrize("kind", ["rejection", "sft", "iterative"])
def test_what_is_no_policy_gradient_is_refused(kind):
    with pytest.raises(ConfigError, match=r"algorithm 'mine' is no policy gradient.*constraint=none"):
        constrained(SimpleNamespace(kind=kind), "mine", 1.0, 0.0, 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multiplier": -0.1}, "constraint.multiplier must not be below 0"),
        ({"rate": 0}, "constraint.rate must be above"),
    ],
)
def test_a_multiplier_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        limited(**settings)


def test_the_score_is_the_reward_less_the_multiplier_times_the_cost(laboratory):
    models, data = laboratory
    rollouts, round = collect(limited(multiplier=0.7), models, data)
    expected = models.reward(rollouts.sequences) - 0.7 * rollouts.sequences.lengths
    torch.testing.assert_close(rollouts.scores, expected)
    assert round.costs[0].labels == 2 * round.costs[0].samples  # a reward and a cost of each


def test_the_multiplier_moves_by_the_mean_violation_and_never_below_zero(laboratory):
    models, data = laboratory
    rollouts, first = collect(limited(limit=0.2, rate=0.5), models, data)
    cost = rollouts.sequences.lengths.double().mean().item()
    assert first.metrics["constraint/multiplier"].item() == 0
    assert first.metrics["constraint/cost"].item() == pytest.approx(cost)
    assert first.metrics["constraint/violation"].item() == pytest.approx(cost - 0.2)
    assert first.carried["constraint/multiplier"].item() == pytest.approx(0.5 * (cost - 0.2))
    rollouts, second = collect(limited(limit=0.2, rate=0.5), models, data, index=2, carried=first.carried)
    again = rollouts.sequences.lengths.double().mean().item()
    expected = 0.5 * (cost - 0.2) + 0.25 * (again - 0.2)  # half of the rounds are over
    assert second.carried["constraint/multiplier"].item() == pytest.approx(expected)
    _, slack = collect(limited(limit=9.0, multiplier=0.1, rate=0.5), models, data)
    assert slack.carried["constraint/multiplier"].item() == 0


def test_runs_side_by_side_have_multipliers_of_their_own(laboratory):
    models, data = laboratory
    data.prompts = data.prompts.map(lambda tensor: tensor.repeat(2, 1))
    carried = {"constraint/multiplier": torch.tensor([0.0, 2.0], dtype=torch.float64)}
    rollouts, round = collect(limited(), models, data, carried=carried, runs=2)
    multiplier = torch.tensor([0.0, 2.0]).repeat_interleave(len(rollouts) // 2)
    expected = models.reward(rollouts.sequences) - multiplier * rollouts.sequences.lengths
    torch.testing.assert_close(rollouts.scores, expected)
    cost = rollouts.sequences.lengths.double().view(2, -1).mean(1)
    torch.testing.assert_close(round.metrics["constraint/cost"], cost)


def test_runs_with_several_betas_can_be_stacked():
    stacked = stack_algorithms([limited(beta=0.1), limited(beta=0.4)], torch.device("cpu"))
    assert stacked.method.beta.tolist() == pytest.approx([0.1, 0.4])
    assert stacked.batch_size == limited().batch_size


def test_the_mean_gradient_is_the_exact_one_of_the_lagrangian(random_policy, testbed_models, testbed_data):
    """Every pair of answers once, each with its chance."""
    task = make_testbed(3, 2, 2, 0, "order", {}, "toxicity", {"token": 1})
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    models.cost = lambda sequences: ((sequences.ids == 1) & sequences.mask).sum(1).float()
    drawn, chance = drawn_once(models, task, policy, 2)
    models.engine = SimpleNamespace(sample=lambda *_: drawn)
    algorithm = limited(multiplier=0.8, k=2)
    rollouts, _ = collect(algorithm, models, testbed_data(task, models))
    found = mean_gradient(algorithm.loss(models, rollouts), chance, models, task)
    exact = objective_gradient(task, policy, task.ref, task.rewards - 0.8 * task.costs, BETA)
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-4)
