"""Losses on preference pairs. In all of them the margin is the difference of log-ratios
[log pi(w) - log ref(w)] - [log pi(l) - log ref(l)], in nats per answer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.losses.registry import pair_loss
from rlpref.types import PairLogps


def log_ratios(lp: PairLogps) -> tuple[Tensor, Tensor]:
    """[B] log policy/ref of the chosen and of the rejected answers."""
    return lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected


@pair_loss
def dpo(lp: PairLogps, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta * margin), labels flipped with probability `label_smoothing` (conservative DPO).
    Rafailov et al. 2023 (2305.18290), eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy preferences"."""
    chosen, rejected = log_ratios(lp)
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@pair_loss
def ipo(lp: PairLogps, tau: float, normalize: Literal["sum", "mean"]) -> Tensor:
    """(margin - 1/(2 tau))^2. Azar et al. 2024 (2310.12036), eq. 17.

    `normalize: sum` is the equation; `mean` divides each log-ratio by its answer's length first (what TRL
    does), which is another objective wherever lengths differ.
    """
    chosen, rejected = log_ratios(lp)
    if normalize == "mean":
        chosen, rejected = chosen / lp.chosen_len, rejected / lp.rejected_len
    return (chosen - rejected - 1 / (2 * tau)) ** 2
