"""What scores answers: every name and value of `reward`, `data.gold` and `constraint`, checked before anything is
built."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rlpref import checkpoint
from rlpref.algorithms import Algorithm
from rlpref.algorithms.constrained import constrained
from rlpref.binding import ConfigError, bind, choose
from rlpref.rewards.gold import AnswerLength, VaderScorer
from rlpref.testbed.models import TESTBED_MODELS
from rlpref.testbed.task import TestbedScorer

GOLD = {
    "testbed": lambda task, tokenizer: TestbedScorer(task),
    "vader": lambda task, tokenizer: VaderScorer(tokenizer),
    "None": lambda task, tokenizer: None,
}
COSTS = {
    "testbed": lambda task: TestbedScorer(replace(task, rewards=task.costs), name="testbed cost"),
    "length": lambda task: AnswerLength(),
}


def _no_settings(): ...


def _learned(path: str): ...


def _proxy(nu: float, scale: float, seed: int): ...


REWARDS = {"gold": _no_settings, "none": _no_settings, "learned": _learned, "proxy": _proxy}


def check_reward(config: dict, algorithm: Algorithm) -> None:
    """Raises ConfigError for a reward that cannot be had, or that the algorithm needs and lacks."""
    reward, gold = config["reward"], config["data"]["gold"]
    settings = {key: value for key, value in reward.items() if key != "kind"}
    bind(choose(REWARDS, reward["kind"], "reward.kind"), settings, f"reward '{reward['kind']}'")
    if algorithm.needs_reward and (reward["kind"] == "none" or (reward["kind"] == "gold" and gold is None)):
        raise ConfigError(
            f"algorithm '{config['algorithm']['name']}' scores answers, but there is no reward: data source "
            f"'{config['data']['source']}' has no gold scorer. Set reward=learned reward.path=<run of reward_model>."
        )
    if reward["kind"] == "learned":
        trained_weights(reward["path"], "reward_model")
    if reward["kind"] == "proxy":
        if config["model"]["kind"] not in TESTBED_MODELS:
            raise ConfigError("reward 'proxy' is made from the testbed's gold reward: it needs model=tabular or tiny.")
        if not reward["nu"] > 0:
            raise ConfigError(f"reward.nu must be above 0, not {reward['nu']}.")


def under_constraint(config: dict, algorithm: Algorithm) -> Algorithm:
    """The algorithm, held to the limit of the configuration where there is one. Raises ConfigError for a constraint
    that it cannot be held to."""
    settings, name = dict(config["constraint"]), config["algorithm"]["name"]
    if (kind := settings.pop("kind")) == "none":
        bind(_no_settings, settings, "constraint 'none'")
        return algorithm
    choose({"lagrangian": constrained}, kind, "constraint.kind")
    cost = str(settings.pop("cost", None))
    choose(COSTS, cost, "constraint.cost")
    if cost == "testbed" and (config["model"]["kind"] not in TESTBED_MODELS or config["testbed"]["cost"] is None):
        raise ConfigError(
            "constraint.cost 'testbed' is that of testbed.cost, which is not set or not of this model: set it "
            "with model=tabular or tiny, or another constraint.cost."
        )
    return bind(constrained, settings, f"constraint '{kind}'", 2)(algorithm, name)


def trained_weights(run_folder: str | os.PathLike, name: str) -> Path:
    """The weights of that name in a run folder's last checkpoint; ConfigError where there are none."""
    path, _ = checkpoint.latest(Path(run_folder) / "checkpoints")
    if path is None or not (path / f"{name}.safetensors").exists():
        key = "init" if name == "policy" else "reward.path"
        raise ConfigError(f"{key}: '{run_folder}' is no run folder with a trained {name}.")
    return path / f"{name}.safetensors"
