"""Attention of spans of one packed row: each span's queries see keys of their own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention


class Span(NamedTuple):
    """Queries that stand together, and the keys they may see."""

    queries: slice
    keys: list[slice]
    sees: Tensor  # [queries, keys] bool


def span_attention(query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scaling: float) -> Tensor:
    """[1, N, heads, d] from query [1, heads, N, d] and key, value [1, kv heads, N, d]. The spans' queries one after the
    other are the N tokens.

    On a CPU the backward pass is our own: that of torch takes three times as long on spans of a few hundred tokens.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled():
        return _SpanAttention.apply(query, key, value, spans, scaling).transpose(1, 2)
    return _forward(query, key, value, spans, scaling).transpose(1, 2)


def _forward(query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scaling: float) -> Tensor:
    gqa = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(
            query[:, :, span.queries],
            _gathered(key, span.keys),
            _gathered(value, span.keys),
            attn_mask=span.sees,
            scale=scaling,
            enable_gqa=gqa,
        )
        for span in spans
    ]
    return torch.cat(outputs, 2)


class _SpanAttention(torch.autograd.Function):
    """The scores are made again in the backward pass. Query heads that share a key head are rows of one product."""

    @staticmethod
    def forward(ctx, query, key, value, spans, scaling):
        ctx.save_for_backward(query, key, value)
        ctx.spans, ctx.scaling = spans, scaling
        return _forward(query, key, value, spans, scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_output):
        query, key, value = ctx.saved_tensors
        by_query, by_key, by_value = (torch.zeros_like(states) for states in (query, key, value))
        shared = key.shape[1]
        for span in ctx.spans:
            queries, upstream = (_stacked(states[0, :, span.queries], shared) for states in (query, by_output))
            keys, values = (_gathered(states, span.keys)[0] for states in (key, value))
            hidden = torch.zeros(span.sees.shape, dtype=query.dtype).masked_fill_(~span.sees, -torch.inf)
            hidden = hidden.repeat(query.shape[1] // shared, 1)
            scores = torch.baddbmm(hidden, queries, keys.transpose(1, 2), alpha=ctx.scaling)
            p = scores.softmax(-1)
            by_p = torch.bmm(upstream, values.transpose(1, 2))
            by_scores = torch._softmax_backward_data(by_p, p, -1, p.dtype)
            _add(by_value, span.keys, torch.bmm(p.transpose(1, 2), upstream))
            _add(by_key, span.keys, torch.bmm(by_scores.transpose(1, 2), queries).mul_(ctx.scaling))
            by_queries = torch.bmm(by_scores, keys).mul_(ctx.scaling)
            by_query[0, :, span.queries] = by_queries.view(query.shape[1], -1, query.shape[3])
        return by_query, by_key, by_value, None, None


def _stacked(states: Tensor, shared: int) -> Tensor:
    """[kv heads, heads / kv heads * n, d] of [heads, n, d]."""
    return states.reshape(shared, -1, states.shape[-1])


def _gathered(states: Tensor, places: list[slice]) -> Tensor:
    """[1, heads, n, d] of [1, heads, N, d] the tokens at these places, in a row."""
    parts = [states[:, :, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _add(to: Tensor, places: list[slice], gradient: Tensor) -> None:
    """Adds gradients [heads, n, d] to the tokens that `_gathered` took."""
    lengths = [place.stop - place.start for place in places]
    for place, part in zip(places, gradient.split(lengths, 1)):
        to[0, :, place] += part
