"""Trainers of TRL 1.16 that can compute their loss and nothing else: made without their constructor and given the
settings that the loss reads, with models whose log-probs are known. An answer stands behind a prompt of one token,
which nothing scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer import dpo_trainer

from rlpref.losses.bounds import log1mexp
from rlpref.verify.tokens import Tokens


def trainer(kind: type, **settings):
    """A trainer of that kind on one process that logs nowhere."""
    made = object.__new__(kind)
    model = torch.nn.Module()
    model.is_gradient_checkpointing = False
    common = {
        "model": model,
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"),
            num_processes=1,
            gather=lambda tensor: tensor,
            gather_for_metrics=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
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


def with_prompt(mask: Tensor) -> dict[str, Tensor]:
    """Ids, attention and completion mask [N, 1 + T]; all tokens have id 0."""
    completion = pad(mask.long(), (1, 0))
    attention = pad(mask.long(), (1, 0), value=1)
    return {"input_ids": torch.zeros_like(completion), "attention_mask": attention, "completion_mask": completion}


def scored(logps: Tensor, log_sum_sq: Tensor | None = None) -> SimpleNamespace:
    """What TRL's models return with `fused_lm_head=True`; what is only logged is 0."""
    nothing = torch.zeros_like(logps)
    return SimpleNamespace(
        log_probs=logps, log_sum_sq_probs=log_sum_sq, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )


def two_words(tokens: Tokens) -> Tensor:
    """[N, 1 + T, 2] logits of a model with two words that gives these log-probs to the first, shifted as a causal
    model's are."""
    logps = torch.where(tokens.mask, tokens.logps, -1.0)  # padding is not scored, but its gradient must be finite
    return pad(torch.stack([logps, log1mexp(logps)], -1), (0, 0, 0, 1))
