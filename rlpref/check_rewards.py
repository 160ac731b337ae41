"""What scores answers: every name and value of `reward` and `data.gold`, checked before anything is built."""

from __future__ import annotations

import os
from pathlib import Path

from rlpref import checkpoint
from rlpref.algorithms import Algorithm
from rlpref.binding import ConfigError, bind, choose
from rlpref.rewards.gold import VaderScorer
from rlpref.testbed.models import TESTBED_MODELS
from rlpref.testbed.task import TestbedScorer

GOLD = {
    "testbed": lambda task, tokenizer: TestbedScorer(task),
    "vader": lambda task, tokenizer: VaderScorer(tokenizer),
    "None": lambda task, tokenizer: None,
}


def _no_settings(): ...


def _learned(path: str): ...


def _proxy(nu: float, scale: float, seed: int): ...


REWARDS = {"gold": _no_settings, "none": _no_settings, "learned": _learned, "proxy": _proxy, "preference": _no_settings}
PAIRWISE = ("preference",)  # kinds that compare two answers and score none


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
    if reward["kind"] in PAIRWISE and algorithm.needs_reward and not getattr(algorithm, "compares", False):
        raise ConfigError(
            f"algorithm '{config['algorithm']['name']}' scores single answers, and reward '{reward['kind']}' compares "
            "two: set algorithm.pairing=preference where the algorithm forms pairs, or reward=gold."
        )
    if reward["kind"] == "preference" and config["data"]["source"] != "testbed":
        raise ConfigError("reward 'preference' is the testbed's data.preference: it needs model=tabular or tiny.")
    if reward["kind"] == "learned":
        trained_weights(reward["path"], "reward_model")
    if reward["kind"] == "proxy":
        if config["model"]["kind"] not in TESTBED_MODELS:
            raise ConfigError("reward 'proxy' is made from the testbed's gold reward: it needs model=tabular or tiny.")
        if not reward["nu"] > 0:
            raise ConfigError(f"reward.nu must be above 0, not {reward['nu']}.")


def trained_weights(run_folder: str | os.PathLike, name: str) -> Path:
    """The weights of that name in a run folder's last checkpoint; ConfigError where there are none."""
    path, _ = checkpoint.latest(Path(run_folder) / "checkpoints")
    if path is None or not (path / f"{name}.safetensors").exists():
        key = "init" if name == "policy" else "reward.path"
        raise ConfigError(f"{key}: '{run_folder}' is no run folder with a trained {name}.")
    return path / f"{name}.safetensors"
