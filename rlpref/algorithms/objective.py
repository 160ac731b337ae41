"""From rows of data to the value of a loss, whatever kind of data the loss takes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from rlpref.algorithms import on_answers, on_lists, on_pairs
from rlpref.algorithms.algorithm import Loss
from rlpref.algorithms.common import require_equal, tolerance
from rlpref.binding import ConfigError
from rlpref.losses.bounds import counted, rows_held
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps
from rlpref.losses.modifiers import Objective
from rlpref.models.bundle import Models
from rlpref.ops.blocks import spread
from rlpref.types import TensorBatch

# A module for each: `at_reference`, `logps`, `metrics` and `at_rest` of its batches.
KINDS = {PairLogps: on_pairs, AnswerLogps: on_answers, ListLogps: on_lists}
SCORES = "give every row 'chosen_score' and 'rejected_score'"
FROM_DATA = {  # columns that nothing but the data can fill, and how
    **dict.fromkeys(("chosen_score", "rejected_score", "margin", "chosen_target", "rejected_target"), SCORES),
    "soft_label": "give every row 'soft_label'",
    "score": "give every row 'score'",
}


def with_reference(models: Models, objective: Objective, batch: TensorBatch, fixed: bool = False) -> TensorBatch:
    """The rows with the reference's log-probs stored where the objective reads them, so that epochs do not compute
    them again (nor other runs, where the rows are `fixed` data); without them where they would go stale before the
    round ends. Raises ConfigError for a column that the objective reads and the data do not have."""
    require_columns(objective, batch)
    if not objective.reads_reference or models.rule.moves_within_rounds:
        return batch
    ref_logps = models.fixed_ref_logps if fixed else models.ref_logps
    return KINDS[objective.entry.takes].at_reference(objective, batch, ref_logps)


def require_columns(objective: Objective, batch: TensorBatch) -> None:
    """Raises ConfigError unless the data have each column that the objective reads and the data alone can give."""
    for column, mend in FROM_DATA.items():
        if column in objective.reads and getattr(batch, column, None) is None:
            who = objective.reader_of(column)
            raise ConfigError(f"{who} reads '{column}', which the data do not have: {mend}, or choose another.")
    if objective.entry.coupled and batch.weight is not None:
        name = objective.entry.name
        mend = "Remove it, or choose another loss."
        raise ConfigError(f"loss '{name}' takes its minibatch as a whole: the data may have no 'weight'. {mend}")


def require_no_lone_row(objective: Objective, rows: int, batch_size: int) -> None:
    """Raises ConfigError where the last minibatch of an epoch would hold one row of a loss that compares rows."""
    if objective.entry.coupled and rows % batch_size == 1:
        raise ConfigError(
            f"loss '{objective.entry.name}' compares the rows of a minibatch, and of {rows} rows in minibatches of "
            f"{batch_size} one is left alone: change algorithm.batch_size or the number of rows."
        )


def objective_loss(models: Models, objective: Objective, scale: float | Tensor, batch: TensorBatch) -> Loss:
    """The loss of each row with its metrics; `scale` of the implicit reward is one number or one for each run."""
    kind = KINDS[objective.entry.takes]
    logps = kind.logps(models, objective, batch)
    value, clamped = valued(objective, logps)
    metrics = kind.metrics(logps, spread(scale, len(batch))) | clamped
    return Loss(value, torch.ones_like(value) if logps.weight is None else logps.weight, metrics)


def valued(objective: Objective, rows: TensorBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [B] of what it sees; and where it knows bounds, which rows [B] one of them kept finite: a metric."""
    with counted() as held_back:
        value = objective(rows)
    return value, {"loss/clamped": rows_held(held_back, len(value)).to(value)} if held_back else {}


def check_objective_start(models: Models, objective: Objective, batch: TensorBatch) -> None:
    """At step 0 the policy is the reference: the log-ratios vanish and the loss is what it is at no change. Where it
    need not be the loss's reference, it still is the policy that was there before training."""
    kind = KINDS[objective.entry.takes]
    if not objective.reads_reference:
        return
    if not models.starts_at_reference:
        batch = kind.at_reference(objective, batch, partial(models.ref_logps, reference=models.initial))
    with torch.no_grad():
        found = kind.logps(models, objective, batch)
    still, log_ratios = kind.at_rest(found)
    lengths = found.chosen_len if isinstance(found, PairLogps) else found.length
    require_equal("log policy/ref of an answer", float(log_ratios.abs().max()), 0.0, tolerance(models, lengths))
    expected, value = objective(still).mean(), objective(found).mean()
    slack = 1e-3 + 0.05 * (models.policy_dtype == torch.bfloat16)
    require_equal("the loss", float(value), float(expected), slack * (1 + abs(float(expected))))
