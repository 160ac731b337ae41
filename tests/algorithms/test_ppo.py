import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.common import after_eos_rule
from rlpref.algorithms.ppo import explained_variance
from rlpref.binding import ConfigError
from rlpref.models.heads import answer_scores, critic_from, scalar_model, state_values
from rlpref.ops.logps import token_logps
from rlpref.types import Sequences

SETTINGS = {
    "beta": 0.3,
    "rounds": 2,
    "epochs": 1,
    "batch_size": 64,
    "prompts_per_round": 4,
    "k": 8,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.5,
    "whiten_advantages": False,
    "eos_rule": "none",
    "eos_penalty": None,
    "lr_scale": 1.0,
    "critic_lr_scale": 2.0,
}


def ppo(**changes):
    return make_algorithm("ppo", SETTINGS | changes, "ppo")


@pytest.fixture
def laboratory(task, random_policy, testbed_models, testbed_data):
    """A policy away from its reference, and a critic with a random head."""
    models = testbed_models(task)
    data = testbed_data(task, models)
    models.policy.set_conditionals(random_policy(task, 1))
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
