"""What a critic is when a run begins, and what moves it."""

import pytest
import torch

import runs
from rlpref.binding import ConfigError
from rlpref.build import build
from rlpref.check import check
from rlpref.models.heads import answer_scores, state_values

pytestmark = pytest.mark.slow  # one trains a reward model

PPO = [*runs.TESTBED, *runs.METHODS["ppo"]]


def models_of(*overrides):
    config, keys = runs.compose(*PPO, *overrides)
    parts = build(config, check(config, keys))
    prompts = parts.data.prompts[:8]
    drawn = parts.models.engine.sample(
        parts.models.policy, prompts, 2, parts.models.max_new_tokens, 1.0, 0, [torch.Generator().manual_seed(0)]
    )
    return parts.models, drawn.sequences


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward_model")
    runs.run(folder, *runs.TESTBED, *runs.METHODS["reward_model"])
    return ["reward=learned", f"reward.path={folder}"]


@pytest.mark.parametrize("choice", ["auto", "reward_model"])
def test_from_a_reward_model_the_number_after_the_last_token_is_its_score(choice, learned):
    models, answers = models_of(*learned, f"algorithm.critic_init={choice}")
    with torch.no_grad():
        scores = models.reward(answers)
        torch.testing.assert_close(answer_scores(models.critic, answers), scores, rtol=0, atol=0)
    assert scores.std() > 1e-3
    assert models.critic.backbone is not models.reward.model.backbone


@pytest.mark.parametrize(("settings", "zero"), [([], True), (["algorithm.critic_init=random"], False)])
def test_else_all_values_are_zero_or_those_of_a_random_head(settings, zero):
    models, answers = models_of(*settings)
    assert (state_values(models.critic, answers).abs().max() == 0) == zero


def test_the_policys_decoder_may_be_chosen_beside_a_learned_reward(learned):
    models, answers = models_of(*learned, "algorithm.critic_init=policy")
    assert state_values(models.critic, answers).abs().max() == 0
    torch.testing.assert_close(models.critic.backbone.rows.weight, models.policy.model.rows.weight)


def test_a_start_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="critic_init 'reward_model' needs one, and reward is 'gold'"):
        models_of("algorithm.critic_init=reward_model")


@pytest.mark.parametrize("model", ["tabular", "tiny"])
def test_a_shared_critic_is_a_head_on_the_policy_whose_loss_moves_both(model, tmp_path):
    small = [f"model={model}", *(["model.pretrain_steps=3"] if model == "tiny" else [])]
    models, answers = models_of(*small, "algorithm.critic=shared", "algorithm.critic_init=random")
    assert [name for name, _ in models.critic.named_parameters()] == ["head.weight", "head.bias"]
    assert models.critic.state_dict().keys() == {"head.weight", "head.bias"}
    state_values(models.critic, answers).square().sum().backward()
    assert models.critic.head.weight.grad.abs().sum() > 0
    assert sum(float(p.grad.abs().sum()) for p in models.policy.parameters() if p.grad is not None) > 0
    runs.run(tmp_path, *PPO, *small, "algorithm.critic=shared", "algorithm.rounds=2")
    assert set(runs.weights(tmp_path)) == {"policy.safetensors", "critic.safetensors"}
    assert len(runs.weights(tmp_path)["critic.safetensors"]) < 1000


def test_a_critic_that_warms_up_leaves_the_policy_where_it_was(tmp_path):
    runs.run(tmp_path, *PPO, "algorithm.rounds=14", "algorithm.critic_warmup=10", "evaluation.times=7")
    rows = [row for row in runs.metrics(tmp_path) if "exact/kl" in row]
    assert [row["exact/kl"] for row in rows if row["round"] < 10] == [0.0] * sum(row["round"] < 10 for row in rows)
    assert rows[-1]["exact/kl"] > 1e-4
    values = [row["loss/value"] for row in runs.metrics(tmp_path) if "loss/value" in row and row["round"] < 10]
    assert sum(values[-10:]) < sum(values[:10])
