"""Preference models against their formulas, their limits, and one another."""

import math
from statistics import NormalDist

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.testbed import preferences as p
from rlpref.testbed.rewards import ngram, standardised
from rlpref.testbed.task import answer_lengths

OPTIONS = {
    "flips": {"epsilon": 0.2},
    "mixture": {"weights": [0.5, 0.3, 0.2], "seed": 1},
    "length_biased": {"bias": 0.4},
    "position_biased": {"bias": 0.8},
    "non_transitive": {"gamma": 3.0, "seed": 1, "features": 4},
    "ties": {"band": 0.5, "rule": "drop"},
    "judge": {"labels": 30, "seed": 1},
    "table": {"wins": [[0.5 + 0.03 * (i - j) for j in range(15)] for i in range(15)]},
}


def model(task, name, **options):
    return p.preference_model(name, options or OPTIONS.get(name))(task)


def matrix(task, name, **options):
    return p.matrix(task, model(task, name, **options))


def of_answers(task, table):
    return table.flatten(1)[:, task.ends.flatten()]


def margins(task):
    """[prompts, answers, answers] dr of every pair."""
    rewards = of_answers(task, task.rewards)
    return rewards[:, :, None] - rewards[:, None]


@pytest.mark.parametrize("name", p.PREFERENCES)
def test_either_answer_of_a_pair_wins(task, name):
    found = matrix(task, name)
    assert found.shape == (2, 15, 15)
    assert found.dtype == torch.float64
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(found + found.transpose(1, 2), torch.ones_like(found))
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.full((2, 15), 0.5).double())


def test_a_table_is_the_preference_itself_and_refused_where_it_is_none(task):
    torch.testing.assert_close(matrix(task, "table")[0], torch.tensor(OPTIONS["table"]["wins"]).double())
    with pytest.raises(ConfigError, match="wins of 15 by 15"):
        model(task, "table", wins=[[0.5]])
    with pytest.raises(ConfigError, match="P\\(a beats b\\)"):
        model(task, "table", wins=[[0.6] * 15] * 15)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def flip(dr):
    f = sigma(-abs(dr) / 0.7)
    return sigma(dr / 2) * (1 - f) + (1 - sigma(dr / 2)) * f


FORMULAS = {  # of the model's options: P as a function of dr
    "bradley_terry": ({"temperature": 2.0}, lambda dr: sigma(dr / 2)),
    "deterministic": ({}, lambda dr: (dr > 1e-9) + 0.5 * (abs(dr) < 1e-9)),
    "thurstone": ({"temperature": 0.5}, lambda dr: NormalDist(sigma=0.5).cdf(dr)),
    "flips": ({"epsilon": 0.1, "temperature": 2.0}, lambda dr: 0.9 * sigma(dr / 2) + 0.1 * sigma(-dr / 2)),
    "instance_flips": ({"temperature": 2.0, "flip_temperature": 0.7}, flip),
    "position_biased": ({"bias": 1.5}, lambda dr: (sigma(dr + 1.5) + sigma(dr - 1.5)) / 2),
    "ties": ({"band": 0.6, "rule": "half"}, lambda dr: (1 + sigma(dr - 0.6) - sigma(-dr - 0.6)) / 2),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_model_of_the_reward_difference_is_its_formula(task, name):
    options, formula = FORMULAS[name]
    found = matrix(task, name, **options)
    by_hand = [formula(dr) for dr in margins(task).flatten().tolist()]
    torch.testing.assert_close(found.flatten(), torch.tensor(by_hand, dtype=torch.float64), atol=1e-9, rtol=0)


def test_models_agree_in_their_limits(task):
    plain, sure = matrix(task, "bradley_terry"), matrix(task, "deterministic")
    for name in ("bradley_terry", "thurstone"):
        torch.testing.assert_close(matrix(task, name, temperature=1e-6), sure)
    torch.testing.assert_close(matrix(task, "flips", epsilon=0.5), torch.full_like(plain, 0.5))
    for name, options in (
        ("flips", {"epsilon": 0.0}),
        ("mixture", {"weights": [1.0], "seed": 0}),
        ("length_biased", {"bias": 0.0}),
        ("position_biased", {"bias": 0.0}),
        ("non_transitive", {"gamma": 0.0, "seed": 0}),
        ("ties", {"band": 0.0, "rule": "half"}),
        ("ties", {"band": 0.0, "rule": "drop"}),
        ("instance_flips", {"flip_temperature": 1e-9}),
    ):
        off_diagonal = ~torch.eye(15, dtype=torch.bool)
        torch.testing.assert_close(matrix(task, name, **options)[:, off_diagonal], plain[:, off_diagonal])


def test_flips_shrink_to_one_half_and_close_pairs_are_flipped_most(task):
    plain = matrix(task, "bradley_terry") - 0.5
    shrunk = [matrix(task, "flips", epsilon=epsilon) - 0.5 for epsilon in (0.1, 0.3)]
    torch.testing.assert_close(shrunk[0], 0.8 * plain)
    torch.testing.assert_close(shrunk[1], 0.4 * plain)
    kept = (matrix(task, "instance_flips") - 0.5) / plain
    apart = margins(task).abs()
    order = apart.flatten()[apart.flatten() > 1e-6].argsort()
    assert (kept.flatten()[apart.flatten() > 1e-6][order].diff() >= -1e-9).all()


def test_deterministic_labels_with_instance_flips_are_bradley_terry(task):
    sure, dr = matrix(task, "deterministic"), margins(task)
    f = (-dr.abs()).sigmoid()
    torch.testing.assert_close(sure * (1 - f) + (1 - sure) * f, matrix(task, "bradley_terry"))


def test_equal_rewards_are_ties_whatever_their_rounding(task):
    """Answers of the same tokens in another order can be worth the same but for the last bit."""
    dr, found = margins(task), matrix(task, "deterministic")
    rounded = (dr != 0) & (dr.abs() < 1e-12)
    assert rounded.any()
    assert (found[rounded] == 0.5).all()


def test_a_mixture_is_the_mean_of_its_annotators(task):
    generator = torch.Generator().manual_seed(1)
    tables = [task.rewards, *(standardised(task, ngram(task, generator)) for _ in range(2))]
    by_hand = 0
    for weight, table in zip([0.5, 0.3, 0.2], tables):
        flat = of_answers(task, table)
        by_hand = by_hand + weight * ((flat[:, :, None] - flat[:, None]) / 2).sigmoid()
    found = matrix(task, "mixture", weights=[0.5, 0.3, 0.2], seed=1, temperature=2.0)
    torch.testing.assert_close(found, by_hand)


def test_a_length_biased_annotator_sees_worth_in_tokens(task):
    lengths = answer_lengths(task).flatten()[task.ends.flatten()]
    dr = margins(task) + 0.4 * (lengths[:, None] - lengths)
    torch.testing.assert_close(matrix(task, "length_biased", bias=0.4), dr.sigmoid())


def cycles(found):
    """How many ordered triples beat each other in a ring."""
    beats = (found > 0.5 + 1e-9).double()
    return (beats @ beats @ beats).diagonal(dim1=1, dim2=2).sum()


def test_only_the_skew_part_makes_cycles(task):
    for name in p.PREFERENCES:
        found = cycles(matrix(task, name))
        if name not in ("non_transitive", "mixture"):
            assert found == 0, name
    assert cycles(matrix(task, "non_transitive", gamma=3.0, seed=1)) > 0


def test_the_cyclic_part_is_skew_and_grows_with_gamma(task):
    parts = [matrix(task, "non_transitive", gamma=g, seed=2).logit() - margins(task) for g in (1.0, 2.0)]
    torch.testing.assert_close(parts[0], -parts[0].transpose(1, 2))
    torch.testing.assert_close(parts[1], 2 * parts[0])
    assert torch.linalg.matrix_rank(parts[0][0], atol=1e-9) == 2  # two features: phi(y)^T A phi(y')


def test_ties_come_within_the_band_and_are_left_out_or_halved(task):
    apart = margins(task).abs()
    inside = apart < 0.5
    dropped, halved = (model(task, "ties", band=0.5, rule=rule, temperature=1e-3) for rule in ("drop", "half"))
    answers = task.ends.flatten().nonzero()[:, 0]
    everything = torch.arange(2)[:, None, None], answers[None, :, None], answers[None, None]
    sharp = (apart - 0.5).abs() > 0.05
    torch.testing.assert_close(dropped.decided(*everything)[sharp], 1 - inside[sharp].double())
    assert halved.decided is None
    torch.testing.assert_close(
        halved(*everything)[inside & sharp], torch.tensor(0.5).double().expand(int((inside & sharp).sum()))
    )
    soft = model(task, "ties", band=0.5, rule="drop")
    won, lost = (margins(task) - 0.5).sigmoid(), (-margins(task) - 0.5).sigmoid()
    torch.testing.assert_close(soft(*everything), won / (won + lost))
    torch.testing.assert_close(soft.decided(*everything), won + lost)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bradley_tery", {}, "data.preference 'bradley_tery' is not known. Did you mean 'bradley_terry'"),
        ("deterministic", {"temperature": 1.0}, "'deterministic' does not use 'temperature'"),
        ("flips", {}, "'flips' needs a value for: epsilon"),
        ("flips", {"epsilon": 0.6}, "'flips' needs epsilon between 0 and 0.5; got 0.6"),
        ("bradley_terry", {"temperature": 0.0}, "'bradley_terry' needs temperature > 0"),
        ("mixture", {"weights": [0.5, 0.6], "seed": 0}, "'mixture' needs weights >= 0 that sum to 1"),
        ("mixture", {"weights": 1.0, "seed": 0}, "'weights' cannot be 1.0; it takes a list"),
        ("non_transitive", {"gamma": 1.0, "seed": 0, "features": 1}, "needs features >= 2"),
        ("ties", {"band": 1.0, "rule": "skip"}, "'rule' cannot be 'skip'; it takes one of 'drop', 'half'"),
        ("ties", {"band": -1.0, "rule": "drop"}, "needs band >= 0"),
        ("judge", {"labels": 0, "seed": 0}, "needs labels >= 1"),
        ("judge", {"labels": 5, "seed": 0, "l2": 0.0}, "l2 > 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(task, name, options, message):
    with pytest.raises(ConfigError, match=message):
        p.preference_model(name, options)(task)
