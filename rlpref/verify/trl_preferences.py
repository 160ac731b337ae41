"""Losses of TRL's trainers of preferences on random answers. Each function returns TRL's scalar loss."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.tpo import TPOTrainer

from rlpref.verify.tokens import Tokens
from rlpref.verify.trl_stubs import scored, trainer, two_words, with_prompt


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
    policy, ref = scored(tokens.logps, tokens.log_sum_sq), scored(tokens.ref_logps)
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
    return made._compute_loss(lambda **_: policy, with_prompt(tokens.mask), return_outputs=False)


def kto(tokens: Tokens, loss_type: str, beta: float, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """KTOTrainer; its answers of other prompts have token id 1."""

    def model(own: Tensor, other: Tensor):
        return lambda input_ids, **_: scored(other if input_ids.any() else own)

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
    own = with_prompt(tokens.mask)
    other = {f"KL_{name}": column for name, column in own.items()} | {"KL_input_ids": own["attention_mask"]}
    batch = own | other | {"label": tokens.label}
    return made._compute_loss(model(tokens.logps, tokens.other_logps), batch, return_outputs=False)


def _sides(tokens: Tokens) -> dict[str, Tensor]:
    """The columns of CPO's and ORPO's collator."""
    columns = with_prompt(tokens.mask)
    columns["labels"] = columns["input_ids"].masked_fill(columns.pop("completion_mask") == 0, -100)
    halves = {name: column.chunk(2) for name, column in columns.items()}
    return {f"{side}_{name}": half[row] for name, half in halves.items() for row, side in enumerate(SIDES)}


SIDES = ("chosen", "rejected")


def _reference_free(kind: type, tokens: Tokens, settings: dict) -> Tensor:
    made = trainer(kind, is_encoder_decoder=False, **settings)
    logits = two_words(tokens)
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
    logits = two_words(laid_out)
    model = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    return made._compute_loss(model, with_prompt(laid_out.mask), return_outputs=False)


def reward(tokens: Tokens, margin: bool = False, centering: float | None = None) -> Tensor:
    """RewardTrainer on `tokens.rewards`."""
    made = trainer(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=centering))
    inputs = {"attention_mask": tokens.mask} | ({"margin": tokens.margin.chunk(2)[0]} if margin else {})
    return made.compute_loss(lambda **_: SimpleNamespace(logits=tokens.rewards[:, None]), inputs)
