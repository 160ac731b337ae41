"""One attention function for every HF model whose layers ask for one by name: rows that share a prefix, or a cache of
their own, bring a layout that knows which token sees which.

`attn_implementation="packed"` is `sdpa` wherever a forward pass brings no layout.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "packed"


class Layout(Protocol):
    """Which token of a forward pass sees which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[B, N, heads, d] from query [B, heads, N, d] and key, value [B, kv heads, N, d] of layer number `layer`."""
        ...


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, layout=None, **kwargs):
    """What HF's layers call. ValueError for a layer that looks back over a window: a layout knows of none."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("sliding_window") is not None:
        raise ValueError("packed attention knows no sliding window: set model.attn_implementation=sdpa.")
    return layout.attend(module.layer_idx, query, key, value, kwargs["scaling"]), None


def with_layout(layout: Layout) -> dict:
    """Arguments of a forward pass under `layout`; a mask of four dimensions keeps HF from making one."""
    return {"layout": layout, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


def takes_layout(model: nn.Module) -> bool:
    """Whether the model's attention goes through here."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == PACKED


AttentionInterface.register(PACKED, attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
