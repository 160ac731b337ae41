"""What scores answers in a run, and the critic that starts from it."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from rlpref import checkpoint
from rlpref.binding import ConfigError, hyperparameters
from rlpref.check import Checked
from rlpref.check_rewards import trained_weights
from rlpref.models.bundle import Models
from rlpref.models.computing import Computing
from rlpref.models.heads import ScalarHead, critic_from, scalar_model
from rlpref.rewards.learned import LearnedReward
from rlpref.rewards.scorer import BradleyTerry
from rlpref.testbed.duels import preference_of
from rlpref.testbed.rewards import proxy_scorer
from rlpref.testbed.task import Testbed


def add_rewards(config: dict, checked: Checked, models: Models, task: Testbed | None) -> None:
    """Reward model and critic where the run needs them; a critic starts as the learned reward if there is one."""
    lora, trains = config["model"].get("lora"), checked.algorithm.trains
    generator = torch.Generator().manual_seed(config["seed"])
    models.reward = models.gold if config["reward"]["kind"] == "gold" else None
    learned = None
    if config["reward"]["kind"] == "learned":
        learned = _load_reward_model(config, models, scalar_model(models.policy, lora, generator))
        models.reward = LearnedReward(learned.requires_grad_(False), models.chunk)
    if "reward_model" in trains:
        models.reward_model = scalar_model(models.policy, lora, generator).to(models.device)
    if "critic" in trains:
        models.critic = critic_from(learned) if learned else scalar_model(models.policy, lora, generator)
        if not learned:  # a random head would be noise many times the rewards: start from the value 0
            torch.nn.init.zeros_(models.critic.head.weight)
        models.critic.to(models.device)
    if config["reward"]["kind"] == "proxy":
        models.reward = proxy_scorer(task, **{key: config["reward"][key] for key in ("nu", "scale", "seed")})
    models.preference = models.reward and BradleyTerry(models.reward)
    if config["reward"]["kind"] == "preference":
        models.preference = preference_of(task, config["data"]["preference"], config["data"]["preference_options"])


def _load_reward_model(config: dict, models: Models, empty: ScalarHead) -> ScalarHead:
    path = Path(config["reward"]["path"])
    require_same_model(config, path, "reward.path", ("model", "testbed", "init"))
    checkpoint.load_weights(empty, trained_weights(path, "reward_model"))
    return empty.to(models.device)


def require_same_model(config: dict, run: Path, key: str, sections: tuple[str, ...]) -> None:
    """Weights of another run fit where these sections are equal, up to how the model is trained and computed."""
    free = ("lr", "threads", "chunk", "attn_implementation", *hyperparameters(Computing))
    written = yaml.safe_load((run / "config.yaml").read_text())
    for section in sections:
        there, here = (
            {k: v for k, v in c[section].items() if k not in free} if section == "model" else c[section]
            for c in (written, config)
        )
        if there != here:
            raise ConfigError(f"{key} '{run}' was trained with another '{section}': {there}; this run has {here}.")
