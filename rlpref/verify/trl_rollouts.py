"""Losses of TRL's trainers of policy gradients on random answers. Each function returns TRL's scalar loss."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.a2po import A2POTrainer
from trl.experimental.gmpo import GMPOTrainer

from rlpref.verify.tokens import LIST, Tokens
from rlpref.verify.trl_stubs import trainer


def _policy_gradient(kind: type, tokens: Tokens, low: float, high: float, **settings) -> Tensor:
    """The loss of one micro-batch that is the whole batch; `low` and `high` are TRL's epsilons."""
    scores = tokens.logps, torch.zeros_like(tokens.logps), None
    options = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
    made = trainer(
        kind,
        _get_per_token_logps_and_entropies=lambda *_, **__: scores,
        epsilon_low=low,
        epsilon_high=high,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        max_completion_length=tokens.mask.shape[1],
        args=SimpleNamespace(**options | settings.pop("args", {})),
        **{"beta": 0.0} | settings,
    )
    prompt, completion = torch.zeros(len(tokens), 1, dtype=torch.long), tokens.mask.long()
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": torch.zeros_like(completion),
        "completion_mask": completion,
        "advantages": tokens.advantages,
        "old_per_token_logps": tokens.old_logps,
        "old_logps": tokens.old_logps.sum(1),
        "ref_per_token_logps": tokens.ref_logps,
        "num_items_in_batch": completion.sum(),
    }
    return made._compute_loss(None, inputs)


def grpo(
    tokens: Tokens, loss_type: str, low: float = 0.2, high: float = 0.2, kl: float = 0.0, level: str = "token", **args
) -> Tensor:
    """GRPOTrainer; `kl` is its beta, `level` its importance_sampling_level, `args` are further ones of its config."""
    options = {"loss_type": loss_type, "beta": kl, "importance_sampling_level": level, "args": args}
    return _policy_gradient(GRPOTrainer, tokens, low, high, **options)


def rloo(tokens: Tokens, low: float = 0.2, high: float = 0.2) -> Tensor:
    """RLOOTrainer."""
    return _policy_gradient(RLOOTrainer, tokens, low, high)


def gmpo(tokens: Tokens, low: float = 0.4, high: float = 0.4) -> Tensor:
    """GMPOTrainer."""
    return _policy_gradient(GMPOTrainer, tokens, low, high)


def a2po(tokens: Tokens, beta: float, value_beta: float | None = None) -> Tensor:
    """A2POTrainer; `beta` is its beta2. The optimal value is that of the answers themselves, four to a prompt, at
    `value_beta`, its beta1; without one it is 0 and rewards are the advantages."""
    rewards, values = tokens.advantages, torch.zeros_like(tokens.advantages)
    if value_beta:
        rewards, lists = tokens.scores, tokens.scores.view(-1, LIST)
        of_lists = value_beta * (torch.logsumexp(lists / value_beta, dim=1) - math.log(LIST))  # as its stage 1 has it
        values = of_lists.repeat_interleave(LIST)
    made = trainer(A2POTrainer, args=SimpleNamespace(beta2=beta), _get_sequence_logps=lambda *_: tokens.logps.sum(1))
    inputs = dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
    inputs |= {"ref_logps": tokens.ref_logps.sum(1), "rewards": rewards, "v_star": values}
    return made.compute_loss(None, inputs)
