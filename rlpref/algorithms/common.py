"""What several algorithms share: functions, no base class."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Loss, Round, StartError
from rlpref.binding import ConfigError
from rlpref.data.preferences import PreferenceData
from rlpref.losses.bounds import counted
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import Objective
from rlpref.models.bundle import Models
from rlpref.models.reference import Reference
from rlpref.ops.blocks import chosen_rows, spread
from rlpref.ops.logps import decayed_sum
from rlpref.ops.masked import masked_mean
from rlpref.rollout.sampler import ends_with_eos, sample
from rlpref.types import Pairs, Prompts, Rollouts, Samples, Sequences, TensorBatch, cat


def with_reference(models: Models, objective: Objective, pairs: Pairs) -> Pairs:
    """The pairs with the reference's log-probs stored where the objective reads them, so that epochs do not compute
    them again; without them where they would go stale before the round ends. Raises ConfigError for a column that
    the objective reads and the data do not have."""
    require_columns(objective, pairs)
    if not objective.reads_reference or models.rule.moves_within_rounds:
        return pairs
    return at_reference(models, objective, pairs)


def at_reference(models: Models, objective: Objective, pairs: Pairs, reference: Reference | None = None) -> Pairs:
    """The pairs with the log-probs of the given reference, or of the models' as it is now."""
    chosen, rejected = (
        answer_sums(objective, models.ref_logps(side, reference), side, pairs)
        for side in (pairs.chosen, pairs.rejected)
    )
    return replace(pairs, ref_chosen=chosen, ref_rejected=rejected)


def require_columns(objective: Objective, batch: TensorBatch) -> None:
    """Raises ConfigError unless the data have each column that the objective reads and the data alone can give."""
    for name, mend in FROM_DATA.items():
        if name in objective.reads and getattr(batch, name, None) is None:
            raise ConfigError(f"loss '{objective.entry.name}' reads '{name}', which the data do not have: {mend}.")
    if objective.entry.coupled and batch.weight is not None:
        raise ConfigError(
            f"loss '{objective.entry.name}' takes its minibatch as a whole: the data must have no weights."
        )


SCORES = "give every row 'chosen_score' and 'rejected_score', or choose another loss"
FROM_DATA = {
    **dict.fromkeys(("chosen_score", "margin", "chosen_target"), SCORES),
    "soft_label": "give every row 'soft_label', or choose another loss or modifier",
}


def answer_sums(objective: Objective, logps: Tensor, side: Sequences, pairs: Pairs) -> Tensor:
    """[B] log-prob of each answer of one side, from its tokens' [B, T]; with LD-DPO the tail beyond the other side's
    length counts less."""
    alpha = objective.modifiers.ld_alpha
    if alpha == 1:
        return logps.sum(1)
    return decayed_sum(logps, side.mask, torch.minimum(pairs.chosen.lengths, pairs.rejected.lengths), alpha)


def pair_logps(models: Models, objective: Objective, pairs: Pairs) -> PairLogps:
    """All that the objective reads: one pass of the policy over chosen and rejected together, beside the log-probs of
    the reference: the stored ones, or else those of now."""
    both = cat([pairs.chosen, pairs.rejected]).trimmed()
    n, reads, more = len(pairs), objective.reads, {}
    if "chosen_confidence" in reads:
        logps, tokens = models.confidence(both)
        more["confidence"] = masked_mean(tokens, both.mask, dim=1)
    elif "chosen_kl" in reads:
        logps, tokens = models.forward_kl(both)
        more["kl"] = tokens.sum(1)
    else:
        logps, _ = models.policy_logps(both)
    chosen, rejected = (
        answer_sums(objective, logps[rows], both[rows], pairs) for rows in (slice(0, n), slice(n, 2 * n))
    )
    if objective.reads_reference and pairs.ref_chosen is None:
        pairs = at_reference(models, objective, pairs)
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


SIDES = ("chosen", "rejected")


def pair_loss(objective: Objective, scale: float | Tensor, lp: PairLogps) -> Loss:
    """A pair loss with the metrics of every preference method. `scale` is one number or one for each run."""
    scale = spread(scale, len(lp.chosen))
    chosen = scale * (lp.chosen - lp.ref_chosen).detach()
    rejected = scale * (lp.rejected - lp.ref_rejected).detach()
    with counted() as held_back:
        value = objective(lp)
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen) + 0.5 * (chosen == rejected).to(chosen),
        "logps/chosen": lp.chosen.detach(),
        "logps/rejected": lp.rejected.detach(),
    }
    if held_back:  # the share of examples where a bound kept the loss finite
        metrics["loss/clamped"] = torch.stack(held_back).any(0).to(chosen)
    return Loss(value, torch.ones_like(lp.chosen) if lp.weight is None else lp.weight, metrics)


def check_pair_start(models: Models, objective: Objective, pairs: Pairs) -> None:
    """At step 0 the policy is the reference: both log-ratios vanish and the loss is what it is at no change. Where it
    need not be the loss's reference, it still is the policy that was there before training."""
    if not models.starts_at_reference:
        pairs = at_reference(models, objective, pairs, models.initial)
    with torch.no_grad():
        lp = pair_logps(models, objective, pairs)
    if not objective.reads_reference:
        return
    still = PairLogps(**{**dict(lp.items()), "chosen": lp.ref_chosen, "rejected": lp.ref_rejected})
    drift = torch.maximum((lp.chosen - lp.ref_chosen).abs(), (lp.rejected - lp.ref_rejected).abs()).max()
    require_equal("log policy/ref of an answer", float(drift), 0.0, tolerance(models, lp.chosen_len))
    expected, found = objective(still).mean(), objective(lp).mean()
    slack = 1e-3 + 0.05 * (models.policy_dtype == torch.bfloat16)
    require_equal("the loss", float(found), float(expected), slack * (1 + abs(float(expected))))


def tolerance(models: Models, lengths: Tensor) -> float:
    """Nats of rounding to expect in a summed log-prob: batches of another shape add in another order."""
    per_token = 0.3 if models.policy_dtype == torch.bfloat16 else 1e-4
    return per_token * float(lengths.max()) ** 0.5 + 1e-5


def require_equal(what: str, found: float, expected: float, slack: float) -> None:
    """Raises StartError unless `found` is `expected` to `slack`."""
    if not abs(found - expected) <= slack:
        raise StartError(
            f"before the first update {what} should be {expected:.6g} but is {found:.6g} (slack {slack:.2g}): "
            "the policy is not the reference. Is dropout on, or do the two see different inputs?"
        )


def choose_prompts(prompts: Prompts, n: int, generators: list[torch.Generator]) -> Prompts:
    """n prompts at random for each generator, from its own block of prompts; none twice before all have come once."""
    own = len(prompts) // len(generators)
    chosen = chosen_rows([_order(own, n, generator) for generator in generators], len(prompts))
    return prompts[chosen.to(prompts.ids.device)]


def _order(of: int, n: int, generator: torch.Generator) -> Tensor:
    rounds = -(-n // of)
    return torch.cat([torch.randperm(of, generator=generator, device=generator.device) for _ in range(rounds)])[:n]


def sample_answers(models: Models, prompts: Prompts, k: int, round: Round) -> Samples:
    """k answers of the policy to each prompt, counted as a cost."""
    samples = sample(
        models.policy,
        prompts.to(models.device),
        k,
        models.max_new_tokens,
        models.temperature,
        models.eos_token_id,
        round.generators,
        models.chunk,
    )
    round.charge(samples=len(samples), tokens=samples.sequences.attention_mask.sum(1))
    return samples


def score(models: Models, sequences: Sequences, round: Round) -> Tensor:
    """[B] reward of each answer, each counted as one label."""
    round.charge(labels=len(sequences))
    return models.reward(sequences).to(models.device)


def check_used_together(algorithm: str, key: str, choice: str, wants: bool, **option: float | None) -> None:
    """Raises ConfigError where the one `option` is set and the choice does not use it, or where it `wants` one."""
    ((name, value),) = option.items()
    if wants and value is None:
        raise ConfigError(f"algorithm '{algorithm}': {key} '{choice}' needs a value for '{name}'.")
    if not wants and value is not None:
        raise ConfigError(f"algorithm '{algorithm}': {key} '{choice}' does not use '{name}'; set it to null.")


def sample_and_score(
    models: Models,
    data: PreferenceData,
    round: Round,
    size: tuple[int, int],
    eos: tuple[str, float | None],
    beta: float | Tensor,
) -> tuple[Samples, Tensor, Tensor]:
    """Fresh answers, `size` = (prompts, answers to each), with the reference's log-probs [B, T] and the scores [B] once
    the EOS rule `eos` = (rule, penalty) is applied. Writes the round's `objective/` metrics; beta is for them alone."""
    samples = sample_answers(models, choose_prompts(data.prompts, size[0], round.generators), size[1], round)
    raw = score(models, samples.sequences, round)
    finished = ends_with_eos(samples.sequences, models.eos_token_id)
    scores = after_eos_rule(raw, finished, *eos)
    ref_logps = models.ref_logps(samples.sequences)
    kl = (samples.logps - ref_logps).sum(1)
    round.metrics |= {
        "objective/scores": round.mean(raw),
        "objective/kl": round.mean(kl),
        "objective/rlhf_reward": round.mean(scores - spread(beta, len(kl)) * kl),
        "objective/eos_rate": round.mean(finished),
    }
    return samples, ref_logps, scores


def after_eos_rule(scores: Tensor, finished: Tensor, rule: str, penalty: float | None) -> Tensor:
    """[B] scores once the rule for answers without EOS is applied."""
    if rule == "none":
        return scores
    cut = scores - penalty if rule == "subtract" else torch.full_like(scores, -penalty)
    return torch.where(finished, scores, cut)


def check_rollout_start(models: Models, batch: Rollouts) -> None:
    """At step 0 the policy is the reference (or at least the policy before training) and still the policy that
    sampled: no KL, every ratio 1."""
    slack = tolerance(models, batch.sequences.lengths)
    at_start = models.starts_at_reference
    ref_logps = batch.ref_logps if at_start else models.ref_logps(batch.sequences, models.initial)
    drift = (batch.logps - ref_logps).sum(1).abs().max()
    require_equal("the KL of every sample", float(drift), 0.0, slack)
    with torch.no_grad():
        ratio = (models.policy_logps(batch.sequences)[0] - batch.logps).exp()
    furthest = (ratio - 1).abs()[batch.sequences.mask].max()
    require_equal("the largest |ratio - 1| of a token", float(furthest), 0.0, slack)
