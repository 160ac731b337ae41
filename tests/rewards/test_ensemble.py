"""Ensembles of reward models, and reward models normalised on answers of the policy before training."""

import json

import pytest
import torch

import runs
from rlpref.binding import ConfigError
from rlpref.build import build
from rlpref.check import check
from rlpref.jobs import Job
from rlpref.models.heads import critic_from, scalar_model, state_values
from rlpref.models.stacked import stack_models
from rlpref.ops.blocks import Unstackable
from rlpref.rewards.learned import EnsembleReward, LearnedReward, combined, normalise
from rlpref.run import run_side_by_side
from rlpref.testbed.exact import expectation
from rlpref.testbed.ladder import scored_answers
from rlpref.types import Sequences

SCORES = torch.tensor([[1.0, -2.0, 0.5], [3.0, -2.0, 0.0], [2.0, 4.0, 1.0]])  # of three members


def answers(rows=40, seed=0) -> Sequences:
    """Two prompt tokens, then up to five of an answer."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(7)
    real = columns < 2 + torch.randint(1, 6, (rows, 1), generator=generator)
    return Sequences(torch.randint(0, 12, (rows, 7), generator=generator), real, real & (columns >= 2))


@pytest.fixture
def rewards(random_llama):
    models = [scalar_model(random_llama(seed), None, torch.Generator().manual_seed(seed)) for seed in range(3)]
    return [LearnedReward(model.requires_grad_(False), 16) for model in models]


@pytest.mark.parametrize(
    ("combine", "weight", "expected"),
    [
        ("mean", None, [2.0, 0.0, 0.5]),
        ("worst", None, [1.0, -2.0, 0.0]),
        ("variance", 0.0, [2.0, 0.0, 0.5]),
        ("variance", 0.3, [2.0 - 0.3 * 2 / 3, 0.0 - 0.3 * 8, 0.5 - 0.3 / 6]),
    ],
)
def test_the_members_are_combined_answer_by_answer(combine, weight, expected):
    torch.testing.assert_close(combined(SCORES, combine, weight), torch.tensor(expected))


def test_an_ensemble_scores_with_each_of_its_members(rewards):
    batch = answers()
    single = torch.stack([reward(batch) for reward in rewards])
    ensemble = EnsembleReward(rewards, "worst", None)
    assert torch.equal(ensemble(batch), single.amin(0))
    torch.testing.assert_close(ensemble.disagreement(batch), single.std(0, correction=0))
    assert torch.equal(EnsembleReward([rewards[0]] * 3, "mean", None).disagreement(batch), torch.zeros(40))
    for weight in (0.0, 0.5, 5.0):  # never above the mean, and the less the more the members disagree
        cautious = EnsembleReward(rewards, "variance", weight)(batch)
        torch.testing.assert_close(single.mean(0) - cautious, weight * ensemble.disagreement(batch) ** 2)


def test_normalised_scores_have_mean_0_and_variance_1_on_the_samples_and_keep_their_order(rewards):
    batch, other = answers(), answers(seed=1)
    before = rewards[0](batch), rewards[0](other)
    found = normalise(rewards[0], batch)
    assert found(batch).mean().item() == pytest.approx(0, abs=1e-12)
    assert found(batch).var(correction=0).item() == pytest.approx(1, abs=1e-12)
    stated = found.normalised
    assert stated["samples"] == 40
    torch.testing.assert_close(found(other), (before[1] - stated["bias"]) * stated["scale"])


def test_a_critic_from_a_normalised_reward_predicts_the_normalised_score(rewards):
    """The value of the state after the last token is the score."""
    batch = answers()
    found = normalise(rewards[0], batch)
    critic = critic_from(found.model)
    longer = Sequences(*(torch.nn.functional.pad(t, (0, 1)) for t in (batch.ids, batch.attention_mask, batch.mask)))
    last = batch.attention_mask.sum(1)
    rows = torch.arange(len(batch))
    longer.attention_mask[rows, last] = longer.mask[rows, last] = True
    torch.testing.assert_close(state_values(critic, longer)[rows, last].detach(), found(batch))


def test_a_model_that_scores_all_samples_alike_cannot_be_normalised(rewards):
    torch.nn.init.zeros_(rewards[0].model.head.weight)
    with pytest.raises(ConfigError, match="gives all 40 samples the same score"):
        normalise(rewards[0], answers())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Reward models of two seeds."""
    root = tmp_path_factory.mktemp("members")
    for seed in (0, 1):
        runs.run(root / str(seed), *runs.TESTBED, *runs.METHODS["reward_model"], f"seed={seed}")
    return [str(root / "0"), str(root / "1")]


def settings(trained, *more):
    return ["reward=ensemble", f"reward.paths=[{','.join(trained)}]", *more]


VARIANCE = ["reward.combine=variance", "reward.variance_weight=0.5", "reward.normalise=64"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "rejection"])
@pytest.mark.parametrize("options", [["reward.combine=worst"], VARIANCE], ids=["worst", "variance"])
def test_an_ensemble_trains_a_policy(trained, method, options, tmp_path):
    runs.run(tmp_path, *runs.TESTBED, *runs.METHODS[method], *settings(trained, *options))
    last = runs.metrics(tmp_path)[-1]
    assert last["eval/reward_disagreement"] > 0
    assert last["eval/proxy_reward"] != last["eval/reward"]
    card = json.loads((tmp_path / "run.json").read_text())
    assert card["reward"] == "ensemble"
    for stated in card["reward_normalised"]:
        assert (stated is None) == (options is not VARIANCE)
        assert stated is None or (stated["samples"] == 64 and stated["scale"] > 0)


@pytest.mark.slow
def test_what_a_run_scores_with_is_normalised_on_its_own_policy_before_training(trained):
    """The same for every seed of the run; critics start from the first member, normalised."""
    parts = []
    for seed in (0, 5):
        config, _ = runs.compose(
            *[*runs.TESTBED, *runs.METHODS["ppo"], f"seed={seed}"], *settings(trained, "reward.normalise=4000")
        )
        parts.append(build(config, check(config)))
    members = [part.models.reward.members for part in parts]
    assert members[0][0].normalised == members[1][0].normalised != members[0][1].normalised
    task = parts[0].task
    for member in members[0]:  # 4,000 answers pin the reference's mean down to 4 standard errors
        scores = scored_answers(task, member)
        mean = expectation(task, task.ref, scores).mean().item()
        assert mean == pytest.approx(0, abs=4 / 4000**0.5)
        square = expectation(task, task.ref, scores**2).mean().item()
        assert square - mean**2 == pytest.approx(1, abs=0.15)
    critic, first = parts[0].models.critic, members[0][0].model
    assert torch.equal(critic.head.weight, first.head.weight)
    assert torch.equal(critic.head.bias, first.head.bias)


@pytest.mark.slow
def test_runs_side_by_side_share_a_normalised_ensemble(trained, tmp_path):
    """Seeds alone may differ: other data would be normalised on other answers, and such runs are trained alone."""
    base = [*runs.TESTBED, *runs.METHODS["ppo"], *settings(trained, *VARIANCE)]
    variants = [[*base, "seed=0"], [*base, "seed=1"]]
    jobs = [Job(runs.compose(*each)[0], tmp_path / str(i), "group") for i, each in enumerate(variants)]
    run_side_by_side(jobs)
    for i, each in enumerate(variants):
        runs.run(tmp_path / "alone" / str(i), *each)
        found, alone = runs.metrics(tmp_path / str(i)), runs.metrics(tmp_path / "alone" / str(i))
        assert json.loads((tmp_path / str(i) / "run.json").read_text())["replicas"] == 2
        for row, other in zip(found, alone, strict=True):
            assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    parts = [build(config, check(config)) for config in (runs.compose(*base, f"data.seed={s}")[0] for s in (0, 1))]
    with pytest.raises(Unstackable, match="normalise their reward on different answers"):
        stack_models([part.models for part in parts])


@pytest.mark.slow
def test_a_single_learned_reward_is_normalised_too(trained, tmp_path):
    learned = ["reward=learned", f"reward.path={trained[0]}", "reward.normalise=64"]
    runs.run(tmp_path, *runs.TESTBED, *runs.METHODS["ppo"], *learned)
    card = json.loads((tmp_path / "run.json").read_text())
    assert card["reward_normalised"]["samples"] == 64
    assert "eval/reward_disagreement" not in runs.metrics(tmp_path)[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["reward.combine=variance"], "variance_weight is None, and reward.combine 'variance'"),
        (["reward.variance_weight=1"], "variance_weight is 1, and reward.combine 'mean'"),
        (["reward.combine=variance", "reward.variance_weight=-1"], "variance_weight must not be below 0"),
        (["reward.combine=median"], "'combine' cannot be 'median'"),
        (["reward.normalise=1"], "reward.normalise needs at least 2 answers, not 1"),
        (["testbed.seed=1"], r"reward.paths.*another 'testbed'"),
    ],
)
def test_refusals(trained, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        runs.run(tmp_path, *runs.TESTBED, *runs.METHODS["ppo"], *settings(trained, *options))


@pytest.mark.slow
def test_members_that_are_missing_or_the_same_are_refused(trained, tmp_path):
    for paths, message in (
        ([trained[0], "/nowhere"], "reward.paths: '/nowhere' is no run folder with a trained reward_model"),
        ([trained[0]], "must name two different runs or more"),
        ([trained[0], trained[0] + "/"], "must name two different runs or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            runs.run(tmp_path, *runs.TESTBED, *runs.METHODS["ppo"], *settings(paths))
