"""Rows of losses on pairs and single answers, and of reward models: DPOTrainer, KTOTrainer, CPOTrainer, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.losses.tokens import nll
from rlpref.ops.masked import masked_mean
from rlpref.verify import trl_preferences as trl
from rlpref.verify.oracle import Oracle


def of_dpo(ours: Mapping[str, Any], loss_type: str, beta: float = 0.1, factor: float = 1.0, **settings) -> Oracle:
    """A row of DPOTrainer; `settings` are TRL's."""
    options = {key: settings.pop(key) for key in ("note", "in_double") if key in settings}
    theirs = partial(trl.dpo, loss_type=loss_type, beta=beta, **settings)
    return Oracle(ours, theirs, factor=factor, **options)


DPO = [
    of_dpo({"name": "dpo", "beta": 0.1}, "sigmoid", note="TRL ignores label_smoothing here"),
    of_dpo({"name": "hinge", "beta": 0.2}, "hinge", beta=0.2),
    of_dpo({"name": "ipo", "tau": 0.1, "normalize": "mean"}, "ipo", note="TRL has no sum over tokens here"),
    of_dpo(
        {"name": "exo", "beta": 0.1, "label_smoothing": 1e-3},
        "exo_pair",
        label_smoothing=1e-3,
        in_double=True,
        note="TRL's log of the smoothing is fp32",
    ),
    of_dpo({"name": "nca", "beta": 0.1}, "nca_pair"),
    of_dpo({"name": "robust", "beta": 0.1, "label_smoothing": 0.2}, "robust", label_smoothing=0.2),
    of_dpo({"name": "bco_pair", "beta": 0.1}, "bco_pair", note="TRL's shift delta is 0"),
    of_dpo({"name": "sppo", "beta": 0.1}, "sppo_hard", factor=2.0, note="TRL leaves out the paper's 1/2"),
    of_dpo({"name": "aot", "beta": 0.1, "label_smoothing": 0.1}, "aot", label_smoothing=0.1),
    of_dpo({"name": "aot_unpaired", "beta": 0.1, "label_smoothing": 0.1}, "aot_unpaired", label_smoothing=0.1),
    of_dpo({"name": "apo_zero", "beta": 0.1}, "apo_zero"),
    of_dpo({"name": "apo_down", "beta": 0.1}, "apo_down"),
    of_dpo({"name": "discopop", "beta": 0.1}, "discopop"),
    of_dpo({"name": "dpo_norm", "beta": 0.5}, "sigmoid_norm", beta=0.5),
]
ALPHA = 0.3  # of the alpha-divergence
ALPHA_NOTE = "TRL's coefficient is 1 - alpha; it computes in fp32 and fails on fp64"
F_DPO = [
    of_dpo({"name": "f_dpo", "beta": 0.1, "divergence": "forward_kl"}, "sigmoid", divergence="forward_kl"),
    of_dpo({"name": "f_dpo", "beta": 0.1, "divergence": "js"}, "sigmoid", divergence="js_divergence"),
    of_dpo(
        {"name": "f_dpo", "beta": 0.1, "divergence": "alpha", "alpha": ALPHA},
        "sigmoid",
        divergence="alpha_divergence",
        alpha=1 - ALPHA,
        in_double=True,
        note=ALPHA_NOTE,
    ),
]
MODIFIED: list[tuple[dict, dict, dict]] = [  # our modifiers, TRL's settings, what else the row says
    ({"wpo": True}, {"weighting": True}, {}),
    ({"ld_alpha": 0.4}, {"ld_alpha": 0.4}, {}),
    ({"divergence": "forward_kl"}, {"divergence": "forward_kl"}, {}),
    ({"divergence": "js"}, {"divergence": "js_divergence"}, {}),
    (
        {"divergence": "alpha", "divergence_alpha": ALPHA},
        {"divergence": "alpha_divergence", "alpha": 1 - ALPHA},
        {"in_double": True, "note": ALPHA_NOTE},
    ),
]
LEFT_OUT = {  # what both offer and no row compares, and why
    "divergence": (
        "TRL computes it from log-ratios whatever the divergence is; ours puts the link in",
        {"nca", "bco_pair", "sppo", "aot_unpaired", "apo_zero", "apo_down"},
    ),
    "wpo": ("TRL's has no gradient: it multiplies the weight into the value in place", {"hinge"}),
    "wpo with nll": (
        "TRL's weight multiplies the likelihood, too; ours is laid over the loss alone",
        {"any but dpo_nll"},
    ),
}


def modified() -> Iterator[Oracle]:
    """Every loss of DPOTrainer under every modifier that it has, where our registry allows the two together."""
    for row in DPO:
        for modifiers, settings, more in MODIFIED:
            if any(row.name in LEFT_OUT[key][1] for key in modifiers.keys() & LEFT_OUT.keys()):
                continue
            changed = replace(row, modifiers=modifiers, theirs=partial(row.theirs, **settings), **{"note": ""} | more)
            try:
                changed.objective()
            except ConfigError:
                continue
            yield changed


def _chosen(*columns: Tensor) -> list[Tensor]:
    """The rows of chosen answers."""
    return [column.chunk(2)[0] for column in columns]


TOKEN_MEAN = "TRL's NLL is a mean over the micro-batch's tokens: pair by pair"
SFT = {"coef": 1.0, "over": "chosen", "reduce": "token"}
NLL = [
    Oracle(
        {"name": "nll"},
        partial(trl.dpo, loss_type="sft", beta=0.1),
        outside=lambda tokens: masked_mean(*_chosen(nll(tokens.logps), tokens.mask)),
        note="mean over all tokens of the minibatch",
    ),
    Oracle(
        {"name": "dpo_nll", "beta": 0.1, "alpha": 0.7},
        partial(trl.dpo, loss_type=["sigmoid", "sft"], weights=[1.0, 0.7], beta=0.1),
        pair_by_pair=True,
        note=TOKEN_MEAN,
    ),
    Oracle(
        {"name": "dpo_nll", "beta": 0.1, "alpha": 0.7},
        partial(trl.dpo, loss_type=["sigmoid", "sft"], weights=[1.0, 0.7], beta=0.1, weighting=True),
        {"wpo": True},
        pair_by_pair=True,
        note=TOKEN_MEAN,
    ),
    Oracle(
        {"name": "ipo", "tau": 0.1, "normalize": "mean"},
        partial(trl.dpo, loss_type=["ipo", "sft"], beta=0.1),
        {"nll": SFT},
        pair_by_pair=True,
        note=TOKEN_MEAN,
    ),
]
UNPAIRED = [
    Oracle(
        {"name": "kto", "beta": 0.1, "desirable_weight": 1.3, "undesirable_weight": 0.8},
        partial(trl.kto, loss_type="kto", beta=0.1, desirable=1.3, undesirable=0.8),
    ),
    Oracle(
        {"name": "apo_zero_unpaired", "beta": 0.1},
        partial(trl.kto, loss_type="apo_zero_unpaired", beta=0.1),
    ),
]
REFERENCE_FREE = [
    Oracle(
        {"name": "cpo", "beta": 0.1, "alpha": 0.7},
        partial(trl.cpo, loss_type="sigmoid", beta=0.1, nll=0.7),
        pair_by_pair=True,
        note=TOKEN_MEAN,
    ),
    Oracle(
        {"name": "slic", "delta": 1.0, "beta": 0.1, "lam": 0.7},
        partial(trl.cpo, loss_type="hinge", beta=0.1, nll=0.7),
        pair_by_pair=True,
        note=TOKEN_MEAN,
    ),
    Oracle(
        {"name": "simpo", "beta": 2.0, "gamma": 0.8},
        partial(trl.cpo, loss_type="simpo", beta=2.0, gamma=0.8),
    ),
    Oracle(
        {"name": "simpo", "beta": 2.0, "gamma": 0.8},
        partial(trl.cpo, loss_type="simpo", beta=2.0, gamma=0.8, nll=1.0),
        {"nll": SFT},
        pair_by_pair=True,
        note=TOKEN_MEAN,
    ),
    Oracle(
        {"name": "alphapo", "beta": 2.5, "gamma": 0.3, "alpha": 0.25},
        partial(trl.cpo, loss_type="simpo", beta=2.5, gamma=0.3, alpha=0.25),
    ),
    Oracle(
        {"name": "orpo", "beta": 0.1},
        partial(trl.orpo, beta=0.1),
        pair_by_pair=True,
        in_double=True,
        note="TRL's odds are fp32, infinite at a probability of 1; its NLL is over prompt and answer: no prompt here",
    ),
    Oracle({"name": "cpo", "beta": 0.1, "alpha": 0.0}, partial(trl.tpo, loss_type="sigmoid", beta=0.1)),
    Oracle({"name": "slic", "beta": 0.1, "lam": 0.0}, partial(trl.tpo, loss_type="hinge", beta=0.1)),
    Oracle(
        {"name": "simpo", "beta": 2.0, "gamma": 0.8},
        partial(trl.tpo, loss_type="tpo-l", beta=2.0, gamma=0.8, nll=1.0),
        {"nll": SFT},
        pair_by_pair=True,
        note="the chosen answer is TPO's gold one",
    ),
]
LOG_RATIOS = "TRL's function of log-probs, given log-ratios"
BY_HAND = [  # what DPOTrainer does not do
    Oracle(
        {"name": "dpo", "beta": 0.1, "label_smoothing": 0.2},
        partial(trl.cpo_of_log_ratios, loss_type="sigmoid", beta=0.1, label_smoothing=0.2),
        note=LOG_RATIOS,
    ),
    Oracle(
        {"name": "ipo", "tau": 0.1, "normalize": "sum"},
        partial(trl.cpo_of_log_ratios, loss_type="ipo", beta=0.1),
        note=LOG_RATIOS,
    ),
]
REWARD_MODELS = [
    Oracle({"name": "bradley_terry"}, partial(trl.reward)),
    Oracle({"name": "bt_margin"}, partial(trl.reward, margin=True)),
    Oracle({"name": "bt_center", "coef": 0.05}, partial(trl.reward, centering=0.05)),
]
ROWS = [*DPO, *F_DPO, *modified(), *NLL, *UNPAIRED, *REFERENCE_FREE, *BY_HAND, *REWARD_MODELS]
