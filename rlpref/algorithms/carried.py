"""Numbers that follow a run from round to round, through its checkpoints too: the weight of the KL, the spread of the
scores, a running mean."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.algorithms.algorithm import Round
from rlpref.ops.baselines import moving_mean
from rlpref.ops.blocks import blocks
from rlpref.ops.kl import controlled
from rlpref.ops.moments import Moments, merged


def kl_coef(start: float | Tensor, round: Round, device: torch.device) -> Tensor:
    """[runs] the weight of the KL in this round, at first `start`."""
    first = torch.as_tensor(start, dtype=torch.float64).expand(round.runs)
    coef = round.carried.setdefault("kl_coef", first).to(device, torch.float32)
    round.metrics["objective/kl_coef"] = coef
    return coef


def steer_kl_coef(round: Round, target: float, gain: float) -> None:
    """Moves the weight of the rounds to come by the KL of this one."""
    kl = round.metrics["objective/kl"].double()
    round.carried["kl_coef"] = controlled(round.carried["kl_coef"].to(kl.device), kl, target, gain)


def scaled(scores: Tensor, round: Round, less_mean: bool) -> Tensor:
    """[B] scores over the standard deviation of all scores so far, these included; and less their mean."""
    names = [f"scores_{name}" for name in Moments._fields]
    nothing = torch.zeros(round.runs, dtype=torch.float64, device=scores.device)
    by_run = blocks(scores, round.runs).double()
    seen = merged(Moments(*(round.carried.get(name, nothing).to(scores.device) for name in names)), by_run)
    round.carried |= dict(zip(names, seen))
    round.metrics["objective/scores_std"] = seen.std
    shift = seen.mean[:, None] if less_mean else 0.0
    return ((by_run - shift) / (seen.std[:, None] + 1e-8)).flatten().to(scores)


def baseline(returns: Tensor, round: Round, rate: float) -> Tensor:
    """[runs] the moving mean of the returns [B] of the rounds before, 0 at first. It takes these up for the next."""
    by_run = blocks(returns, round.runs)
    before = round.carried.get("baseline", torch.zeros(round.runs, dtype=torch.float64)).to(returns.device)
    round.carried["baseline"] = moving_mean(before, by_run.double(), rate)
    return before.to(returns)
