"""Scalar heads: reward models and critics, both one number per token on top of a language model's decoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from rlpref.binding import ConfigError
from rlpref.models.adapters import has_adapter, is_adapter_weight, merged
from rlpref.models.lm import lora_config, refuse_trained_bfloat16, wants_adapter
from rlpref.ops.masked import last_masked
from rlpref.ops.packing import decode, is_packed, pack, scattered
from rlpref.ops.twin import running
from rlpref.ops.virtual import ahead, virtual_ids
from rlpref.types import Sequences


class ScalarHead(nn.Module):
    """A decoder and a linear map to one number, computed in float32 (in float64 where the head is).

    The map starts with bias 0 and normal weights drawn from `generator`, with the standard deviation `std`. None is
    1/sqrt(d + 1), d the decoder's width (Stiennon et al. 2020): outputs of about unit size on normalised activations.
    A backbone that is not its `own` is no part of it: neither its parameters nor its weight file have it, but gradients
    reach it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        generator: torch.Generator,
        std: float | None = None,
        own: bool = True,
    ):
        super().__init__()
        weight = next(backbone.parameters())
        if own:
            self.backbone = backbone
        else:
            object.__setattr__(self, "backbone", backbone)
        self.head = nn.utils.skip_init(nn.Linear, width, 1, dtype=torch.promote_types(weight.dtype, torch.float32))
        std = (width + 1) ** -0.5 if std is None else std
        nn.init.normal_(self.head.weight, std=std, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.head.to(weight.device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """[B, T] the number after reading each token."""
        read = running(self.backbone)(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return self.numbers(read.last_hidden_state)

    def numbers(self, hidden: Tensor) -> Tensor:
        """[..] of hidden states [.., width]."""
        return linear(hidden.to(self.head.weight.dtype), self.head.weight[0], self.head.bias)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[..] the product of hidden [.., width] and weight, plus bias. Unlike a matrix product it rounds each row in the
    same way however many rows there are."""
    return (hidden * weight).sum(-1) + bias


def backbone_of(model: nn.Module) -> nn.Module:
    """The decoder under a causal LM (HF, HF under a peft adapter, or one that keeps it in `.model`): the part
    that returns `.last_hidden_state`."""
    causal = model.get_base_model() if has_adapter(model) else model
    return causal.base_model if isinstance(causal, transformers.PreTrainedModel) else causal.model


def scalar_model(
    policy: nn.Module, lora: Mapping[str, Any] | None, generator: torch.Generator, head_std: float | None = None
) -> ScalarHead:
    """A scalar head (see ScalarHead for its `head_std`) on a copy of the policy's decoder, which computes what the
    policy's decoder computes now.

    A policy's adapter is merged into the copy (rounded to the base's dtype). With `lora`, only a new adapter and the
    head train, and of a policy with virtual tokens a copy of these and the head; else everything does. Every random
    draw comes from `generator`, none from torch's global one. Raises ConfigError for settings of `lora` that cannot
    work.
    """
    dtype = next(backbone_of(policy).parameters()).dtype
    virtual = virtual_ids(backbone_of(policy)) is not None
    refuse_trained_bfloat16(dtype, wants_adapter(lora) or virtual)
    if has_adapter(policy) and not virtual:
        backbone = backbone_of(merged(policy))
    else:
        backbone = copy.deepcopy(backbone_of(policy))
    if wants_adapter(lora):
        backbone = _with_adapter(backbone, lora, generator)
    return _trainable(ScalarHead(backbone, policy.config.hidden_size, generator, head_std).eval())


def shared_head(policy: nn.Module, generator: torch.Generator) -> ScalarHead:
    """A scalar head on the policy's own decoder, which stays the policy's to keep."""
    return ScalarHead(backbone_of(policy), policy.config.hidden_size, generator, own=False).eval()


def state_values(model: ScalarHead, sequences: Sequences) -> Tensor:
    """[B, T] the number before each completion token, 0 elsewhere: what the head says one token earlier."""
    backbone, sequences, virtual = ahead(running(model.backbone), sequences)
    if is_packed(backbone):
        packed = pack(sequences)
        values = model.numbers(decode(backbone, packed)[packed.read])
        return scattered(packed, values, sequences.ids.shape)[:, virtual:]
    values = model(sequences.ids, sequences.attention_mask.long(), sequences.position_ids)
    before = torch.nn.functional.pad(values[:, :-1], (1, 0))
    return torch.where(sequences.mask, before, torch.zeros_like(before))[:, virtual:]


def answer_scores(model: ScalarHead, sequences: Sequences) -> Tensor:
    """[B] the number at the last real token of each row, with gradient."""
    backbone, sequences, _ = ahead(running(model.backbone), sequences)
    if is_packed(backbone):
        packed = pack(sequences, last=True)
        return model.numbers(decode(backbone, packed)[packed.last])
    values = model(sequences.ids, sequences.attention_mask.long(), sequences.position_ids)
    return last_token_scores(values, sequences)


def last_token_scores(values: Tensor, sequences: Sequences) -> Tensor:
    """[B] the value [B, T] at the last real token of each row, by the attention mask (never by a search for
    padding, which may be EOS). Padding may stand on either side."""
    last = last_masked(sequences.attention_mask)
    return values.gather(1, last[:, None]).squeeze(1)


def critic_from(reward_model: ScalarHead) -> ScalarHead:
    """A critic that starts as the reward model: a copy of its own to train (adapter and head where the reward
    model has an adapter, else everything)."""
    return _trainable(copy.deepcopy(reward_model).eval())


def _with_adapter(backbone: nn.Module, lora: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
    from peft import inject_adapter_in_model  # Seconds to import; only adapters need it.

    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        try:
            adapted = inject_adapter_in_model(lora_config(lora), backbone)
        except ValueError as error:
            raise ConfigError(f"model.lora does not fit {type(backbone).__name__}: {error}") from error
    for name, parameter in adapted.named_parameters():
        if is_adapter_weight(name) and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    return adapted


def _trainable(model: ScalarHead) -> ScalarHead:
    """Gradients for the adapter and the head where there is an adapter, else for everything."""
    adapter = any(is_adapter_weight(name) for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not adapter or is_adapter_weight(name) or name.startswith("head."))
    return model
