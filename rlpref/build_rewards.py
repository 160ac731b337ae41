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
from rlpref.models.heads import ScalarHead, critic_from, scalar_model, shared_head
from rlpref.rewards.learned import LearnedReward
from rlpref.testbed.rewards import proxy_scorer
from rlpref.testbed.task import Testbed


def add_rewards(config: dict, checked: Checked, models: Models, task: Testbed | None) -> None:
    """Reward model and critic where the run needs them."""
    lora, trains = config["model"].get("lora"), checked.algorithm.trains
    generator = torch.Generator().manual_seed(config["seed"])
    models.reward = models.gold if config["reward"]["kind"] == "gold" else None
    learned = None
    if config["reward"]["kind"] == "learned":
        learned = _load_reward_model(config, models, scalar_model(models.policy, lora, generator))
        models.reward = LearnedReward(learned.requires_grad_(False), models.chunk)
    if "reward_model" in trains:
        head_std = checked.algorithm.head_std
        models.reward_model = scalar_model(models.policy, lora, generator, head_std).to(models.device)
    if "critic" in trains:
        models.critic = _critic(checked.algorithm, models, lora, learned, generator).to(models.device)
    if config["reward"]["kind"] == "proxy":
        models.reward = proxy_scorer(task, **{key: config["reward"][key] for key in ("nu", "scale", "seed")})


def _critic(algorithm, models: Models, lora: dict | None, learned: ScalarHead | None, generator) -> ScalarHead:
    """`critic_init`: `reward_model` starts as the learned reward; `policy` as the policy's decoder under a head of
    zeros, so that all values are 0; `random` under a head N(0, 1/(d + 1)), d the decoder's width, whose noise may be
    many times the rewards; `auto` as the learned reward if there is one, else as `policy`. `critic`: `separate` trains
    a copy of what it starts from, `shared` a head on the decoder of the policy itself, which value and policy losses
    then move together (trlx): its states are read once for each."""
    if algorithm.critic == "shared":
        if getattr(models.policy, "twin", None):
            raise ConfigError("algorithm.critic 'shared' has no part in model.compute_dtype: set critic=separate.")
        critic = shared_head(models.policy, generator)
    elif learned and algorithm.critic_init in ("auto", "reward_model"):
        return critic_from(learned)
    else:
        critic = scalar_model(models.policy, lora, generator)
    if algorithm.critic_init != "random":
        torch.nn.init.zeros_(critic.head.weight)
    return critic


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
