"""REINFORCE against the exact gradient: production collect and loss on every tuple of answers that can be drawn."""

from types import SimpleNamespace

import pytest
import torch
from tuples import drawn_once, mean_gradient

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.testbed.gradients import objective_gradient
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import make_testbed

BETA = 0.3
SETTINGS = {
    "beta": BETA,
    "rounds": 3,
    "prompts_per_round": 4,
    "k": 8,
    "baseline": "leave_one_out",
    "baseline_rate": None,
    "eos_rule": "none",
    "eos_penalty": None,
    "lr_scale": 1.0,
}
GREEDY = {"baseline": "greedy"}
MOVING = {"baseline": "moving", "baseline_rate": 0.25}


def reinforce(**changes):
    return make_algorithm("reinforce", SETTINGS | changes, "reinforce")


def collect(algorithm, models, data, index=0, carried=None):
    carried = {} if carried is None else carried
    round = Round(index, [torch.Generator().manual_seed(index)], [Costs()], carried=carried)
    return algorithm.collect(models, data, round), round


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 1}, "algorithm.k is 1: baseline 'leave_one_out' needs two answers"),
        ({"baseline_rate": 0.1}, "baseline 'leave_one_out' does not use 'baseline_rate'; set it to null"),
        ({"baseline": "none", "baseline_rate": 0.1}, "baseline 'none' does not use 'baseline_rate'"),
        ({"baseline": "moving"}, "baseline 'moving' needs a value for 'baseline_rate'"),
        ({"baseline": "moving", "baseline_rate": 1.5}, "algorithm.baseline_rate must be above 0 and at most 1"),
        ({"baseline": "mean"}, "'baseline' cannot be 'mean'"),
        ({"eos_penalty": 1.0}, "eos_rule 'none' does not use 'eos_penalty'"),
        ({"eos_rule": "subtract"}, "eos_rule 'subtract' needs a value for 'eos_penalty'"),
        ({"epochs": 2}, "does not use 'epochs'"),
        ({"batch_size": 16}, "does not use 'batch_size'"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        reinforce(**changes)
    assert message in str(refusal.value)


def test_one_answer_to_a_prompt_is_enough_without_the_others():
    assert reinforce(k=1, baseline="none").batch_size == 4
    assert reinforce(k=1, **MOVING).examples(None, 0) == 4


@pytest.mark.parametrize(
    ("k", "changes"),
    [(1, {"baseline": "none"}), (1, MOVING), (2, {"baseline": "none"}), (2, {}), (2, MOVING), (3, {})],
)
def test_the_mean_gradient_is_the_exact_one(k, changes, random_policy, testbed_models, testbed_data):
    """Each answer's loss, as production computes it, weighed with the chance that its tuple is drawn."""
    task = make_testbed(vocab=3, horizon=2, prompts=2, seed=0, reward="ngram")
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    models.policy.double()
    data = testbed_data(task, models)
    drawn, chance = drawn_once(models, task, policy, k)
    algorithm = reinforce(k=k, **changes)
    _, before = collect(algorithm, models, data)
    models.engine = SimpleNamespace(sample=lambda *_: drawn)
    rollouts, _ = collect(algorithm, models, data, 1, before.carried)
    found = mean_gradient(algorithm.loss(models, rollouts), chance, models, task)
    exact = objective_gradient(task, policy, task.ref, task.rewards, BETA)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)  # gold scores are read in fp32
    assert exact.abs().max() > 0.05


def test_the_return_is_the_score_less_beta_times_the_log_ratio_of_the_whole_answer(laboratory):
    models, data = laboratory
    rollouts, round = collect(reinforce(), models, data)
    mask = rollouts.sequences.mask
    kl = (rollouts.logps - rollouts.ref_logps).sum(1)
    expected = models.gold(rollouts.sequences) - BETA * kl
    assert kl.abs().max() > 0.5
    torch.testing.assert_close(rollouts.returns, torch.where(mask, expected[:, None], 0.0))
    torch.testing.assert_close(rollouts.advantages, rollouts.returns - rollouts.values)
    others = (expected.view(4, 8).sum(1, keepdim=True) - expected.view(4, 8)) / 7
    torch.testing.assert_close(rollouts.values, torch.where(mask, others.flatten()[:, None], 0.0))
    assert round.metrics["objective/rlhf_reward"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert round.metrics["objective/kl"] == pytest.approx(kl.mean().item(), abs=1e-5)


def test_at_the_optimum_every_advantage_is_zero(task, testbed_models, testbed_data):
    """The return of every answer is beta log Z there: nothing is left to learn, and no noise."""
    models = testbed_models(task, optimum(task, task.ref, task.rewards, BETA).policy)
    rollouts, round = collect(reinforce(prompts_per_round=2), models, testbed_data(task, models))
    assert rollouts.scores.std() > 0.1
    assert rollouts.advantages.abs().max() < 1e-5
    assert round.metrics["objective/advantages_std"] < 1e-5


def test_the_greedy_baseline_is_the_return_of_the_greedy_answer(laboratory, task, random_policy):
    """One number for each prompt, whatever was drawn: the mean of the gradient does not feel it."""
    models, data = laboratory
    rollouts, round = collect(reinforce(**GREEDY), models, data)
    assert round.costs[0].labels == round.costs[0].samples == 4 * 8 + 4
    first = rollouts.sequences.mask.long().argmax(1, keepdim=True)
    baselines = rollouts.values.gather(1, first)[:, 0]
    prompts = rollouts.sequences.ids[:, 0] - task.tree.vocab
    policy = random_policy(task, 1)
    for prompt in prompts.unique().tolist():
        answer, kl = [], 0.0
        while True:
            prefix = torch.tensor(answer + [-1] * (task.tree.horizon - len(answer)))
            node = int((task.prefixes == prefix).all(1).nonzero())
            token = int(policy[prompt, node].argmax())
            kl += float(policy[prompt, node, token] - task.ref[prompt, node, token])
            if task.ends[node, token]:
                break
            answer.append(token)
        expected = float(task.rewards[prompt, node, token]) - BETA * kl
        assert (baselines[prompts == prompt] - expected).abs().max() < 1e-4


def test_the_moving_baseline_follows_the_returns_of_the_rounds_before(laboratory):
    models, data = laboratory
    algorithm, expected, carried = reinforce(**MOVING), 0.0, {}
    for index in range(3):
        rollouts, _ = collect(algorithm, models, data, index, carried)
        mask = rollouts.sequences.mask
        torch.testing.assert_close(rollouts.values[mask], torch.full_like(rollouts.values[mask], expected))
        kl = (rollouts.logps - rollouts.ref_logps).sum(1)
        expected += 0.25 * (float((rollouts.scores - BETA * kl).mean()) - expected)
        assert carried["baseline"].dtype == torch.float64
    assert abs(expected) > 1e-3


def test_cut_answers_are_penalised_before_the_return(laboratory):
    models, data = laboratory
    rollouts, _ = collect(reinforce(eos_rule="subtract", eos_penalty=2.0), models, data)
    raw, answers = models.gold(rollouts.sequences), rollouts.sequences
    finished = torch.tensor([row[kept][-1] == 0 for row, kept in zip(answers.ids, answers.mask)])
    assert finished.any()
    assert not finished.all()
    torch.testing.assert_close(rollouts.scores, torch.where(finished, raw, raw - 2.0))
    first = answers.mask.long().argmax(1, keepdim=True)
    kl = (rollouts.logps - rollouts.ref_logps).sum(1)
    torch.testing.assert_close(rollouts.returns.gather(1, first)[:, 0], rollouts.scores - BETA * kl)
