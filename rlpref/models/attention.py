"""One attention function for every HF model whose layers ask for one by name: rows that share a prefix, or a cache of
their own, bring a layout that knows which token sees which.

`attn_implementation="packed"` is `sdpa` wherever a forward pass brings no layout.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
import transformers
from torch import Tensor, nn

PACKED = "packed"


class Layout(Protocol):
    """Which token of a forward pass sees which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[B, N, heads, d] from query [B, heads, N, d] and key, value [B, kv heads, N, d] of layer number `layer`."""
        ...


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, layout=None, **kwargs):
    """What HF's layers call. ValueError for a layer that looks back over a window: a layout knows of none."""
    if layout is None:
        return transformers.AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("sliding_window") is not None:
        raise ValueError("packed attention knows no sliding window: set model.attn_implementation=sdpa.")
    return layout.attend(module.layer_idx, query, key, value, kwargs["scaling"]), None


def with_layout(layout: Layout) -> dict:
    """Arguments of a forward pass under `layout`; a mask of four dimensions keeps HF from making one."""
    return {"layout": layout, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


@cache
def register() -> None:
    """Makes the name known to HF's models. Not at import: that would load HF's models for runs that have none."""
    transformers.AttentionInterface.register(PACKED, attention)
    transformers.AttentionMaskInterface.register(PACKED, transformers.AttentionMaskInterface()["sdpa"])
