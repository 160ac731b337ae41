import pytest
import torch
from options import PPO

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.common import after_eos_rule
from rlpref.binding import ConfigError
from rlpref.models.heads import answer_scores, critic_from, scalar_model, state_values
from rlpref.ops.gae import explained_variance, gae, penalised_rewards
from rlpref.ops.kl import k2, k3
from rlpref.ops.logps import token_logps
from rlpref.types import Sequences


def ppo(**changes):
    return make_algorithm("ppo", PPO | changes, "ppo")


@pytest.fixture
def laboratory(laboratory):
    """With a critic whose head is random."""
    models, data = laboratory
    models.critic = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    return models, data


def collect(algorithm, models, data):
    round = Round(0, [torch.Generator().manual_seed(0)], [Costs()])
    return algorithm.collect(models, data, round), round


def test_eos_rules_by_hand():
    scores, finished = torch.tensor([2.0, 2.0]), torch.tensor([True, False])
    assert after_eos_rule(scores, finished, "none", None).tolist() == [2.0, 2.0]
    assert after_eos_rule(scores, finished, "subtract", 0.5).tolist() == [2.0, 1.5]
    assert after_eos_rule(scores, finished, "replace", 3.0).tolist() == [2.0, -3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_penalty": 1.0}, "eos_rule 'none' does not use 'eos_penalty'; set it to null"),
        ({"eos_rule": "replace"}, "eos_rule 'replace' needs a value for 'eos_penalty'"),
        ({"eos_rule": "drop", "eos_penalty": 1.0}, "'eos_rule' cannot be 'drop'"),
        ({"clip_range": 0.2}, "does not use 'clip_range'. Did you mean 'cliprange'"),
        ({"kl": "loss"}, "algorithm.kl_estimator 'k1' holds nothing back in the loss"),
        ({"reward_clip": 0.0}, "algorithm.reward_clip must be above 0"),
        ({"dual_clip": 0.5}, "'dual_clip' must be above 1"),
        ({"kl_estimator": "k4"}, "'kl_estimator' cannot be 'k4'"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        ppo(**changes)
    assert message in str(refusal.value)


def test_rewards_of_an_answer_sum_to_its_score_less_beta_times_its_log_ratio(laboratory):
    """At lambda = gamma = 1 the return of the first token is the sum of all rewards."""
    models, data = laboratory
    rollouts, round = collect(ppo(gae_lambda=1.0), models, data)
    sequences = rollouts.sequences
    first = sequences.mask.long().argmax(1, keepdim=True)
    with torch.no_grad():
        kl = token_logps(models.policy, sequences)[0].sum(1) - token_logps(models.ref.model, sequences)[0].sum(1)
    expected = models.gold(sequences) - 0.3 * kl
    assert kl.abs().max() > 0.5
    torch.testing.assert_close(rollouts.returns.gather(1, first)[:, 0], expected, atol=1e-4, rtol=0)
    assert round.metrics["objective/rlhf_reward"] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert round.metrics["objective/kl"] == pytest.approx(kl.mean().item(), abs=1e-4)


def test_the_score_comes_with_the_last_token_of_the_answer(laboratory):
    """At lambda = 0 an advantage is one reward and two values: r_t + V_{t+1} - V_t."""
    models, data = laboratory
    r, _ = collect(ppo(gae_lambda=0.0), models, data)
    mask = r.sequences.mask
    after = torch.nn.functional.pad(r.values[:, 1:], (0, 1))
    rewards = r.advantages + r.values - after
    penalty = -0.3 * (r.logps - r.ref_logps)
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    expected = torch.where(last, penalty + models.gold(r.sequences)[:, None], penalty)
    torch.testing.assert_close(rewards[mask], expected[mask], atol=1e-5, rtol=0)
    assert r.sequences.lengths.unique().numel() > 1


@pytest.mark.parametrize(("rule", "offset"), [("subtract", None), ("replace", -2.0)])
def test_only_answers_without_eos_are_penalised(laboratory, rule, offset):
    models, data = laboratory
    rollouts, _ = collect(ppo(eos_rule=rule, eos_penalty=2.0), models, data)
    raw, answers = models.gold(rollouts.sequences), rollouts.sequences
    finished = torch.tensor([row[kept][-1] == 0 for row, kept in zip(answers.ids, answers.mask)])
    assert finished.any()
    assert not finished.all()
    assert torch.equal(rollouts.scores[finished], raw[finished])
    expected = raw[~finished] - 2.0 if offset is None else torch.full_like(raw[~finished], offset)
    assert torch.equal(rollouts.scores[~finished], expected)


def test_whitening_is_over_all_tokens_of_the_round(laboratory):
    models, data = laboratory
    white, _ = collect(ppo(whiten_advantages=True), models, data)
    plain, _ = collect(ppo(), models, data)
    kept = white.advantages[white.sequences.mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-5)
    assert kept.var(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(white.returns, plain.returns)  # the critic's targets are not whitened


@pytest.mark.parametrize("extra", [0, 2])
def test_a_critic_from_a_reward_model_values_a_state_as_the_model_scores_that_prefix(random_llama, extra):
    """The critic's number *after* the last token is the reward model's score of the answer, and its value of
    the state before token t is the score of the sequence cut before t."""
    reward_model = scalar_model(random_llama(), None, torch.Generator().manual_seed(0))
    critic = critic_from(reward_model)
    ids = torch.randint(1, 12, (3, 6 + extra), generator=torch.Generator().manual_seed(1))
    columns = torch.arange(6 + extra)
    attention = columns < torch.tensor([[6], [4], [5]])
    sequences = Sequences(ids, attention, attention & (columns >= 2))
    with torch.no_grad():
        values = state_values(critic, sequences)
        after = critic(ids, attention, sequences.position_ids)
        scores = answer_scores(reward_model, sequences)
        torch.testing.assert_close(after[torch.arange(3), attention.sum(1) - 1], scores)
        for row, t in sequences.mask.nonzero().tolist():
            cut = Sequences(ids[row : row + 1, :t], *(torch.ones(1, t, dtype=torch.bool),) * 2)
            torch.testing.assert_close(values[row, t], answer_scores(reward_model, cut)[0])
    assert (values[~sequences.mask] == 0).all()


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_critic():
    returns = torch.tensor([[1.0, 2.0, 4.0, float("inf")]])
    mask = returns < 9
    values = torch.stack([returns, torch.full((1, 4), 9.0), returns + 5, -returns])  # an offset is no variance
    found = explained_variance(returns.expand(4, 1, 4), values, mask.expand(4, 1, 4))
    assert found.tolist() == pytest.approx([1, 0, 1, -3], abs=1e-6)


def test_learning_rates_of_policy_and_critic_are_scaled_apart():
    assert ppo().trains == {"policy": 1.0, "critic": 2.0}


def test_the_kl_stands_in_the_reward_or_in_the_loss(laboratory):
    models, data = laboratory
    models.policy.double(), models.critic.double()
    in_reward, _ = collect(ppo(gae_lambda=1.0), models, data)
    mask, log_ratio = in_reward.sequences.mask, in_reward.logps - in_reward.ref_logps
    assert log_ratio.sum(1).abs().max() > 0.5
    for estimator, k in {"k2": k2, "k3": k3}.items():
        found, _ = collect(ppo(gae_lambda=1.0, kl_estimator=estimator), models, data)
        first = mask.long().argmax(1, keepdim=True)
        expected = found.scores - 0.3 * k(log_ratio).sum(1)
        torch.testing.assert_close(found.returns.gather(1, first)[:, 0], expected, check_dtype=False)
        algorithm = ppo(kl="loss", kl_estimator=estimator, gae_lambda=1.0)
        batch, _ = collect(algorithm, models, data)
        torch.testing.assert_close(batch.returns.gather(1, first)[:, 0], batch.scores, check_dtype=False)
        without = ppo(kl="loss", kl_estimator=estimator, beta=0.0).loss(models, batch)
        difference = algorithm.loss(models, batch).value - without.value
        tokens = 0.3 * k(log_ratio).sum(1) / mask.sum(1)
        torch.testing.assert_close(difference, tokens, check_dtype=False, atol=1e-6, rtol=1e-5)


def test_the_critic_may_have_a_lambda_of_its_own(laboratory):
    models, data = laboratory
    same, _ = collect(ppo(), models, data)
    own, _ = collect(ppo(gae_lambda_critic=1.0), models, data)
    torch.testing.assert_close(own.advantages, same.advantages)
    mask = own.sequences.mask
    rewards = penalised_rewards(own.scores, own.logps - own.ref_logps, mask, 0.3)
    torch.testing.assert_close(own.returns, gae(rewards, own.values, mask, 1.0, 1.0) + torch.where(mask, own.values, 0))
    assert (own.returns - same.returns).abs().max() > 1e-3


def test_scores_are_held_and_counted(laboratory):
    models, data = laboratory
    models.reward = lambda sequences: torch.tensor([-3.0, 0.5, 2.0, 0.0]).repeat(len(sequences) // 4)
    held, round = collect(ppo(reward_clip=1.0, beta=0.0, gae_lambda=1.0), models, data)
    first = held.sequences.mask.long().argmax(1, keepdim=True)
    assert held.returns.gather(1, first)[:, 0].tolist() == pytest.approx([-1.0, 0.5, 1.0, 0.0] * 8, abs=1e-5)
    assert held.scores[:4].tolist() == [-3.0, 0.5, 2.0, 0.0]
    assert round.metrics["objective/scores_clipped"] == 0.5
    assert "objective/scores_clipped" not in collect(ppo(), models, data)[1].metrics


def test_whitened_rewards_have_a_spread_of_one_and_their_mean(laboratory):
    models, data = laboratory
    models.reward = lambda sequences: 100 * torch.arange(len(sequences)).float()
    plain, _ = collect(ppo(beta=0.0, gae_lambda=1.0), models, data)
    white, _ = collect(ppo(beta=0.0, gae_lambda=1.0, whiten_rewards=True), models, data)
    mask = plain.sequences.mask
    rewards = penalised_rewards(plain.scores, torch.zeros_like(plain.logps), mask, 0.0)[mask]
    first = mask.long().argmax(1, keepdim=True)
    mean, spread = rewards.mean(), rewards.std(correction=0)
    # A return is the sum over the answer's tokens: each reward over the spread, and what their mean has changed by.
    expected = plain.scores / spread + mask.sum(1) * (mean - mean / spread)
    torch.testing.assert_close(white.returns.gather(1, first)[:, 0], expected, rtol=1e-4, atol=1e-3)


def test_entropy_and_dual_clip_are_in_the_loss(laboratory):
    models, data = laboratory
    batch, _ = collect(ppo(), models, data)
    plain = ppo().loss(models, batch)
    with_bonus = ppo(entropy_coef=0.5).loss(models, batch)
    torch.testing.assert_close(with_bonus.value, plain.value - 0.5 * plain.metrics["objective/entropy"])
    assert with_bonus.value.requires_grad
    batch.logps = batch.logps - 3  # ratios of e^3, beyond 2 where the advantage is below 0
    held = ppo(dual_clip=2.0).loss(models, batch).metrics["loss/policy"]
    free = ppo().loss(models, batch).metrics["loss/policy"]
    assert (held <= free + 1e-6).all()
    assert (held < free - 1e-3).any()
