"""Algorithms: one file each, `collect` and `loss` on the one loop."""

from __future__ import annotations

from rlpref.algorithms.algorithm import Algorithm
from rlpref.algorithms.curriculum import curriculum
from rlpref.algorithms.grouped import grouped
from rlpref.algorithms.iterative import iterative
from rlpref.algorithms.offline import offline
from rlpref.algorithms.ppo import PPO
from rlpref.algorithms.reinforce import Reinforce
from rlpref.algorithms.rejection import rejection
from rlpref.algorithms.reward_model import reward_model
from rlpref.algorithms.sft import SFT
from rlpref.binding import bind, choose

ALGORITHMS = {
    "curriculum": curriculum,
    "grouped": grouped,
    "iterative": iterative,
    "offline": offline,
    "ppo": PPO,
    "reinforce": Reinforce,
    "rejection": rejection,
    "reward_model": reward_model,
    "sft": SFT,
}


def make_algorithm(kind: str, settings: dict, name: str) -> Algorithm:
    """The algorithm of that kind; a setting that it does not take is refused by name."""
    return bind(choose(ALGORITHMS, kind, "algorithm kind"), settings, f"algorithm '{name}'")()
