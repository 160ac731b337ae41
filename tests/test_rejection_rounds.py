"""Rounds of rejection sampling end where their closed form says: best of N^K, or the mixture of all stages."""

import pytest
import torch

import runs
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.selection import order_statistic, rejection_rounds
from rlpref.testbed.task import Testbed, make_testbed

pytestmark = pytest.mark.slow

ROUNDS = ["algorithm=rejection", "algorithm.epochs=2", "optimizer.schedule=constant", "evaluation.times=3"]
FEW = ["threads=1", "logger.mode=disabled", "data.pairs=40", "data.test_pairs=20", "evaluation.k=4"]


def reward(task: Testbed, policy: torch.Tensor) -> float:
    chance = torch.where(task.ends, answer_logps(task, policy).exp(), 0.0)
    return float((chance * torch.where(task.ends, task.rewards, 0.0)).flatten(1).sum(1).mean())


def task_of(*overrides: str) -> Testbed:
    settings = runs.compose(*overrides)[0]["testbed"]
    return make_testbed(*(settings[key] for key in ("vocab", "horizon", "prompts", "seed", "reward")))


@pytest.mark.parametrize("stages", ["last", "all"])
def test_three_rounds_of_the_best_of_four(stages, tmp_path):
    task = task_of(*ROUNDS)
    runs.run(tmp_path, *ROUNDS, *FEW, f"algorithm.stages={stages}", f"evaluation.times={3 if stages == 'last' else 6}")
    found = {row["step"]: row["exact/reward"] for row in runs.metrics(tmp_path) if "exact/reward" in row}
    steps = [32, 64, 96] if stages == "last" else [32, 96, 192]  # of the rounds' ends
    for round, step in enumerate(steps, 1):
        exact = reward(task, rejection_rounds(task, task.ref, task.rewards, 4, round, keep_all=stages == "all"))
        assert found[step] == pytest.approx(exact, abs=0.1), f"round {round}"
    assert exact > 1.5


def test_the_median_stays_where_the_best_rises(tmp_path):
    """As Llama 2 draws it: the gain of more samples is in the maximum."""
    task = task_of(*ROUNDS)
    few = ["algorithm.rounds=1", "algorithm.k=5"]
    found = {}
    for keep in ("max", "median"):
        runs.run(tmp_path / keep, *ROUNDS, *FEW, *few, f"algorithm.keep={keep}")
        found[keep] = runs.metrics(tmp_path / keep)[-1]["exact/reward"]
    assert found["max"] == pytest.approx(reward(task, order_statistic(task, task.ref, task.rewards, 5, 5)), abs=0.1)
    assert found["median"] == pytest.approx(reward(task, order_statistic(task, task.ref, task.rewards, 3, 5)), abs=0.1)
    assert found["max"] > 1
    assert abs(found["median"]) < 0.3
