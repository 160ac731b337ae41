"""All losses: pure functions, one value per example or token, reduced by the caller."""

from rlpref.losses import (  # noqa: F401  (each registers its own)
    anchored,
    lists,
    pairs,
    reference_free,
    scored,
    unpaired,
    whole_answers,
)
from rlpref.losses.registry import LOSSES, Entry, make_loss, register
from rlpref.losses.rewards import bradley_terry
from rlpref.losses.rollouts import ppo_clip, reduced, reinforce
from rlpref.losses.tokens import nll, value_clip

__all__ = [
    "LOSSES",
    "Entry",
    "bradley_terry",
    "make_loss",
    "nll",
    "ppo_clip",
    "reduced",
    "register",
    "reinforce",
    "value_clip",
]
