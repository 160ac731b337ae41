"""What stands on a frozen model: which of its weights are an adapter's, prompt tuning, and adapters merged away."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlpref.binding import ConfigError
from rlpref.ops.virtual import VirtualTokens, virtual_ids

MARKS = (".lora_", ".virtual.")  # in the names of weights that are an adapter's; DoRA's magnitudes are lora_ too


def is_adapter_weight(name: str) -> bool:
    """Whether the weight of that name belongs to an adapter."""
    return any(mark in name for mark in MARKS)


def has_adapter(policy: nn.Module) -> bool:
    """Whether `policy` is a model under a peft adapter (asked without importing peft)."""
    return hasattr(policy, "get_base_model") and hasattr(policy, "disable_adapter")


def add_virtual_tokens(policy: nn.Module, count: int) -> nn.Module:
    """`policy` under peft's prompt tuning: frozen, with `count` float32 vectors before every prompt, which start as the
    embeddings of tokens drawn by torch's global generator (Lester et al. 2021, section 3.2). ConfigError where peft
    finds no word embedding of the model's."""
    from peft import PromptTuningConfig, get_peft_model  # Seconds to import; only adapters need it.

    words = policy.get_input_embeddings()
    drawn = torch.randint(words.num_embeddings, (count,)).to(words.weight.device)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init="RANDOM")
    adapted = get_peft_model(policy, config)
    if adapted.word_embeddings is not words:
        raise ConfigError(f"model.prompt_tokens: peft finds no word embedding in {type(policy).__name__}.")
    virtual = adapted.prompt_encoder["default"]
    with torch.no_grad():  # written here: not every peft knows how to start so
        virtual.embedding.weight.copy_(words(drawn))
    policy.set_input_embeddings(VirtualTokens(words, virtual))
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(is_adapter_weight(name))
    return adapted


@torch.no_grad()
def adapter_is_zero(policy: nn.Module) -> bool:
    """Whether there is an adapter and it adds nothing: LoRA with every B zero, and under DoRA with the magnitudes of
    the base's own weights. Virtual tokens always say something."""
    if not has_adapter(policy) or virtual_ids(policy.get_base_model()) is not None:
        return False
    return all(map(_adds_nothing, (part for part in policy.modules() if hasattr(part, "lora_B"))))


def _adds_nothing(layer: nn.Module) -> bool:
    norms = (part.weight for part in layer.lora_magnitude_vector.values())
    base = layer.base_layer.weight
    unmoved = all(torch.equal(norm, torch.linalg.norm(base.to(norm.dtype), dim=1).to(norm.dtype)) for norm in norms)
    return unmoved and not any(part.weight.any() for part in layer.lora_B.values())


def merged(policy: nn.Module) -> nn.Module:
    """A copy of the causal LM under the adapter of `policy`, with the adapter in its weights (rounded to their dtype).
    Raises ConfigError for virtual tokens: what they do is no change of the weights."""
    if virtual_ids(policy.get_base_model()) is not None:
        raise ConfigError("model.prompt_tokens: virtual tokens cannot be merged into the weights of a model.")
    return copy.deepcopy(policy).merge_and_unload()
