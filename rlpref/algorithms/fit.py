"""Whether an algorithm and its loss fit the rest of a run: its reference, its data, its minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlpref.algorithms.algorithm import Algorithm
from rlpref.algorithms.objective import require_columns
from rlpref.algorithms.reward_model import check_columns
from rlpref.binding import ConfigError
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardLists, RewardPairs
from rlpref.models.reference_rule import ReferenceRule
from rlpref.types import TensorBatch


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
    if kind == "xpo" and rule.is_replaced and rule.every in (None, 1):
        raise ConfigError(
            f"{who} compares its answers with the reference's: reference '{rule.kind}' would be the policy itself. Set "
            "reference=initial, ema, or sync with a larger reference.every."
        )
    if penalised and rule.is_replaced and rule.every in (None, 1):
        raise ConfigError(
            f"{who} measures the KL of fresh answers: reference '{rule.kind}' would be the policy that drew them and "
            "the KL always 0. Set reference=initial, ema, or sync with a larger reference.every."
        )


def check_computing(algorithm: Algorithm, kind: str, model: Mapping[str, Any]) -> None:
    """Raises ConfigError where the algorithm of that kind cannot work as the section `model` computes."""
    if model.get("compute_dtype") and getattr(algorithm, "natural", None):
        raise ConfigError("algorithm 'trpo' has no natural gradient in model.compute_dtype: set it to null.")
    if model.get("compute_dtype") and getattr(algorithm, "critic", None) == "shared":
        raise ConfigError("algorithm.critic 'shared' has no part in model.compute_dtype: set critic=separate.")
    if model.get("prompt_tokens") and kind == "nash_md":
        raise ConfigError("algorithm 'nash_md' mixes two models, and model.prompt_tokens are one's: use model.lora.r.")


def reads_reference(algorithm: Algorithm, kind: str) -> bool:
    """Whether its loss or penalty compares the policy with a reference."""
    objective = getattr(algorithm, "objective", None)
    if objective is None or hasattr(algorithm, "beta"):  # a penalty, wherever it stands
        return kind not in ("sft", "reward_model", "rejection")
    return objective.reads_reference


OF_LOSSES = {  # forms of data by what a loss takes, where one chooses the loss
    **dict.fromkeys((PairLogps, RewardPairs), ("pairs",)),
    **dict.fromkeys((ListLogps, RewardLists), ("kwise",)),
    AnswerLogps: ("unpaired", "pairs"),
}


def check_form(algorithm: Algorithm, kind: str, name: str, form: str) -> None:
    """Raises ConfigError where training would see rows of the form `form` (rlpref.data.pairing.data_form) that the
    algorithm of that kind and name, or its loss, cannot learn from. A pair is two single answers."""
    chosen = kind in ("offline", "reward_model")
    takes = (
        OF_LOSSES[algorithm.objective.entry.takes] if chosen else ("pairs",) if kind in ("curriculum", "sft") else None
    )
    if takes is None or form in takes:
        return
    who = f"loss '{algorithm.objective.entry.name}'" if chosen else f"algorithm '{name}'"
    if form == "kwise" and "pairs" in takes:
        mend = "set data.pairs_by to form pairs"
    else:
        mend = f"set data.kind={takes[0]}" + (" data.pairs_by=null" if takes == ("kwise",) else "")
    kinds = " or ".join(map(repr, takes))
    raise ConfigError(f"{who} takes data of kind {kinds}, not '{form}': {mend}, or choose another loss.")


def check_minibatch(algorithm: Algorithm, micro_batch_size: int, micro_batch_tokens: int | None) -> None:
    """Raises ConfigError where a loss that takes its minibatch as a whole would see it in parts, or alone."""
    objective = getattr(algorithm, "objective", None)
    if objective is None or not objective.entry.coupled:
        return
    name, rows = objective.entry.name, algorithm.batch_size
    if micro_batch_size < rows:
        raise ConfigError(
            f"loss '{name}' takes a minibatch as a whole: training.micro_batch_size is {micro_batch_size}, "
            f"but must be at least algorithm.batch_size, {rows}."
        )
    if micro_batch_tokens is not None:
        raise ConfigError(f"loss '{name}' takes a minibatch as a whole: set training.micro_batch_tokens=null.")
    if rows < 2:
        raise ConfigError(f"loss '{name}' compares the rows of a minibatch: algorithm.batch_size must be above 1.")


def check_rows(algorithm: Algorithm, rows: TensorBatch) -> None:
    """Raises ConfigError for rows, read and tokenised, that the algorithm's loss cannot use: before anything is
    evaluated. Rows that an algorithm makes it checks itself."""
    objective = getattr(algorithm, "objective", None)
    if objective is None or algorithm.needs_reward:
        return
    if getattr(algorithm, "by", None) == "scores" and rows.chosen_score is None:
        raise ConfigError(
            "algorithm.by 'scores' reads 'chosen_score' and 'rejected_score', which the data do not have: "
            "choose algorithm.by=reference or loss."
        )
    check = check_columns if objective.entry.takes in (RewardPairs, RewardLists) else require_columns
    check(objective, rows)
