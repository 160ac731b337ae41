"""What several algorithms share: functions, no base class."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Round, StartError
from rlpref.binding import ConfigError
from rlpref.models.bundle import Models
from rlpref.ops.blocks import chosen_rows, spread
from rlpref.ops.masked import masked_mean
from rlpref.rollout.sampler import ends_with_eos
from rlpref.types import Prompts, Rollouts, Samples, Sequences


def reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """What every method that compares two answers logs of their rewards, each [B]; a tie is half right."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": above(chosen, rejected),
    }


def above(one: Tensor, other: Tensor | float) -> Tensor:
    """[B] 1 where the one is larger, 1/2 where they tie, else 0."""
    return (one > other).to(one) + 0.5 * (one == other).to(one)


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


def sample_answers(models: Models, prompts: Prompts, k: int, round: Round, greedy: bool = False) -> Samples:
    """k answers of the policy to each prompt, counted as a cost; `greedy`: of the likeliest token each time."""
    samples = models.engine.sample(
        models.policy,
        prompts.to(models.device),
        k,
        models.max_new_tokens,
        0.0 if greedy else models.temperature,
        models.eos_token_id,
        round.generators,
    )
    round.charge(samples=len(samples), tokens=samples.sequences.attention_mask.sum(1))
    return samples


def score(models: Models, sequences: Sequences, round: Round) -> Tensor:
    """[B] reward of each answer, each counted as one label."""
    round.charge(labels=len(sequences))
    return models.reward(sequences).to(models.device)


def check_used_together(key: str, choice: str, wants: bool, **option: float | None) -> None:
    """Raises ConfigError where the one `option` is set and the choice does not use it, or where it `wants` one."""
    ((name, value),) = option.items()
    if wants and value is None:
        raise ConfigError(f"algorithm.{key} '{choice}' needs a value for '{name}'.")
    if not wants and value is not None:
        raise ConfigError(f"algorithm.{key} '{choice}' does not use '{name}'; set it to null.")


def check_others(baseline: str, k: int) -> None:
    """Raises ConfigError where the baseline of an answer is made of others to its prompt and there are none."""
    if baseline == "leave_one_out" and k < 2:
        raise ConfigError(f"algorithm.k is {k}: baseline 'leave_one_out' needs two answers to a prompt.")


def sample_and_score(
    models: Models, prompts: Prompts, k: int, round: Round, eos: tuple[str, float | None], beta: float | Tensor
) -> tuple[Samples, Tensor, Tensor]:
    """k fresh answers to each prompt, with the reference's log-probs [B, T] and the scores [B] once the EOS rule `eos`
    = (rule, penalty) is applied. Writes the round's `objective/` metrics; beta is for them alone."""
    samples = sample_answers(models, prompts, k, round)
    raw, finished, scores = score_by_rule(models, samples.sequences, round, eos)
    ref_logps = models.ref_logps(samples.sequences)
    kl = (samples.logps - ref_logps).sum(1)
    round.metrics |= {
        "objective/scores": round.mean(raw),
        "objective/kl": round.mean(kl),
        "objective/rlhf_reward": round.mean(scores - spread(beta, len(kl)) * kl),
        "objective/eos_rate": round.mean(finished),
    }
    return samples, ref_logps, scores


def score_by_rule(
    models: Models, answers: Sequences, round: Round, eos: tuple[str, float | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each answer [B]: its score, whether it ended by itself, and its score once the rule is applied."""
    raw, finished = score(models, answers, round), ends_with_eos(answers, models.eos_token_id)
    return raw, finished, after_eos_rule(raw, finished, *eos)


def after_eos_rule(scores: Tensor, finished: Tensor, rule: str, penalty: float | None) -> Tensor:
    """[B] scores once the rule for answers without EOS is applied; `bootstrap` needs a critic, and is its owner's."""
    if rule in ("none", "bootstrap"):
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


def whole_returns(scores: Tensor, logps: Tensor, ref_logps: Tensor, beta: float | Tensor) -> Tensor:
    """[B] score less beta log policy/ref of the whole answer; beta is one number or one for each run."""
    return scores - spread(beta, len(scores)) * (logps - ref_logps).sum(1)


def whole_answers(samples: Samples, ref_logps: Tensor, scores: Tensor, returns: Tensor, advantages: Tensor) -> Rollouts:
    """Rollouts whose tokens all have the return and the advantage [B] of their answer; the value is what the one is
    above the other."""
    mask = samples.sequences.mask
    values, advantages, returns = (
        torch.where(mask, of_answer[:, None], 0.0) for of_answer in (returns - advantages, advantages, returns)
    )
    return Rollouts(samples.sequences, samples.logps, ref_logps, values, advantages, returns, scores)


def ratio_metrics(
    logps: Tensor, old_logps: Tensor, entropy: Tensor, held_back: list[Tensor], mask: Tensor, **more: Tensor
) -> dict[str, Tensor]:
    """Each [B], means over an answer's tokens, of tensors [B, T]: entropy, how far the policy has moved from the one
    that sampled, and which tokens the bounds of a loss held back (rlpref.losses.bounds); `more` by their names."""
    log_ratio = (logps - old_logps).detach()
    tokens = {
        "objective/entropy": entropy.detach(),
        "policy/approxkl": 0.5 * log_ratio**2,
        "policy/ratio": log_ratio.exp(),
    }
    if held_back:
        tokens["loss/clamped"] = torch.stack([held.expand_as(mask) for held in held_back]).any(0).to(log_ratio)
    return {name: masked_mean(per_token, mask, dim=1) for name, per_token in (tokens | more).items()}
