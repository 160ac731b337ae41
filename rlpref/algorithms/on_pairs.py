"""Preference pairs as their losses see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlpref.algorithms.common import reward_metrics
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import Objective
from rlpref.models.bundle import Models
from rlpref.ops.logps import decayed_sum
from rlpref.ops.masked import masked_mean
from rlpref.types import Pairs, Sequences, cat

SIDES = ("chosen", "rejected")


def at_reference(objective: Objective, pairs: Pairs, ref_logps: Callable[[Sequences], Tensor]) -> Pairs:
    """The pairs with the log-probs that the function gives; asked for both sides at once, it reads a prompt once."""
    both = cat([pairs.chosen, pairs.rejected])
    tokens, n = ref_logps(both), len(pairs)
    chosen, rejected = (
        answer_sums(objective, tokens[rows], both[rows], pairs) for rows in (slice(0, n), slice(n, 2 * n))
    )
    return replace(pairs, ref_chosen=chosen, ref_rejected=rejected)


def answer_sums(objective: Objective, logps: Tensor, side: Sequences, pairs: Pairs) -> Tensor:
    """[B] log-prob of each answer of one side, from its tokens' [B, T]; with LD-DPO the tail beyond the other side's
    length counts less."""
    alpha = objective.modifiers.ld_alpha
    if alpha == 1:
        return logps.sum(1)
    return decayed_sum(logps, side.mask, torch.minimum(pairs.chosen.lengths, pairs.rejected.lengths), alpha)


def logps(models: Models, objective: Objective, pairs: Pairs) -> PairLogps:
    """All that the objective reads: one pass of the policy over chosen and rejected together, beside the log-probs of
    the reference: the stored ones, or else those of now."""
    both = cat([pairs.chosen, pairs.rejected]).trimmed()
    n, reads, more = len(pairs), objective.reads, {}
    if "chosen_kl" in reads:
        tokens, kl = models.forward_kl(both)
        more["kl"] = kl.sum(1)
    if "chosen_confidence" in reads:
        tokens, confidence = models.confidence(both)
        more["confidence"] = masked_mean(confidence, both.mask, dim=1)
    if not more:
        tokens, _ = models.policy_logps(both)
    chosen, rejected = (
        answer_sums(objective, tokens[rows], both[rows], pairs) for rows in (slice(0, n), slice(n, 2 * n))
    )
    if objective.reads_reference and pairs.ref_chosen is None:
        pairs = at_reference(objective, pairs, models.ref_logps)
    nothing = torch.zeros_like(chosen.detach())
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=pairs.ref_chosen.to(chosen) if objective.reads_reference else nothing,
        ref_rejected=pairs.ref_rejected.to(chosen) if objective.reads_reference else nothing,
        chosen_len=pairs.chosen.lengths,
        rejected_len=pairs.rejected.lengths,
        chosen_score=pairs.chosen_score,
        rejected_score=pairs.rejected_score,
        soft_label=pairs.soft_label,
        weight=pairs.weight,
        **{f"{side}_{name}": each for name, both in more.items() for side, each in zip(SIDES, both.chunk(2))},
    )


def metrics(lp: PairLogps, scale: float | Tensor) -> dict[str, Tensor]:
    """What every preference method logs, each [B]; an implicit reward is scale * log policy/ref."""
    chosen = scale * (lp.chosen - lp.ref_chosen).detach()
    rejected = scale * (lp.rejected - lp.ref_rejected).detach()
    logps = {"logps/chosen": lp.chosen.detach(), "logps/rejected": lp.rejected.detach()}
    return reward_metrics(chosen, rejected) | logps


def at_rest(lp: PairLogps) -> tuple[PairLogps, Tensor]:
    """The same pairs where the policy is the reference, and the log-ratios [2B] that it takes to be there."""
    still = replace(lp, chosen=lp.ref_chosen, rejected=lp.ref_rejected)
    return still, torch.cat([lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected])
