"""rlpref.testbed.duels: win rates and their optima, against definitions and enumeration."""

import math
from dataclasses import replace

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.testbed import duels, exact, optima, preferences, selection
from rlpref.testbed.task import answer_places, places

TAU = 0.1


def intransitive(task, gamma, seed=0):
    """sigmoid(r - r' + gamma A) with A skew: no reward expresses it."""
    generator = torch.Generator().manual_seed(seed)
    n = len(answer_places(task))
    noise = torch.randn(task.tree.prompts, n, n, generator=generator, dtype=torch.float64)
    rewards = task.rewards.flatten(1)[:, answer_places(task)]
    margins = rewards[:, :, None] - rewards[:, None, :]
    return preferences.tabulated(task, (margins + gamma * (noise - noise.mT)).sigmoid())


def test_win_probability_is_a_probability_and_even_against_oneself(task, random_policy):
    policy = random_policy(task, 3)
    beats = duels.win_probability(task, policy, preferences.bradley_terry(task))
    ends = task.ends.expand_as(beats)
    assert ((beats[ends] > 0) & (beats[ends] < 1)).all()
    assert (beats[~ends] == 0).all()
    torch.testing.assert_close(exact.expectation(task, policy, beats), torch.full((2,), 0.5).double())
    x, mass = 1, exact.answer_logps(task, policy).exp()
    node, token = 2, 0
    by_hand = sum(
        mass[x, n, t].item() / (1 + math.exp(task.rewards[x, n, t] - task.rewards[x, node, token]))
        for n, t in task.ends.nonzero().tolist()
    )
    assert beats[x, node, token].item() == pytest.approx(by_hand)


def test_win_probability_does_not_depend_on_the_chunks(task, random_policy, monkeypatch):
    policy, preference = random_policy(task, 3), intransitive(task, 1.0)
    whole = duels.win_probability(task, policy, preference)
    monkeypatch.setattr(duels, "PAIRS_AT_ONCE", 70)
    torch.testing.assert_close(duels.win_probability(task, policy, preference), whole)


def test_a_table_of_bradley_terry_probabilities_is_bradley_terry(task):
    preference = preferences.bradley_terry(task)
    answers = answer_places(task)
    table = preferences.tabulated(task, duels.crossed(task, preference, answers, answers))
    some, others = answers[[4, 1]], answers[[0, 2, 3]]
    given, found = (duels.crossed(task, p, some, others) for p in (preference, table))
    torch.testing.assert_close(found, given)


@pytest.mark.parametrize("fault", ["shape", "sum", "sign"])
def test_a_matrix_that_is_no_preference_is_refused(task, fault):
    matrix = torch.full((2, 15, 15), 0.5, dtype=torch.float64)
    if fault == "shape":
        matrix = matrix[:, :14]
    elif fault == "sum":
        matrix[0, 1, 2] = 0.6
    else:
        matrix[0, 1, 2], matrix[0, 2, 1] = -0.5, 1.5
    with pytest.raises(ValueError, match="preference matrix"):
        preferences.tabulated(task, matrix)


def test_ipo_has_the_largest_win_rate_for_its_kl(task, random_policy):
    mu, preference = random_policy(task, 7), intransitive(task, 1.0)
    wins = duels.win_probability(task, mu, preference)

    def objective(policy):
        kl = exact.sequence_kl(task, policy, task.ref)
        return exact.expectation(task, policy, wins) - TAU * kl

    own = duels.ipo_optimum(task, task.ref, mu, preference, TAU)
    best = objective(own)
    for seed in range(50):
        assert (objective((own + 0.2 * random_policy(task, seed)).log_softmax(-1)) < best).all()
    elsewhere = duels.ipo_optimum(task, task.ref, task.ref, preference, TAU)
    assert exact.sequence_kl(task, own, elsewhere).min() > 1e-3  # the opponents matter


def test_the_slope_of_ipos_frontier_is_tau(task, random_policy):
    taus = torch.logspace(0, -2, 61, dtype=torch.float64).tolist()
    points = duels.ipo_frontier(task, task.ref, random_policy(task, 7), intransitive(task, 1.0), taus)
    assert points["tau"] == taus
    kl, wins = (torch.tensor(points[name], dtype=torch.float64) for name in ("kl", "win_rate"))
    between = (torch.tensor(taus[1:]) * torch.tensor(taus[:-1])).sqrt()
    assert ((wins.diff() / kl.diff() / between - 1).abs() < 0.01).all()
    assert (wins < 1).all()
    policy = duels.ipo_optimum(task, task.ref, random_policy(task, 7), intransitive(task, 1.0), taus[30])
    assert exact.sequence_kl(task, policy, task.ref).mean().item() == pytest.approx(points["kl"][30])


def test_the_policy_of_chosen_answers_is_the_law_of_the_winner(task, random_policy, finished):
    mu, preference = random_policy(task, 2), intransitive(task, 1.0)
    chosen = finished(task, exact.answer_logps(task, duels.chosen_policy(task, mu, preference))).exp()
    mass = finished(task, exact.answer_logps(task, mu)).exp()
    answers = answer_places(task)
    pairs = mass[:, :, None] * mass[:, None, :]
    wins = pairs * duels.crossed(task, preference, answers, answers)
    torch.testing.assert_close(chosen, wins.sum(2) + (pairs - wins).sum(1))


def test_with_deterministic_labels_the_chosen_answers_are_best_of_two(task, random_policy):
    mu = random_policy(task, 2)
    coarse = task.rewards.round()  # so that answers tie
    for rewards in (task.rewards, coarse):
        chosen = duels.chosen_policy(task, mu, preferences.deterministic(replace(task, rewards=rewards)))
        best = selection.best_of_n(task, mu, rewards, 2)
        assert exact.sequence_kl(task, chosen, best).max().abs() < 1e-12


@pytest.mark.parametrize(("gamma", "tau"), [(0.0, 0.1), (2.0, 0.3), (4.0, 0.1), (4.0, 0.03)])
def test_the_equilibrium_is_its_own_best_reply_and_cannot_be_exploited(task, finished, gamma, tau):
    preference = intransitive(task, gamma)
    solved = duels.nash(task, task.ref, preference, tau)
    assert solved.residual < 1e-10
    reply = duels.ipo_optimum(task, task.ref, solved.policy, preference, tau)
    masses = [finished(task, exact.answer_logps(task, table)).exp() for table in (reply, solved.policy)]
    assert (masses[0] - masses[1]).abs().sum(1).max() < 1e-10
    assert duels.exploitability(task, solved.policy, task.ref, preference, tau).abs().max() < 1e-10


def test_what_is_no_equilibrium_can_be_exploited_by_the_best_reply(task, random_policy):
    preference = intransitive(task, 2.0)
    for seed in range(5):
        policy = random_policy(task, seed)
        gain = duels.exploitability(task, policy, task.ref, preference, TAU)
        assert (gain > 0).all()
        wins = duels.win_probability(task, policy, preference)
        reply = duels.ipo_optimum(task, task.ref, policy, preference, TAU)
        values = [
            exact.expectation(task, table, wins) - TAU * exact.sequence_kl(task, table, task.ref)
            for table in (reply, policy)
        ]
        torch.testing.assert_close(gain, values[0] - values[1])


def test_under_bradley_terry_the_equilibrium_ranks_answers_as_the_reward_does(task, finished):
    """gamma = 0: p(y beats pi) rises with r(y) alone, so log pi/ref does; with weak rewards p is 1/2 + (r - E r)/4
    and the equilibrium is the ordinary optimum at beta = 4 tau."""
    solved = duels.nash(task, task.ref, intransitive(task, 0.0), TAU)
    gain = finished(task, exact.answer_logps(task, solved.policy) - exact.answer_logps(task, task.ref))
    rewards = finished(task, task.rewards)
    better, likelier = (table[:, :, None] - table[:, None, :] for table in (rewards, gain))
    assert (likelier[better > 1e-9] > 0).all()
    assert likelier[better.abs() <= 1e-9].abs().max() < 1e-9
    weak = 1e-4 * task.rewards
    solved = duels.nash(task, task.ref, preferences.mixed_annotators([weak], [1.0]), tau=1e-4)
    plain = optima.optimum(task, task.ref, weak, 4e-4).policy
    assert exact.sequence_kl(task, plain, task.ref).min() > 0.01
    assert exact.sequence_kl(task, solved.policy, plain).max() < 1e-7


def test_an_equilibrium_that_is_not_reached_is_an_error(task):
    with pytest.raises(RuntimeError, match="no equilibrium after 3 steps"):
        duels.nash(task, task.ref, intransitive(task, 2.0), TAU, max_steps=3)


def test_a_preference_of_token_sequences_is_that_of_their_places(task, random_policy, testbed_models, testbed_data):
    options = {"gamma": 2.0, "seed": 1}
    asked, pairs = duels.preference_of(task, "non_transitive", options), testbed_data(task, testbed_models(task)).train
    (prompt, one), (_, other) = (places(task.tree, side) for side in (pairs.chosen, pairs.rejected))
    truth = preferences.preference_model("non_transitive", options)(task)(prompt, one, other)
    torch.testing.assert_close(asked(pairs.chosen, pairs.rejected), truth.float())
    torch.testing.assert_close(asked(pairs.rejected, pairs.chosen), 1 - truth.float())
    turned = torch.arange(len(pairs)).roll(1)
    with pytest.raises(ValueError, match="two answers to one prompt"):
        asked(pairs.chosen, pairs.rejected[turned])
    with pytest.raises(ConfigError, match="'ties' leaves pairs undecided"):
        duels.preference_of(task, "ties", {"band": 0.2, "rule": "drop"})


def test_a_player_of_the_game_without_kl_is_exploited_by_single_answers(task, random_policy, finished):
    preference, policy = intransitive(task, 2.0), random_policy(task, 1)
    found = duels.played(task, policy, task.ref, preference, TAU)
    answers = answer_places(task)
    beats = duels.crossed(task, preference, answers, answers)
    mass = finished(task, exact.answer_logps(task, policy)).exp()
    free = torch.einsum("xab,xb->xa", beats, mass).amax(1) - 0.5
    assert found["exploitability_free"] == pytest.approx(free.mean().item())
    gain = duels.exploitability(task, policy, task.ref, preference, TAU)
    assert found["exploitability"] == pytest.approx(gain.mean().item())
    assert duels.played(task, policy, task.ref, preference, None).keys() == {"exploitability_free"}


@pytest.mark.parametrize("rounds", [2, 5])
def test_a_rolling_reference_answers_the_mean_of_its_rounds_at_tau_over_rounds(task, rounds, finished):
    """IPO's (and SPPO's) population step with the previous policy as reference and opponent, T times at tau, is one
    best reply at tau/T to the mean of the T opponents, from the first reference."""
    preference, tau, policy, seen = intransitive(task, 2.0), 1.0, task.ref, []
    for _ in range(rounds):
        seen.append(exact.answer_logps(task, policy).exp())
        policy = duels.ipo_optimum(task, policy, policy, preference, tau)
    mean = optima.conditionals_of(task, torch.stack(seen).mean(0).log())
    once = duels.ipo_optimum(task, task.ref, mean, preference, tau / rounds)
    assert exact.sequence_kl(task, policy, once).abs().max() < 1e-12
    fixed = duels.ipo_optimum(task, task.ref, task.ref, preference, tau / rounds)
    assert exact.sequence_kl(task, policy, fixed).max() > 1e-5  # against one opponent it is another policy


def test_the_mean_of_multiplicative_weights_nears_the_equilibrium_that_the_last_one_circles(task):
    """SPPO's game: no KL, eta = 1/beta. What its rounds aim at in the population limit."""
    preference, policy, total = intransitive(task, 4.0), task.ref, 0.0
    for _ in range(600):
        total = total + exact.answer_logps(task, policy).exp()
        policy = duels.ipo_optimum(task, policy, policy, preference, 2.0)
    mean = optima.conditionals_of(task, (total / 600).log())
    last, averaged = (
        duels.played(task, player, task.ref, preference, None)["exploitability_free"] for player in (policy, mean)
    )
    assert averaged < 0.02
    assert last > 10 * averaged
