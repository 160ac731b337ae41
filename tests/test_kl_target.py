"""A KL that is steered to a target settles there, at the optimum of the weight that has that KL."""

import pytest

import runs
from rlpref.testbed.exact import sequence_kl
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import make_testbed

pytestmark = pytest.mark.slow

TARGET = 1.0
STEERED = [f"algorithm.kl_target={TARGET}", "algorithm.kl_horizon=4000", "algorithm.rounds=60", "training.log_every=1"]


def weight_of(kl: float, task) -> float:
    """beta whose optimum is that far from the reference; the KL falls as beta grows."""
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        best = optimum(task, task.ref, task.rewards, middle).policy
        low, high = (middle, high) if float(sequence_kl(task, best, task.ref).mean()) > kl else (low, middle)
    return low


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_whatever_it_starts_from_the_kl_settles_at_its_target_on_the_frontier(beta, tmp_path):
    """To a tenth: the KL that steers is that of 512 answers, and moves by a fortieth a round at most."""
    settings = ["threads=1", "logger.mode=disabled", "data.pairs=50", "evaluation.times=1"]
    summary = runs.run(tmp_path, *settings, "algorithm=ppo", f"beta={beta}", *STEERED)
    assert summary["exact/kl"] == pytest.approx(TARGET, rel=0.1)
    assert summary["exact/gap"] < 0.01
    assert "exact/regret" not in summary  # to which beta?
    weights = [row["objective/kl_coef"] for row in runs.metrics(tmp_path) if "objective/kl_coef" in row]
    assert weights[0] == pytest.approx(beta)
    expected = weight_of(TARGET, make_testbed(**runs.compose()[0]["testbed"]))
    assert sum(weights[-10:]) / 10 == pytest.approx(expected, rel=0.1)
