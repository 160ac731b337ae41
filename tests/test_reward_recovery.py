"""A reward model of Plackett-Luce rankings by the gold reward is the gold reward, up to a constant for each prompt."""

import pytest
import torch

import runs
from rlpref import checkpoint
from rlpref.build import build
from rlpref.check import check
from rlpref.check_rewards import trained_weights
from rlpref.rewards.learned import LearnedReward
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.ladder import scored_answers

pytestmark = pytest.mark.slow

SETTINGS = ["algorithm=reward_model", "data.kind=kwise", "data.k=4", "data.pairs=20000", "data.test_pairs=200"]
SETTINGS += ["algorithm.epochs=4", "threads=1", "logger.mode=disabled", "evaluation.times=1", "evaluation.k=16"]
TOLERANCE = 0.15  # in units of reward: root of the mean square over the reference's answers; 20,000 lists


@pytest.mark.parametrize("loss", ["reward_plackett_luce", "reward_all_pairs"])
@pytest.mark.parametrize("family", ["ngram", "order"])
def test_rankings_by_the_gold_reward_give_it_back(loss, family, tmp_path):
    settings = [*SETTINGS, f"algorithm/loss={loss}", f"testbed.reward={family}", "optimizer.schedule=linear"]
    summary = runs.run(tmp_path, *settings)
    config, _ = runs.compose(*settings)
    parts = build(config, check(config))
    checkpoint.load_weights(parts.models.reward_model, trained_weights(tmp_path, "reward_model"))
    found = scored_answers(parts.task, LearnedReward(parts.models.reward_model, 512)).flatten(1)
    gold, chance = parts.task.rewards.flatten(1), answer_logps(parts.task, parts.task.ref).exp().flatten(1)

    def centred(rewards: torch.Tensor) -> torch.Tensor:
        return rewards - (chance * rewards).sum(1, keepdim=True)

    error = (chance * (centred(found) - centred(gold)) ** 2).sum(1).mean().sqrt().item()
    spread = (chance * centred(gold) ** 2).sum(1).mean().sqrt().item()
    print(f"{loss} {family}: off by {error:.4f} where the rewards spread by {spread:.4f}")
    assert error < TOLERANCE < spread / 4
    assert summary["eval/reward_model/gold_corr"] > 0.95
