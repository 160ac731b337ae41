"""All losses: pure functions, one value per example or token, reduced by the caller."""

from rlpref.losses import (  # noqa: F401  (each registers its own)
    anchored,
    lists,
    pairs,
    reference_free,
    rewards,
    rollouts,
    scored,
    unpaired,
    whole_answers,
)
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardLists, RewardPairs, RolloutLogps
from rlpref.losses.modifiers import Objective, make_modifiers, make_objective
from rlpref.losses.registry import LOSSES, Entry, columns_read, make_loss, register
from rlpref.losses.rewards import bradley_terry
from rlpref.losses.rollouts import ppo_clip, reduced, reinforce
from rlpref.losses.tokens import nll, value_clip

__all__ = [
    "LOSSES",
    "AnswerLogps",
    "Entry",
    "ListLogps",
    "Objective",
    "PairLogps",
    "RewardLists",
    "RewardPairs",
    "RolloutLogps",
    "bradley_terry",
    "columns_read",
    "make_loss",
    "make_modifiers",
    "make_objective",
    "nll",
    "ppo_clip",
    "reduced",
    "register",
    "reinforce",
    "value_clip",
]
