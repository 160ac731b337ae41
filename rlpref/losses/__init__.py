"""All losses: pure functions, one value per example or token, reduced by the caller."""

from rlpref.losses import pairs  # noqa: F401  (registers the pair losses)
from rlpref.losses.registry import LOSSES, make_loss, pair_loss
from rlpref.losses.rewards import bradley_terry
from rlpref.losses.tokens import nll, ppo_clip, reinforce, value_clip

__all__ = ["LOSSES", "bradley_terry", "make_loss", "nll", "pair_loss", "ppo_clip", "reinforce", "value_clip"]
