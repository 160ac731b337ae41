"""What scores answers in a run, and the critic that starts from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import yaml

from rlpref import checkpoint
from rlpref.binding import ConfigError, hyperparameters
from rlpref.check import Checked
from rlpref.check_rewards import judge_model, trained_weights
from rlpref.data.requests import make_reader
from rlpref.models.bundle import Models
from rlpref.models.computing import Computing
from rlpref.models.heads import ScalarHead, critic_from, scalar_model
from rlpref.models.reference import Reference
from rlpref.rewards.judge import PairJudge, PointJudge, plain_texts
from rlpref.rewards.learned import LearnedReward
from rlpref.rewards.rubric import read_question
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
    if config["reward"]["kind"] == "judge":
        _add_judge(config["reward"], models)


def _add_judge(reward: dict, models: Models) -> None:
    """A scorer of answers, or a preference between two."""
    model, tokenizer = models.initial, models.tokenizer
    if reward["model"]["kind"] == "policy":  # as it is whenever it is asked: Yuan et al. 2024 (2401.10020)
        model = Reference(models.policy, adapter_off=False)
    elif builder := judge_model(reward["model"]):
        loaded = builder()
        model, tokenizer = Reference(loaded.policy.to(models.device), adapter_off=False), loaded.tokenizer
    question = read_question(reward["rubric"], reward["mode"])
    reads = make_reader(model, tokenizer, reward["chunk"]), partial(plain_texts, models.tokenizer)
    if reward["mode"] == "pairwise":
        models.preference = PairJudge(question, *reads, reward["order_conflict"])
    else:
        models.reward = PointJudge(question, *reads)


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
