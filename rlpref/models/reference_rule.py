"""Which reference losses and penalties compare the policy with, and when it moves.

The evaluator knows nothing of it: it always measures KL from the policy as it was before training. Methods that score
fresh answers read the reference when they collect: the KL in their rewards is that of the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rlpref.binding import ConfigError, bind, choose
from rlpref.models.reference import Reference, follow, snapshot


@dataclass(frozen=True)
class ReferenceRule:
    """A reference that moves goes the share `rate` of the way to the policy: after every `every` optimizer steps, or
    without `every` before each round but the first. With `rate` 0 it stays what it was at the start."""

    kind: str
    rate: float = 0.0
    every: int | None = None
    cache: bool = False  # whether its log-probs of fixed data are kept on disk, where other runs read them

    def __post_init__(self):
        if self.every is not None and self.every < 1:
            raise ConfigError(f"reference.every must be at least 1, not {self.every}.")

    @property
    def moves(self) -> bool:
        return self.rate > 0

    @property
    def moves_within_rounds(self) -> bool:
        """Whether log-probs of the reference that a round stored would go stale before it ends."""
        return self.every is not None

    @property
    def is_replaced(self) -> bool:
        """Whether it becomes the policy when it moves, and so has nameable weights between two moves."""
        return self.rate == 1

    def start(self, policy: nn.Module, initial: Reference) -> Reference | None:
        """The reference of the first step. One that moves is a copy of its own: `initial` is never written to."""
        if self.kind == "none":
            return None
        if self.kind == "adapter_off" and not initial.adapter_off:
            return Reference(policy, adapter_off=True)
        return snapshot(policy) if self.moves else initial

    def before_round(self, index: int, policy: nn.Module, reference: Reference | None) -> bool:
        """Moves the reference in place where it is due; whether it did."""
        return self._move(policy, reference, self.every is None and index > 0)

    def after_step(self, step: int, policy: nn.Module, reference: Reference | None) -> bool:
        """Moves the reference in place where it is due; whether it did. `step` counts from 1."""
        return self._move(policy, reference, self.every is not None and step % self.every == 0)

    def _move(self, policy: nn.Module, reference: Reference | None, due: bool) -> bool:
        if due and self.moves:
            follow(reference, policy, self.rate)
        return due and self.moves

    def check_length(self, steps: int) -> None:
        """ConfigError where a run of so many steps would end before the reference has moved for any of them."""
        if self.every is not None and self.every >= steps:
            raise ConfigError(
                f"reference.every is {self.every}, but the run has {steps} steps: the reference would never move. "
                "Set a smaller reference.every, or reference=initial."
            )


FIXED = ReferenceRule("initial")


def initial(cache: bool = False) -> ReferenceRule:
    """The policy before training."""
    return ReferenceRule("initial", cache=cache)


def previous() -> ReferenceRule:
    """The policy before each round: T rounds aim at beta / T (population limit). Xiong et al. 2023 (2312.11456)."""
    return ReferenceRule("previous", rate=1.0)


def ema(rate: float, every: int) -> ReferenceRule:
    """reference <- rate * policy + (1 - rate) * reference: the soft update of TR-DPO, Gorbatovski et al. 2024
    (2404.09656), where the rate is alpha."""
    if not 0 < rate <= 1:
        raise ConfigError(f"reference.rate must be above 0 and at most 1, not {rate}.")
    return ReferenceRule("ema", rate, every)


def sync(every: int) -> ReferenceRule:
    """reference <- policy: the hard update of TR-DPO, Gorbatovski et al. 2024 (2404.09656), where `every` is tau."""
    return ReferenceRule("sync", 1.0, every)


def adapter_off(cache: bool = False) -> ReferenceRule:
    """The base model under a LoRA adapter. Where `init=` gave a trained adapter the policy does not start there."""
    return ReferenceRule("adapter_off", cache=cache)


def none() -> ReferenceRule:
    """No reference: for losses that read none."""
    return ReferenceRule("none")


RULES = {rule.__name__: rule for rule in (initial, previous, ema, sync, adapter_off, none)}


def reference_rule(kind: str, **settings: Any) -> ReferenceRule:
    """The rule of that name; a setting that it does not take is refused by name."""
    return bind(choose(RULES, kind, "reference.kind"), settings, f"reference '{kind}'")()
