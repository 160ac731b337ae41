"""Nash-MD against the exact gradient: production collect and loss on every answer against every one of the mixture."""

from types import SimpleNamespace

import pytest
import torch
from tuples import drawn_once, mean_gradient

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.binding import ConfigError
from rlpref.models.tabular import TabularLM
from rlpref.ops.logps import token_logps
from rlpref.testbed import duels
from rlpref.testbed.gradients import objective_gradient
from rlpref.testbed.task import make_testbed

TAU = 0.2
SETTINGS = {"beta": TAU, "rounds": 3, "prompts_per_round": 4, "k": 4, "lr_scale": 1.0}
SETTINGS |= {"share": 0.25, "baseline": "leave_one_out"}
CYCLES = {"gamma": 3.0, "seed": 0}


def nash_md(**changes):
    return make_algorithm("nash_md", SETTINGS | changes, "nash_md")


def collect(algorithm, models, data, index=0):
    round = Round(index, [torch.Generator().manual_seed(index)], [Costs()])
    return algorithm.collect(models, data, round), round


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, "algorithm.share must be from 0 to 1, not 1.5"),
        ({"k": 1}, "algorithm.k is 1: baseline 'leave_one_out' needs two answers"),
        ({"baseline": "none"}, "'baseline' cannot be 'none'"),
        ({"epochs": 2}, "does not use 'epochs'"),
    ],
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ConfigError) as refusal:
        nash_md(**changes)
    assert message in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_mean_gradient_is_that_of_the_win_rate_against_the_mixture_less_the_kl(
    share, random_policy, testbed_models, testbed_data
):
    task = make_testbed(vocab=3, horizon=2, prompts=2, seed=0, reward="ngram")
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    models.policy.double()
    models.preference = duels.preference_of(task, "non_transitive", CYCLES)
    drawn, chance = drawn_once(models, task, policy, 2)
    own, rivals = (drawn[torch.arange(first, len(drawn), 2)] for first in (0, 1))
    mixed = ((1 - share) * policy + share * task.ref).log_softmax(-1)
    tree = task.tree
    rival = TabularLM(tree.vocab, tree.horizon, tree.prompts).double().set_conditionals(mixed)
    ratio = (token_logps(rival, rivals.sequences)[0] - rivals.logps).sum(1).exp().detach()
    turns = iter([own, rivals])
    models.engine = SimpleNamespace(sample=lambda *_: next(turns))
    algorithm = nash_md(k=1, baseline="half", share=share)
    rollouts, _ = collect(algorithm, models, testbed_data(task, models))
    found = mean_gradient(algorithm.loss(models, rollouts), 2 * chance[::2] * ratio, models, task)
    wins = duels.win_probability(task, mixed, models.preference.preference)
    exact = objective_gradient(task, policy, task.ref, wins, TAU)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)  # probabilities are read in fp32
    assert exact.abs().max() > 0.01


def test_rivals_are_drawn_from_the_mixture_and_judgements_are_labels(laboratory):
    models, data = laboratory
    asked = []

    def preference(first, second):
        asked.append((first, second))
        return torch.full((len(first),), 0.75)

    models.preference, models.reward = preference, None
    rollouts, round = collect(nash_md(), models, data)
    first, second = asked[0]
    assert torch.equal(first.ids[:, 0], second.ids[:, 0])
    assert (round.costs[0].labels, round.costs[0].samples) == (16, 32)
    kl = (rollouts.logps - rollouts.ref_logps).sum(1)
    expected = 0.25 - TAU * kl
    torch.testing.assert_close(rollouts.returns[rollouts.sequences.mask], expected.repeat_interleave(first.lengths))
    assert round.metrics["objective/win_rate"] == 0.75


def test_the_shares_of_theorem_1_fall(laboratory):
    models, data = laboratory
    found = [collect(nash_md(share=None), models, data, index)[1].metrics["objective/share"].item() for index in (0, 2)]
    assert found == [1.0, 0.5]


def test_at_the_equilibrium_only_the_rivals_are_noise(task, testbed_models, testbed_data):
    """Against every rival at once the return of each answer is the same there: ref exp(p/tau)/Z."""
    preference = duels.preference_of(task, "non_transitive", CYCLES)
    solved = duels.nash(task, task.ref, preference.preference, TAU).policy
    models = testbed_models(task, solved)
    models.preference = lambda first, second: mean_wins(first)
    table = duels.win_probability(task, solved, preference.preference).flatten(1)

    def mean_wins(sequences):
        prompt, place = duels.places(task.tree, sequences)
        return table[prompt, place].float()

    rollouts, _ = collect(nash_md(share=0.0), models, testbed_data(task, models))
    assert rollouts.scores.std() > 0.01
    assert rollouts.advantages.abs().max() < 1e-5
