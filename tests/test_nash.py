"""Methods that a preference labels near the equilibrium of its game, where offline IPO does not."""

import pytest

import runs

pytestmark = pytest.mark.slow  # whole runs

SHORT = ["experiment=nash", "replicas=1", "threads=1", "beta=0.3", "testbed.prompts=2", "data.pairs=2000"]
SHORT += ["evaluation.times=1", "evaluation.pairs=50", "budget.reinforce.rounds=250", "budget.iterative.rounds=250"]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    return runs.run(tmp_path_factory.mktemp("ipo"), *SHORT, "algorithm=ipo", "algorithm.epochs=20")


@pytest.mark.parametrize("algorithm", ["online_ipo", "nash_md", "sppo_online"])
def test_it_can_hardly_be_exploited(algorithm, offline, tmp_path):
    found = runs.run(tmp_path, *SHORT, f"algorithm={algorithm}")
    start = runs.metrics(tmp_path)[0]["exact/exploitability"]
    assert found["exact/exploitability"] < 1e-3 < start / 10
    assert found["exact/exploitability"] < offline["exact/exploitability"]
