"""Single answers with a label as their losses see them. A pair counts as two: one desirable, one not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlpref.algorithms.common import above
from rlpref.losses.inputs import AnswerLogps
from rlpref.losses.modifiers import Objective
from rlpref.models.bundle import Models
from rlpref.types import Answers, Sequences


def at_reference(objective: Objective, answers: Answers, ref_logps: Callable[[Sequences], Tensor]) -> Answers:
    """The answers with the log-probs that the function gives."""
    mismatched = answers.ref_mismatched
    if "mismatched" in objective.reads:
        mismatched = ref_logps(answers.mismatched).sum(1)
    return replace(answers, ref=ref_logps(answers.sequences).sum(1), ref_mismatched=mismatched)


def logps(models: Models, objective: Objective, answers: Answers) -> AnswerLogps:
    """One pass with gradient over the answers, and where the objective reads them one without over mismatched ones."""
    sequences = answers.sequences.trimmed()
    policy = models.policy_logps(sequences)[0].sum(1)
    if objective.reads_reference and answers.ref is None:
        answers = at_reference(objective, answers, models.ref_logps)
    mismatched = None
    if "mismatched" in objective.reads:
        with torch.no_grad():
            drawn = models.policy_logps(answers.mismatched.trimmed())[0].sum(1)
        mismatched = drawn - answers.ref_mismatched.to(drawn)
    return AnswerLogps(
        logps=policy,
        ref_logps=answers.ref.to(policy) if objective.reads_reference else torch.zeros_like(policy.detach()),
        length=sequences.lengths,
        label=answers.label,
        mismatched=mismatched,
        score=answers.score,
        weight=answers.weight,
    )


def metrics(al: AnswerLogps, scale: float | Tensor) -> dict[str, Tensor]:
    """Each [B]. `rewards/signed` is the implicit reward of a desirable answer, the negated one of another."""
    rewards = scale * (al.logps - al.ref_logps).detach()
    signed = torch.where(al.label, rewards, -rewards)
    found = {
        "rewards/signed": signed,
        "rewards/accuracies": above(signed, 0.0),
        "labels/desirable": al.label.to(signed),
        "logps/answers": al.logps.detach(),
    }
    return found if al.mismatched is None else found | {"objective/kl_mismatched": al.mismatched}


def at_rest(al: AnswerLogps) -> tuple[AnswerLogps, Tensor]:
    """The same answers where the policy is the reference, and the log-ratios [B] that it takes to be there."""
    mismatched = None if al.mismatched is None else torch.zeros_like(al.mismatched)
    return replace(al, logps=al.ref_logps, mismatched=mismatched), al.logps - al.ref_logps
