"""`reward=proxy` in a whole run: what trains is the proxy, what evaluates is the gold reward."""

import pytest
import torch
import yaml

import runs
from rlpref.build import build
from rlpref.check import check
from rlpref.testbed.exact import expectation
from rlpref.testbed.ladder import scored_answers
from rlpref.testbed.rewards import heavy_tailed
from rlpref.testbed.task import make_testbed

SETTINGS = ["algorithm=ppo", "reward=proxy", "reward.scale=2.0", "reward.seed=3"]
SETTINGS += ["testbed.cost=toxicity", "+testbed.cost_options.token=1"]


@pytest.mark.slow
def test_the_policy_climbs_the_proxy_and_is_judged_by_gold(tmp_path):
    short = ["algorithm.rounds=30", "evaluation.times=1", "evaluation.k=4", "logger.mode=disabled", "threads=1"]
    summary = runs.run(tmp_path, *SETTINGS, *short, "data.pairs=50", "data.test_pairs=20")
    first = next(row for row in runs.metrics(tmp_path) if "exact/reward" in row)
    assert summary["eval/proxy_reward"] > first["eval/proxy_reward"] + 1
    assert summary["eval/proxy_reward"] > summary["eval/reward"] + 0.5
    assert summary["exact/reward"] == pytest.approx(summary["eval/reward"], abs=6 * summary["eval/reward_se"])
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    task = make_testbed(**config["testbed"])
    assert first["exact/cost"] == pytest.approx(float(expectation(task, task.ref, task.costs).mean()), abs=1e-5)


def test_answers_are_scored_by_gold_plus_the_noise_of_the_seed():
    config, _ = runs.compose(*SETTINGS, "data.pairs=10", "data.test_pairs=10")
    parts = build(config, check(config))
    expected = heavy_tailed(parts.task, 2.0, 2.0, torch.Generator().manual_seed(3))
    found = scored_answers(parts.task, parts.models.reward)
    torch.testing.assert_close(found, torch.where(parts.task.ends, expected, 0.0), rtol=1e-5, atol=1e-5)
    gold = scored_answers(parts.task, parts.models.gold)
    torch.testing.assert_close(gold, torch.where(parts.task.ends, parts.task.rewards, 0.0), rtol=1e-5, atol=1e-5)
