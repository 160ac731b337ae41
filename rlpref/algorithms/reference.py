"""Which rules of the reference an algorithm can follow."""

from __future__ import annotations

from rlpref.algorithms.algorithm import Algorithm
from rlpref.binding import ConfigError
from rlpref.models.reference_rule import ReferenceRule


def check_rule(rule: ReferenceRule, algorithm: Algorithm, kind: str, name: str) -> None:
    """Raises ConfigError where the rule would change nothing, or take away what the algorithm of that kind and name
    compares the policy with."""
    objective, penalised = getattr(algorithm, "objective", None), getattr(algorithm, "beta", None) is not None
    who = f"algorithm '{name}'" + (f" with loss '{objective.entry.name}'" if objective else "")
    same = {"initial", "none"} if objective and "policy" in algorithm.trains else {"initial"}
    if not reads_reference(algorithm, kind) and rule.kind not in same:
        raise ConfigError(f"{who} does not use a reference: '{rule.kind}' would change nothing. Set reference=initial.")
    if reads_reference(algorithm, kind) and rule.kind == "none":
        raise ConfigError(f"{who} reads the reference, and reference 'none' has none. Set reference=initial.")
    if rule.kind == "previous" and algorithm.rounds == 1:
        raise ConfigError(f"{who} has one round: reference 'previous' would never move. Set reference=initial or sync.")
    if penalised and rule.is_replaced and rule.every in (None, 1):
        raise ConfigError(
            f"{who} measures the KL of fresh answers: reference '{rule.kind}' would be the policy that drew them and "
            "the KL always 0. Set reference=initial, ema, or sync with a larger reference.every."
        )


def reads_reference(algorithm: Algorithm, kind: str) -> bool:
    """Whether its loss or penalty compares the policy with a reference."""
    objective = getattr(algorithm, "objective", None)
    return objective.reads_reference if objective else kind not in ("sft", "reward_model")
