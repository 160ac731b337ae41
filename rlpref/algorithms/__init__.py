"""Algorithms: one file each, `collect` and `loss` on the one loop."""

from __future__ import annotations

from rlpref.algorithms.a2c import a2c
from rlpref.algorithms.algorithm import Algorithm
from rlpref.algorithms.curriculum import curriculum
from rlpref.algorithms.grouped import grouped
from rlpref.algorithms.iterative import iterative
from rlpref.algorithms.nash_md import NashMD
from rlpref.algorithms.offline import offline
from rlpref.algorithms.ppo import ppo
from rlpref.algorithms.reinforce import Reinforce
from rlpref.algorithms.rejection import rejection
from rlpref.algorithms.retrained import retrained
from rlpref.algorithms.reward_model import reward_model
from rlpref.algorithms.sft import SFT
from rlpref.algorithms.sppo import sppo
from rlpref.algorithms.trpo import trpo
from rlpref.algorithms.xpo import xpo
from rlpref.binding import bind, choose

ALGORITHMS = {
    "a2c": a2c,
    "curriculum": curriculum,
    "grouped": grouped,
    "iterative": iterative,
    "nash_md": NashMD,
    "offline": offline,
    "ppo": ppo,
    "reinforce": Reinforce,
    "rejection": rejection,
    "retrained": retrained,
    "reward_model": reward_model,
    "sft": SFT,
    "sppo": sppo,
    "xpo": xpo,
    "trpo": trpo,
}


def make_algorithm(kind: str, settings: dict, name: str) -> Algorithm:
    """The algorithm of that kind; a setting that it does not take is refused by name."""
    return bind(choose(ALGORITHMS, kind, "algorithm kind"), settings, f"algorithm '{name}'")()
