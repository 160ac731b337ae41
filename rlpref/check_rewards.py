"""What scores answers: every name and value of `reward` and `data.gold`, checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from rlpref import checkpoint
from rlpref.algorithms import Algorithm
from rlpref.binding import ConfigError, bind, choose
from rlpref.models.language_models import LANGUAGE_MODELS, frozen
from rlpref.models.lm import DTYPES
from rlpref.rewards.gold import VaderScorer
from rlpref.rewards.rubric import read_question
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


def _judge(
    mode: Literal["pointwise", "pairwise"],
    rubric: str,
    model: Mapping,
    order_conflict: Literal["tie", "mean"] | None,
    chunk: int,
): ...


REWARDS = {"gold": _no_settings, "none": _no_settings, "learned": _learned, "proxy": _proxy, "judge": _judge}


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
    if reward["kind"] == "judge":
        _check_judge(reward, config["model"]["kind"], algorithm, config["algorithm"]["name"])


def _check_judge(reward: dict, policy: str, algorithm: Algorithm, name: str) -> None:
    """Whether the policy writes text, the algorithm can use such verdicts, and every setting has a use."""
    if policy in TESTBED_MODELS:
        raise ConfigError(f"reward 'judge' reads text, and model '{policy}' writes none: set reward=gold.")
    read_question(reward["rubric"], reward["mode"])
    judge_model(reward["model"])
    pairwise = reward["mode"] == "pairwise"
    if pairwise and algorithm.needs_reward:
        raise ConfigError(f"algorithm '{name}' scores single answers: set reward.mode=pointwise.")
    if pairwise != (reward["order_conflict"] is not None):
        mend = "needs a value for 'order_conflict': tie or mean" if pairwise else "does not use 'order_conflict'"
        raise ConfigError(f"reward.mode '{reward['mode']}' {mend}{'' if pairwise else '; set it to null'}.")
    if reward["chunk"] < 1:
        raise ConfigError(f"reward.chunk must be at least 1, not {reward['chunk']}.")


def judge_model(model: Mapping) -> partial | None:
    """What builds the judge's own model, settings bound; None where it is the run's `initial` or the `policy` itself.
    A setting that is null is not given. Raises ConfigError for one that nothing uses, and for one that is missing."""
    settings = {key: value for key, value in model.items() if value is not None}
    kind = settings.pop("kind", None)
    if kind in ("initial", "policy"):
        bind(_no_settings, settings, f"reward.model '{kind}'")
        return None
    build = choose({"initial": frozen, "policy": frozen} | LANGUAGE_MODELS, str(kind), "reward.model.kind")
    choose(DTYPES, str(settings.get("dtype")), "reward.model.dtype")
    bind(build, settings | {"lora": None}, f"reward.model '{kind}'")
    return partial(frozen, kind, **settings)


def trained_weights(run_folder: str | os.PathLike, name: str) -> Path:
    """The weights of that name in a run folder's last checkpoint; ConfigError where there are none."""
    path, _ = checkpoint.latest(Path(run_folder) / "checkpoints")
    if path is None or not (path / f"{name}.safetensors").exists():
        key = "init" if name == "policy" else "reward.path"
        raise ConfigError(f"{key}: '{run_folder}' is no run folder with a trained {name}.")
    return path / f"{name}.safetensors"
