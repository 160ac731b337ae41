"""What PPO's options do to rewards, and the numbers that they carry from round to round."""

import pytest
import torch
from options import PPO

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.models.heads import answer_scores, scalar_model
from rlpref.rollout.sampler import ends_with_eos
from rlpref.types import Rollouts

TARGET = {"kl_target": 1.0, "kl_horizon": 320.0}


def ppo(**changes):
    return make_algorithm("ppo", PPO | {"gae_lambda": 1.0, **changes}, "ppo")


@pytest.fixture
def laboratory(laboratory):
    models, data = laboratory
    models.critic = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    return models, data


def collect(algorithm, models, data, carried=None, runs=1) -> tuple[Rollouts, Round]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    round = Round(0, generators, [Costs() for _ in generators], carried={} if carried is None else carried)
    return algorithm.collect(models, data, round), round


def first(rollouts: Rollouts) -> torch.Tensor:
    """[B] the return of the first token."""
    return rollouts.returns.gather(1, rollouts.sequences.mask.long().argmax(1, keepdim=True))[:, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_target": 1.0}, "algorithm.kl_target and algorithm.kl_horizon are used together"),
        ({"kl_horizon": 100.0}, "algorithm.kl_target and algorithm.kl_horizon are used together"),
        (TARGET | {"kl_target": -1.0}, "algorithm.kl_target must be above 0, not -1.0"),
        (TARGET | {"kl": "loss", "kl_estimator": "k2"}, "algorithm.kl_target steers the KL in the reward"),
        (TARGET | {"beta": 0.0}, "a weight that is multiplied towards algorithm.kl_target starts above 0"),
        ({"scale_scores": "std"}, "'scale_scores' cannot be 'std'"),
        ({"eos_rule": "bootstrap", "eos_penalty": 1.0}, "eos_rule 'bootstrap' does not use 'eos_penalty'"),
        ({"critic": "shared", "critic_init": "reward_model"}, "algorithm.critic 'shared' reads the policy's decoder"),
        ({"critic_warmup": 2}, "algorithm.critic_warmup must be 0 to 1, not 2"),
        ({"cliprange": None, "dual_clip": 3.0}, "algorithm.dual_clip bounds what algorithm.cliprange leaves"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        ppo(**changes)
    assert message in str(refusal.value)


def test_the_weight_of_the_kl_is_that_of_the_round_and_moves_for_the_next(laboratory):
    """32 answers to a horizon of 320: a gain of 0.1."""
    models, data = laboratory
    carried, coef = {}, 0.3
    for _ in range(3):
        rollouts, round = collect(ppo(**TARGET), models, data, carried)
        kl = (rollouts.logps - rollouts.ref_logps).sum(1)
        assert round.metrics["objective/kl_coef"].item() == pytest.approx(coef)
        torch.testing.assert_close(first(rollouts), rollouts.scores - coef * kl, atol=1e-4, rtol=0)
        error = min(max(kl.mean().item() / 1.0 - 1, -0.2), 0.2)
        coef *= 1 + 0.1 * error
        assert carried["kl_coef"].dtype == torch.float64
        assert carried["kl_coef"].tolist() == pytest.approx([coef], rel=1e-6)
    assert coef != pytest.approx(0.3, rel=1e-3)


def test_without_a_target_nothing_is_carried(laboratory):
    _, round = collect(ppo(), *laboratory)
    assert not round.carried
    assert "objective/kl_coef" not in round.metrics


@pytest.mark.parametrize("less_mean", [False, True])
def test_scores_are_scaled_by_all_scores_so_far_and_then_clipped(laboratory, less_mean):
    models, data = laboratory
    rounds = [10 + 4 * torch.randn(32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    name, carried = "running_mean_std" if less_mean else "running_std", {}
    for index, scores in enumerate(rounds):
        models.reward = lambda sequences, scores=scores: scores
        algorithm = ppo(beta=0.0, scale_scores=name, reward_clip=2.9)
        rollouts, round = collect(algorithm, models, data, carried)
        seen = torch.cat(rounds[: index + 1])
        expected = (scores - less_mean * seen.mean()) / seen.std(correction=0)
        torch.testing.assert_close(first(rollouts), expected.clamp(-2.9, 2.9), atol=1e-4, rtol=0)
        assert round.metrics["objective/scores_std"].item() == pytest.approx(seen.std(correction=0).item(), rel=1e-5)
        assert torch.equal(rollouts.scores, scores)
        assert (round.metrics["objective/scores_clipped"] > 0) == (expected.abs() > 2.9).any()


def test_each_run_has_a_spread_of_its_own(laboratory):
    models, data = laboratory
    scores = torch.cat([torch.randn(32, generator=torch.Generator().manual_seed(0))] * 2)
    scores[32:] *= 7
    models.reward = lambda sequences: scores
    data.prompts = data.prompts.map(lambda tensor: tensor.repeat(2, 1))
    both, round = collect(ppo(beta=0.0, scale_scores="running_std"), models, data, runs=2)
    torch.testing.assert_close(*first(both).chunk(2), atol=1e-4, rtol=0)
    assert round.carried["scores_count"].tolist() == [32, 32]


def test_a_cut_answer_goes_on_where_the_critic_says(laboratory):
    models, data = laboratory
    rollouts, _ = collect(ppo(beta=0.0, eos_rule="bootstrap", gamma=0.5), models, data)
    finished = ends_with_eos(rollouts.sequences, 0)
    assert finished.any()
    assert not finished.all()
    with torch.no_grad():
        after = answer_scores(models.critic, rollouts.sequences)
    last = torch.where(finished, models.gold(rollouts.sequences), 0.5 * after)
    expected = last * 0.5 ** (rollouts.sequences.lengths - 1)
    torch.testing.assert_close(first(rollouts), expected, atol=1e-4, rtol=0)
    assert (after[~finished] - models.gold(rollouts.sequences)[~finished]).abs().min() > 1e-3


def test_while_the_critic_warms_up_the_policy_has_no_gradient(laboratory):
    models, data = laboratory
    algorithm = ppo(critic_warmup=1)
    batch, _ = collect(algorithm, models, data)
    for index in (0, 1):
        loss = algorithm.loss(models, batch)
        (loss.value * loss.weight).sum().backward()
        assert algorithm.before_step(models, batch, index) == {}
        assert (models.policy.model.rows.weight.grad is None) == (index == 0)
        assert models.critic.head.weight.grad.abs().sum() > 0


def test_without_clips_a_first_update_is_the_clipped_one(laboratory):
    """A2C is PPO with one minibatch: every ratio is 1 and no bound is met. Huang et al. 2022."""
    models, data = laboratory
    batch, _ = collect(ppo(), models, data)
    gradients = []
    for algorithm in (ppo(), ppo(cliprange=None, cliprange_value=None)):
        models.policy.zero_grad(), models.critic.zero_grad()
        loss = algorithm.loss(models, batch)
        (loss.value * loss.weight).sum().backward()
        gradients.append([models.policy.model.rows.weight.grad.clone(), models.critic.head.weight.grad.clone()])
        assert ("policy/clipfrac" in loss.metrics) == (algorithm.cliprange is not None)
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_a2c_takes_the_return_to_come_less_the_value(laboratory):
    models, data = laboratory
    settings = {key: PPO[key] for key in ("beta", "rounds", "prompts_per_round", "k", "gamma", "vf_coef")}
    settings |= {key: PPO[key] for key in ("eos_rule", "eos_penalty", "critic", "critic_init", "lr_scale")}
    a2c = make_algorithm("a2c", settings | {"gae_lambda": 1.0, "entropy_coef": 0.0, "critic_lr_scale": 1.0}, "a2c")
    assert (a2c.epochs, a2c.batch_size, a2c.examples(None, 0)) == (1, 32, 32)
    rollouts, _ = collect(a2c, models, data)
    log_ratio = rollouts.logps - rollouts.ref_logps
    to_come = log_ratio.flip(1).cumsum(1).flip(1)
    expected = rollouts.scores[:, None] - 0.3 * to_come - rollouts.values
    mask = rollouts.sequences.mask
    torch.testing.assert_close(rollouts.advantages[mask], expected[mask], atol=1e-4, rtol=0)
