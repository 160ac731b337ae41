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

from rlpref.binding import ConfigError
from rlpref.ops import scores
from rlpref.ops.logps import completion_logits, token_logps
from rlpref.ops.packing import PACKED
from rlpref.types import Sequences


class Layout(Protocol):
    """Which token of a forward pass sees which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[B, N, heads, d] from query [B, heads, N, d] and key, value [B, kv heads, N, d] of layer number `layer`."""
        ...


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, layout=None, **kwargs):
    """What HF's layers call. ValueError for a layer that wants what neither a layout nor `sdpa` has."""
    for name in ("s_aux", "softcap"):  # attention sinks, capped scores
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention knows no {name}: set model.attn_implementation=eager.")
    if layout is None:
        return transformers.AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("sliding_window") is not None:
        raise ValueError("packed attention knows no sliding window: set model.attn_implementation=sdpa.")
    return _attend(layout, module, query, key, value, kwargs["scaling"]), None


def _attend(layout: Layout, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return layout.attend(module.layer_idx, query, key, value, scaling)


@cache
def stay_out_of_graphs() -> None:
    """For models whose layers are compiled: shapes differ from span to span, and the number from layer to layer. Not at
    import: it loads the compiler."""
    globals()["_attend"] = torch.compiler.disable(_attend)


@torch.no_grad()
def check_packed(model: nn.Module) -> None:
    """ConfigError unless the model reads two answers to one prompt as it reads them padded: layers that look through a
    window or keep a state, logits that are no linear map of the last hidden states, and whatever else packing cannot
    know of."""
    ids = torch.arange(1, 13, device=next(model.parameters()).device).view(2, 6) % model.config.vocab_size
    ids[:, :3] = ids[0, :3]
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 5:] = False
    sequences = Sequences(ids, real, real & (torch.arange(6, device=ids.device) > 2))
    mend = f"cannot be read with attn_implementation={PACKED}: set model.attn_implementation=sdpa."
    out = model.get_output_embeddings()
    if not isinstance(out, nn.Linear):
        raise ConfigError(f"{type(model).__name__} {mend} Its head is a {type(out).__name__}, no plain linear map.")
    try:
        packed, _ = token_logps(model, sequences)
    except Exception as error:
        raise ConfigError(f"{type(model).__name__} {mend} {type(error).__name__}: {error}") from error
    logits, first = completion_logits(model, sequences)
    plain = scores.score(logits, sequences.ids[:, first:]).logps * sequences.mask[:, first:]
    furthest = float((packed[:, first:] - plain).abs().max())
    if not furthest < (0.5 if next(model.parameters()).dtype == torch.bfloat16 else 1e-3):
        raise ConfigError(f"{type(model).__name__} {mend} Log-probs would be off by {furthest:.2g} nats.")


@cache
def register() -> None:
    """Makes the name known to HF's models. Not at import: that would load HF's models for runs that have none."""
    transformers.AttentionInterface.register(PACKED, attention)
    transformers.AttentionMaskInterface.register(PACKED, transformers.AttentionMaskInterface()["sdpa"])
