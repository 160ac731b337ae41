"""Rows of policy-gradient losses: GRPOTrainer, RLOOTrainer, GMPOTrainer, A2POTrainer."""

from __future__ import annotations

from functools import partial

from rlpref.verify.oracle import Oracle
from rlpref.verify.tokens import LONGEST
from rlpref.verify.trl_rollouts import a2po, gmpo, grpo, rloo

SAPO = {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
VESPO = {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
RANGES = {"cliprange_low": 0.1, "cliprange_high": 0.15}

ROWS = [
    Oracle({"name": "ppo_clip", "cliprange": 0.2}, partial(grpo, loss_type="bnpo")),
    Oracle({"name": "dual_clip", "cliprange": 0.2, "dual_clip": 1.3}, partial(grpo, loss_type="bnpo", delta=1.3)),
    Oracle({"name": "grpo", "cliprange": 0.2, "kl_coef": 0.04}, partial(grpo, loss_type="grpo", kl=0.04)),
    Oracle(
        {"name": "dr_grpo", "cliprange": 0.2},
        partial(grpo, loss_type="dr_grpo"),
        factor=1 / LONGEST,
        note="TRL divides by the longest length",
    ),
    Oracle(
        {"name": "dapo", "cliprange_low": 0.2, "cliprange_high": 0.28},
        partial(grpo, loss_type="dapo", low=0.2, high=0.28),
    ),
    Oracle(
        {"name": "cispo", "cliprange_low": 1.0, "cliprange_high": 0.2},
        partial(grpo, loss_type="cispo", high=1.2),
        note="TRL's epsilon_high is the ratio's bound, 1 + ours",
    ),
    Oracle(
        {"name": "sapo", "tau_pos": 1.0, "tau_neg": 1.05},
        partial(grpo, loss_type="sapo", **SAPO),
        in_double=True,
        note="TRL's temperatures are fp32",
    ),
    Oracle({"name": "vespo"}, partial(grpo, loss_type="vespo", **VESPO)),
    Oracle({"name": "gspo", **RANGES}, partial(grpo, loss_type="grpo", level="sequence", low=0.1, high=0.15)),
    Oracle(
        {"name": "gspo_token", **RANGES},
        partial(grpo, loss_type="grpo", level="sequence", low=0.1, high=0.15),
        note="equal where all tokens of an answer have one advantage",
    ),
    Oracle({"name": "luspo", **RANGES}, partial(grpo, loss_type="luspo", level="sequence", low=0.1, high=0.15)),
    Oracle({"name": "gmpo", "cliprange": 0.1}, partial(gmpo, low=0.1, high=0.1)),
    Oracle({"name": "ppo_clip_answer", "cliprange": 0.2}, partial(rloo)),
    Oracle({"name": "a_star_po", "beta": 0.1}, partial(a2po, beta=0.1)),
    Oracle(
        {"name": "a2po", "beta": 0.1, "value_beta": 0.5},
        partial(a2po, beta=0.1, value_beta=0.5),
        note="TRL estimates the value beforehand, from other answers",
    ),
]
