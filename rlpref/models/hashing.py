"""Fingerprints of weights and tokenizers: what a run's card and its reference are recognised by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlpref.models.adapters import is_adapter_weight


def weights_hash(model: nn.Module) -> str:
    """First 16 hex digits of the sha256 of every entry of the state dict: names, dtypes, shapes and bytes."""
    return state_hash(model.state_dict())


def base_hash(model: nn.Module) -> str:
    """`weights_hash` of the model under a peft adapter, as it was before the adapter came on (an adapter's
    random start must not make two equal references look different); of others, its `weights_hash`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    state = base.state_dict()
    return state_hash({k.replace(".base_layer.", "."): v for k, v in state.items() if not is_adapter_weight(k)})


def state_hash(state: Mapping[str, Tensor]) -> str:
    """`weights_hash` of a state dict, in whatever order it is given."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Read as bytes: numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def tokenizer_hash(tokenizer) -> str:
    """First 16 hex digits of the sha256 of a HF tokenizer's definition (where it is a slow one: its
    vocabulary) and its chat template."""
    if tokenizer.is_fast:
        definition = tokenizer.backend_tokenizer.to_str()
    else:
        definition = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((definition + str(tokenizer.chat_template)).encode()).hexdigest()[:16]
