"""Losses of TRL 1.16 on tokens whose log-probs are known: its own trainers' code, without a model or data.

A trainer is made without its constructor and given the settings that its loss reads. Each function returns TRL's scalar
loss. An answer stands behind a prompt of one token, which nothing scores."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlpref.losses.bounds import log1mexp
from rlpref.verify.tokens import Tokens

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its notice that CPO, ORPO and TPO may move

from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.tpo import TPOTrainer
from trl.trainer import dpo_trainer


def trainer(kind: type, **settings):
    """A trainer of that kind on one process that logs nowhere."""
    made = object.__new__(kind)
    model = torch.nn.Module()
    model.is_gradient_checkpointing = False
    common = {
        "model": model,
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"), gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor
        ),
        "aux_loss_enabled": False,
        "label_smoothing": 0.0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(made).update(common | settings)
    return made


@contextmanager
def in_double() -> Iterator[None]:
    """Lifts to fp64 what TRL computes in fp32 whatever its input: `.float()`, numbers of the default type, and the
    alpha-divergence's table of clamps, which knows no fp64 and would raise KeyError."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    doubled = SimpleNamespace(**vars(torch) | {"float32": torch.float64})
    try:
        with patch.object(Tensor, "float", Tensor.double), patch.object(dpo_trainer, "torch", doubled):
            yield
    finally:
        torch.set_default_dtype(default)


def _with_prompt(mask: Tensor) -> dict[str, Tensor]:
    """Ids, attention and completion mask [N, 1 + T]; all tokens have id 0."""
    completion = pad(mask.long(), (1, 0))
    attention = pad(mask.long(), (1, 0), value=1)
    return {"input_ids": torch.zeros_like(completion), "attention_mask": attention, "completion_mask": completion}


def _scored(logps: Tensor, log_sum_sq: Tensor | None = None) -> SimpleNamespace:
    """What TRL's models return with `fused_lm_head=True`; what is only logged is 0."""
    nothing = torch.zeros_like(logps)
    return SimpleNamespace(
        log_probs=logps, log_sum_sq_probs=log_sum_sq, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )


def dpo(
    tokens: Tokens,
    loss_type: str | Sequence[str],
    beta: float,
    weights: Sequence[float] | None = None,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
    weighting: bool = False,
    ld_alpha: float | None = None,
    temperature: float = 0.05,
    **settings,
) -> Tensor:
    """DPOTrainer; `loss_type` and `weights` may be lists."""
    losses = [loss_type] if isinstance(loss_type, str) else list(loss_type)
    policy, ref = _scored(tokens.logps, tokens.log_sum_sq), _scored(tokens.ref_logps)
    made = trainer(
        DPOTrainer,
        loss_types=losses,
        loss_weights=weights or [1.0] * len(losses),
        beta=beta,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=alpha,
        use_weighting=weighting,
        ld_alpha=ld_alpha,
        precompute_ref_logps=False,
        ref_model=lambda **_: ref,
        args=SimpleNamespace(discopop_tau=temperature, gradient_checkpointing_kwargs=None),
        **settings,
    )
    return made._compute_loss(lambda **_: policy, _with_prompt(tokens.mask), return_outputs=False)


def kto(tokens: Tokens, loss_type: str, beta: float, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """KTOTrainer; its answers of other prompts have token id 1."""

    def model(own: Tensor, other: Tensor):
        return lambda input_ids, **_: _scored(other if input_ids.any() else own)

    made = trainer(
        KTOTrainer,
        loss_type=loss_type,
        beta=beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        calculate_KL=loss_type == "kto",
        precompute_ref_logps=False,
        ref_model=model(tokens.ref_logps, tokens.other_ref_logps),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    own = _with_prompt(tokens.mask)
    other = {f"KL_{name}": column for name, column in own.items()} | {"KL_input_ids": own["attention_mask"]}
    batch = own | other | {"label": tokens.label}
    return made._compute_loss(model(tokens.logps, tokens.other_logps), batch, return_outputs=False)


def _logits(tokens: Tokens) -> Tensor:
    """[N, 1 + T, 2] logits of a model with two words that gives these log-probs to the first, shifted as a causal
    model's are."""
    logps = torch.where(tokens.mask, tokens.logps, -1.0)  # padding is not scored, but its gradient must be finite
    return pad(torch.stack([logps, log1mexp(logps)], -1), (0, 0, 0, 1))


def _sides(tokens: Tokens) -> dict[str, Tensor]:
    """The columns of CPO's and ORPO's collator."""
    columns = _with_prompt(tokens.mask)
    columns["labels"] = columns["input_ids"].masked_fill(columns.pop("completion_mask") == 0, -100)
    halves = {name: column.chunk(2) for name, column in columns.items()}
    return {f"{side}_{name}": half[row] for name, half in halves.items() for row, side in enumerate(SIDES)}


SIDES = ("chosen", "rejected")


def _reference_free(kind: type, tokens: Tokens, settings: dict) -> Tensor:
    made = trainer(kind, is_encoder_decoder=False, **settings)
    logits = _logits(tokens)
    return made.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), _sides(tokens))[0]


def cpo(
    tokens: Tokens, loss_type: str, beta: float, nll: float = 0.0, gamma: float = 0.5, alpha: float = 0.0, **settings
) -> Tensor:
    """CPOTrainer, and with it SimPO and AlphaPO; `nll` is its cpo_alpha."""
    names = {"cpo_alpha": nll, "simpo_gamma": gamma, "alpha": alpha, "pad_token_id": 0}
    return _reference_free(CPOTrainer, tokens, {"loss_type": loss_type, "beta": beta} | names | settings)


def cpo_of_log_ratios(tokens: Tokens, loss_type: str, beta: float, **settings) -> Tensor:
    """CPOTrainer.cpo_loss on summed log policy/ref in the place of log-probs: a DPO of CPO's making."""
    made = trainer(CPOTrainer, loss_type=loss_type, beta=beta, alpha=0.0, **settings)
    return made.cpo_loss(*(tokens.logps - tokens.ref_logps).sum(1).chunk(2))[0].mean()


def orpo(tokens: Tokens, beta: float) -> Tensor:
    """ORPOTrainer."""
    return _reference_free(ORPOTrainer, tokens, {"beta": beta, "padding_value": 0})


def tpo(tokens: Tokens, loss_type: str, beta: float, nll: float = 0.0, gamma: float = 0.5) -> Tensor:
    """TPOTrainer with the chosen answer as the gold one, too; `nll` is its tpo_alpha."""
    made = trainer(TPOTrainer, loss_type=loss_type, beta=beta, tpo_alpha=nll, tpo_l_gamma=gamma)
    half = len(tokens) // 2
    branches = [*range(2 * half), *range(half)] if nll else [*range(2 * half)]
    laid_out = tokens[torch.tensor(branches)]
    logits = _logits(laid_out)
    model = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    return made._compute_loss(model, _with_prompt(laid_out.mask), return_outputs=False)


def reward(tokens: Tokens, margin: bool = False, centering: float | None = None) -> Tensor:
    """RewardTrainer on `tokens.rewards`."""
    made = trainer(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=centering))
    inputs = {"attention_mask": tokens.mask} | ({"margin": tokens.margin} if margin else {})
    return made.compute_loss(lambda **_: SimpleNamespace(logits=tokens.rewards[:, None]), inputs)
