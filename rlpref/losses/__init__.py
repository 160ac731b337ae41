"""All losses: pure functions, one value per example or token, reduced by the caller."""

from rlpref.losses import anchored, lists, pairs, reference_free, scored, unpaired  # noqa: F401  (each registers its own)
from rlpref.losses.registry import LOSSES, Entry, make_loss, register
from rlpref.losses.rewards import bradley_terry
from rlpref.losses.tokens import nll, ppo_clip, reinforce, value_clip

__all__ = [
    "LOSSES",
    "Entry",
    "bradley_terry",
    "make_loss",
    "nll",
    "ppo_clip",
    "register",
    "reinforce",
    "value_clip",
]
