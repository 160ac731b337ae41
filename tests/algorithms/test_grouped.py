"""Group-relative policy gradients: production collect and loss against the exact gradient, and advantages by hand."""

from types import SimpleNamespace

import pytest
import torch
from tuples import drawn_once, mean_gradient

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.ops.baselines import EPSILON
from rlpref.ops.blocks import Unstackable
from rlpref.testbed.gradients import objective_gradient
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import make_testbed

BETA = 0.3
SETTINGS = {
    "loss": {"name": "dr_grpo", "cliprange": 0.2},
    "beta": BETA,
    "kl": "reward",
    "advantages": "mean",
    "rounds": 2,
    "epochs": 1,
    "batch_size": 32,
    "prompts_per_round": 4,
    "k": 8,
    "eos_rule": "none",
    "eos_penalty": None,
    "lr_scale": 1.0,
    "dynamic_sampling": None,
}
GRPO = {"loss": {"name": "grpo", "cliprange": 0.2, "kl_coef": BETA}, "kl": "loss", "advantages": "std"}


def grouped(**changes):
    return make_algorithm("grouped", SETTINGS | changes, "grouped")


def collect(algorithm, models, data, runs=1):
    round = Round(0, [torch.Generator().manual_seed(seed) for seed in range(runs)], [Costs() for _ in range(runs)])
    return algorithm.collect(models, data, round), round


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 1}, "algorithm.k is 1: an answer is measured by the others"),
        ({"loss": {"name": "dpo", "beta": BETA}}, "loss 'dpo' takes data of kind 'pairs', not 'rollouts'"),
        ({"kl": "loss"}, "loss 'dr_grpo' has no KL to the reference: set algorithm.kl=reward"),
        (GRPO | {"kl": "reward"}, "loss 'grpo' has a KL to the reference of its own: set algorithm.kl=loss"),
        (GRPO | {"beta": 0.5}, "algorithm.loss.kl_coef is the weight of the KL and must be beta, 0.5"),
        ({"advantages": "median"}, "'advantages' cannot be 'median'"),
        ({"eos_penalty": 1.0}, "eos_rule 'none' does not use 'eos_penalty'"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        grouped(**changes)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("advantages", "share"), [("leave_one_out", 1.0), ("mean", 0.5)])
@pytest.mark.parametrize("loss", ["dr_grpo", "reinforce", "topr"])
def test_the_mean_gradient_is_the_exact_one(loss, advantages, share, random_policy, testbed_models, testbed_data):
    """An answer in its own baseline takes 1/k off the gradient and leaves its direction."""
    task, k = make_testbed(vocab=3, horizon=2, prompts=2, seed=0, reward="ngram"), 2
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    models.policy.double()
    data = testbed_data(task, models)
    drawn, chance = drawn_once(models, task, policy, k)
    models.engine = SimpleNamespace(sample=lambda *_: drawn)
    algorithm = grouped(k=k, loss={"name": loss}, advantages=advantages)
    rollouts, _ = collect(algorithm, models, data)
    found = mean_gradient(algorithm.loss(models, rollouts), chance, models, task)
    exact = objective_gradient(task, policy, task.ref, task.rewards, BETA)
    torch.testing.assert_close(found, share * exact, atol=1e-6, rtol=0)  # gold is read in fp32
    assert exact.abs().max() > 0.05


def test_advantages_by_hand(laboratory):
    models, data = laboratory
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0] * 4)
    models.reward = lambda sequences: scores
    by_hand = {
        "mean": [-1.0, 1.0, 0.0, 0.0],
        "leave_one_out": [-4 / 3, 4 / 3, 0.0, 0.0],
        "std": [-1 / ((2 / 3) ** 0.5 + EPSILON), 1 / ((2 / 3) ** 0.5 + EPSILON), 0.0, 0.0],
        "batch_std": [-1 / ((8 / 15) ** 0.5 + EPSILON), 1 / ((8 / 15) ** 0.5 + EPSILON), 0.0, 0.0],
    }
    for advantages, expected in by_hand.items():
        rollouts, _ = collect(grouped(k=4, advantages=advantages, beta=0.0), models, data)
        first = rollouts.sequences.mask.long().argmax(1, keepdim=True)
        torch.testing.assert_close(rollouts.advantages.gather(1, first)[:, 0], torch.tensor(expected * 4))
        assert (rollouts.advantages[~rollouts.sequences.mask] == 0).all()


def test_a_group_that_agrees_teaches_nothing(laboratory):
    models, data = laboratory
    models.reward = lambda sequences: torch.arange(4).repeat_interleave(8).float()  # one score for each prompt
    for advantages in ("mean", "std", "leave_one_out"):
        rollouts, round = collect(grouped(**GRPO | {"advantages": advantages}), models, data)
        assert rollouts.advantages.abs().max() < 1e-5
        assert round.metrics["groups/uniform"] == 1
    assert collect(grouped(advantages="batch_std", beta=0.0), models, data)[0].advantages.abs().max() > 0.5


def test_the_spread_of_a_round_is_each_runs_own(laboratory):
    models, data = laboratory
    scores = torch.cat([torch.randn(32, generator=torch.Generator().manual_seed(0)), torch.zeros(32)])
    scores[32:] += 5 * torch.arange(32)
    models.reward = lambda sequences: scores[: len(sequences)]
    data.prompts = data.prompts.map(lambda tensor: tensor.repeat(2, 1))
    both, _ = collect(grouped(advantages="batch_std", beta=0.0), models, data, runs=2)
    first = both.sequences.mask.long().argmax(1, keepdim=True)
    for rows in both.advantages.gather(1, first)[:, 0].chunk(2):
        assert rows.mean() == pytest.approx(0, abs=1e-5)
        assert rows.std() == pytest.approx(1, abs=1e-3)


def test_the_kl_stands_in_the_reward_or_in_the_loss(laboratory):
    models, data = laboratory
    rollouts, _ = collect(grouped(), models, data)
    mask, kl = rollouts.sequences.mask, (rollouts.logps - rollouts.ref_logps).sum(1)
    assert kl.abs().max() > 0.5
    torch.testing.assert_close(rollouts.returns, torch.where(mask, (rollouts.scores - BETA * kl)[:, None], 0.0))
    rollouts, _ = collect(grouped(**GRPO), models, data)
    torch.testing.assert_close(rollouts.returns, torch.where(mask, rollouts.scores[:, None], 0.0))
    log_ratio = torch.where(mask, rollouts.ref_logps - rollouts.logps, 0.0)
    k3 = (torch.expm1(log_ratio) - log_ratio).sum(1) / mask.sum(1)
    advantage = rollouts.advantages.sum(1) / mask.sum(1)
    torch.testing.assert_close(grouped(**GRPO).loss(models, rollouts).value, BETA * k3 - advantage, atol=1e-5, rtol=0)


def test_at_the_optimum_every_advantage_is_zero(task, testbed_models, testbed_data):
    models = testbed_models(task, optimum(task, task.ref, task.rewards, BETA).policy)
    rollouts, round = collect(grouped(prompts_per_round=2), models, testbed_data(task, models))
    assert rollouts.scores.std() > 0.1
    assert rollouts.advantages.abs().max() < 1e-5
    assert round.metrics["objective/advantages_std"] < 1e-5


def mixed_from(call, models):
    """A reward that tells the first group of the first draw apart, and from the draw `call` on all answers."""
    calls = []

    def reward(sequences):
        calls.append(len(sequences))
        rows = torch.arange(len(sequences)).float()
        tells_apart = (rows < 8) if len(calls) == 1 else torch.tensor(len(calls) >= call)
        return torch.where(tells_apart, rows, 0.0)

    models.reward = reward
    return calls


def test_groups_of_one_score_are_drawn_again_for_other_prompts(laboratory):
    models, data = laboratory
    calls = mixed_from(3, models)
    found, round = collect(grouped(dynamic_sampling=5), models, data)
    assert calls == [32, 24, 24]  # the first group is mixed at once, the other three only in the third draw
    assert round.costs[0].samples == round.costs[0].labels == sum(calls)
    assert round.metrics["groups/drawn_again"] == 48 / 32
    assert round.metrics["groups/uniform"] == 0
    assert (found.scores.view(4, 8).std(1) > 0).all()
    kl = (found.logps - found.ref_logps).sum(1)
    with torch.no_grad():
        again = models.policy_logps(found.sequences)[0].sum(1) - models.ref_logps(found.sequences).sum(1)
    torch.testing.assert_close(kl, again, atol=1e-5, rtol=0)
    assert round.metrics["objective/scores"] == torch.arange(8.0).sum() / 32  # of the first draw


def test_what_stays_uniform_is_kept_after_so_many_draws(laboratory):
    models, data = laboratory
    calls = mixed_from(9, models)
    found, round = collect(grouped(dynamic_sampling=2, beta=0.0), models, data)
    assert calls == [32, 24, 24]
    assert len(found) == 32
    assert round.metrics["groups/drawn_again"] == 48 / 32
    assert round.metrics["groups/uniform"] == 3 / 4
    plain = mixed_from(9, models)
    _, round = collect(grouped(), models, data)
    assert plain == [32]
    assert "groups/drawn_again" not in round.metrics


def test_drawing_again_is_refused_side_by_side_and_only_where_it_is_due(laboratory):
    models, data = laboratory
    data.prompts = data.prompts.map(lambda tensor: tensor.repeat(2, 1))
    collect(grouped(dynamic_sampling=2), models, data, runs=1)
    models.reward = lambda sequences: torch.arange(len(sequences)).float()
    assert len(collect(grouped(dynamic_sampling=2), models, data, runs=2)[0]) == 64
    models.reward = lambda sequences: torch.zeros(len(sequences))
    with pytest.raises(Unstackable, match="dynamic sampling draws again"):
        collect(grouped(dynamic_sampling=2), models, data, runs=2)
