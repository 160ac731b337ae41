import pytest
import torch

from rlpref.evaluation.exact import make_exact
from rlpref.testbed import exact, measures, optima
from rlpref.testbed.coverage import coverage


def test_every_exact_value_is_that_of_the_enumeration(task, random_policy, testbed_models):
    policy = random_policy(task, 1)
    models = testbed_models(task, policy)
    evaluator = make_exact(task, models, 0.5)
    row = evaluator(models)
    mass = exact.answer_logps(task, policy).exp()
    lengths = (task.depth + 1.0)[None, :, None]
    assert row["exact/reward"] == pytest.approx((mass * task.rewards).sum((1, 2)).mean().item(), abs=1e-5)
    assert row["exact/length"] == pytest.approx((mass * lengths).sum((1, 2)).mean().item(), abs=1e-5)
    for name, p, q in (("kl", policy, task.ref), ("reverse_kl", task.ref, policy)):
        assert row[f"exact/{name}"] == pytest.approx(exact.sequence_kl(task, p, q).mean().item(), abs=1e-5)
    best = optima.optimum(task, task.ref, task.rewards, 0.5).policy
    regret = 0.5 * exact.sequence_kl(task, policy, best).mean().item()
    assert row["exact/regret"] == pytest.approx(regret, abs=1e-5)
    assert 0 < row["exact/gap"] < row["exact/regret"]
    gain = row["exact/reward"] - exact.expectation(task, task.ref, task.rewards).mean().item()
    assert row["exact/efficiency"] == pytest.approx(gain / (gain + row["exact/gap"]), abs=1e-5)
    solved = optima.optimum(task, task.ref, task.rewards, 0.5)
    advantage = solved.q - solved.v[:, :, None]
    for name, occupancy in (("credit_corr", policy), ("credit_corr_ref", task.ref)):
        expected = measures.credit_correlation(task, policy, task.ref, advantage, occupancy)
        assert row[f"exact/{name}"] == pytest.approx(expected, abs=1e-5)
    parts = measures.regret_by_position(task, evaluator.policy(models), best, 0.5)
    assert parts.sum(1).mean().item() == pytest.approx(row["exact/regret"], abs=1e-5)


def test_the_optimum_has_neither_regret_nor_gap(task, testbed_models):
    models = testbed_models(task, optima.optimum(task, task.ref, task.rewards, 0.5).policy)
    row = make_exact(task, models, 0.5)(models)
    assert row["exact/regret"] == pytest.approx(0, abs=1e-6)
    assert row["exact/gap"] == pytest.approx(0, abs=1e-6)
    for name in ("efficiency", "credit_corr", "credit_corr_ref"):
        assert row[f"exact/{name}"] == pytest.approx(1, abs=1e-5)


def test_without_beta_there_is_no_regret(task, random_policy, testbed_models):
    models = testbed_models(task, random_policy(task, 1))
    with_beta, without = (make_exact(task, models, beta)(models).keys() for beta in (0.5, None))
    assert with_beta - without == {"exact/regret", "exact/credit_corr", "exact/credit_corr_ref"}


def test_a_policy_that_has_not_moved_has_neither_efficiency_nor_credit(task, testbed_models):
    models = testbed_models(task)
    row = make_exact(task, models, 0.5)(models)
    assert "exact/gap" in row
    assert not {"exact/efficiency", "exact/credit_corr", "exact/credit_corr_ref"} & row.keys()


def test_temperature_belongs_to_policy_and_reference(task, testbed_models):
    """At temperature 2 the reference is the tempered table: the run's frontier starts at its reward."""
    models = testbed_models(task, temperature=2.0)
    evaluator = make_exact(task, models, 0.5)
    torch.testing.assert_close(evaluator.ref, (task.ref / 2).log_softmax(-1), atol=1e-6, rtol=0)
    row = evaluator(models)
    assert row["exact/kl"] == pytest.approx(0, abs=1e-9)
    assert evaluator.frontier()["reward"][0] == pytest.approx(row["exact/reward"], abs=1e-2)


def test_coverage_is_that_of_the_runs_own_optimum(task, testbed_models):
    """Of the reference and the temperature of the run, at its beta; JSON gets words where it has no number."""
    evaluator = make_exact(task, testbed_models(task, temperature=2.0), 0.5)
    ref = (task.ref / 2).log_softmax(-1)
    best = exact.answer_logps(task, optima.optimum(task, ref, task.rewards, 0.5).policy)
    found = evaluator.coverage("reference", {})
    assert found == pytest.approx(coverage(task, best, exact.answer_logps(task, ref)), abs=1e-4)
    hole = evaluator.coverage("holes", {"factor": [2]})
    assert hole["c_inf"] == hole["c_2"] == "infinite"
    assert 0 < hole["outside"] < 1


def test_coverage_is_that_of_the_policy_as_it_is_now(task, random_policy, testbed_models):
    """By its definition, for a policy off the support of the pairs and for one on it."""
    policy, ref = random_policy(task, 1), exact.answer_logps(task, task.ref)
    models = testbed_models(task, policy)
    evaluator = make_exact(task, models, None)
    mass = exact.answer_logps(task, policy).exp()
    row = evaluator(models, ref)
    ratio = torch.where(task.ends, mass / ref.exp(), 0.0)
    assert row["exact/coverage_c_inf"] == pytest.approx(ratio.max().item(), rel=1e-4)
    assert row["exact/coverage_c_2"] == pytest.approx((mass * ratio).sum((1, 2)).mean().item(), rel=1e-4)
    assert row["exact/coverage_outside"] == 0
    hole = ref.clone()
    hole[:, 0, 0] = -torch.inf  # the empty answer never comes
    row = evaluator(models, hole)
    assert row["exact/coverage_outside"] == pytest.approx(mass[:, 0, 0].mean().item(), abs=1e-6)
    assert not {"exact/coverage_c_inf", "exact/coverage_c_2"} & row.keys(), "JSON knows no infinity"


def test_the_reference_covers_itself(task, testbed_models):
    models = testbed_models(task)
    row = make_exact(task, models, 0.5)(models, exact.answer_logps(task, task.ref))
    assert row["exact/coverage_c_inf"] == pytest.approx(1, abs=1e-5)
    assert row["exact/coverage_c_2"] == pytest.approx(1, abs=1e-5)


def test_without_a_known_distribution_there_is_no_coverage(task, testbed_models):
    models = testbed_models(task)
    assert not [key for key in make_exact(task, models, 0.5)(models) if "coverage" in key]


def test_the_cost_is_its_mean_under_the_policy(task, random_policy, testbed_models):
    policy = random_policy(task, 1)
    assert "exact/cost" not in make_exact(task, testbed_models(task, policy), 0.5)(testbed_models(task, policy))
    task.costs = random_policy(task, 2)  # any function of finished answers
    models = testbed_models(task, policy)
    expected = (exact.answer_logps(task, policy).exp() * torch.where(task.ends, task.costs, 0.0)).sum((1, 2)).mean()
    assert make_exact(task, models, 0.5)(models)["exact/cost"] == pytest.approx(float(expected), abs=1e-5)
