"""Attention of spans of one packed row: each span's queries see keys of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention


@dataclass
class Span:
    """Tokens that stand together, and what their queries may see: tokens of a span before, then their own."""

    own: slice
    before: slice | None
    sees: Tensor  # [queries, keys] bool
    biases: dict[tuple, Tensor] = field(default_factory=dict)

    def bias(self, dtype: torch.dtype, times: int = 1) -> Tensor:
        """[times * queries, keys] what is added to the scores: 0, or -inf where nothing is seen. Kept: all layers of a
        model ask for the same."""
        if (dtype, times) not in self.biases:
            bias = torch.zeros(self.sees.shape, dtype=dtype, device=self.sees.device).masked_fill_(
                ~self.sees, -torch.inf
            )
            self.biases[dtype, times] = bias.repeat(times, 1)
        return self.biases[dtype, times]

    def keys(self, states: Tensor) -> Tensor:
        """[.., keys, d] of [.., N, d]."""
        own = states[..., self.own, :]
        return own if self.before is None else torch.cat([states[..., self.before, :], own], -2)

    def add_keys_(self, to: Tensor, gradient: Tensor) -> None:
        """Gradients [.., keys, d] into [.., N, d], where those of the span itself are not written yet."""
        width = self.own.stop - self.own.start
        to[..., self.own, :] = gradient[..., -width:, :]
        if self.before is not None:
            to[..., self.before, :] += gradient[..., :-width, :]


def span_attention(query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scaling: float) -> Tensor:
    """[1, N, heads, d] from query [1, heads, N, d] and key, value [1, kv heads, N, d]. The N tokens are
    the spans one after the other.

    On a CPU the backward pass is our own: that of torch takes three times as long on spans of a few hundred tokens.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled():
        return _SpanAttention.apply(query, key, value, spans, scaling).transpose(1, 2)
    return _forward(query, key, value, spans, scaling).transpose(1, 2)


def _forward(query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scaling: float) -> Tensor:
    gqa = query.shape[1] != key.shape[1]
    if gqa and query.is_cuda:  # under a mask only the kernel that holds all scores knows groups
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
        gqa = False
    outputs = [
        scaled_dot_product_attention(
            query[:, :, span.own],
            span.keys(key),
            span.keys(value),
            attn_mask=span.bias(query.dtype),
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
        query, key, value = (states[0] for states in ctx.saved_tensors)
        by_query, by_key, by_value = (torch.empty_like(states) for states in (query, key, value))
        shared, times = len(key), len(query) // len(key)
        for span in ctx.spans:
            queries, upstream = (s[:, span.own].reshape(shared, -1, s.shape[-1]) for s in (query, by_output[0]))
            keys, values = span.keys(key), span.keys(value)
            bias = span.bias(query.dtype, times)
            p = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=ctx.scaling).softmax(-1)
            by_p = torch.bmm(upstream, values.transpose(1, 2))
            by_scores = torch._softmax_backward_data(by_p, p, -1, p.dtype)
            span.add_keys_(by_value, torch.bmm(p.transpose(1, 2), upstream))
            span.add_keys_(by_key, torch.bmm(by_scores.transpose(1, 2), queries).mul_(ctx.scaling))
            by_queries = torch.bmm(by_scores, keys).mul_(ctx.scaling)
            by_query[:, span.own] = by_queries.view(len(query), -1, query.shape[-1])
        return by_query[None], by_key[None], by_value[None], None, None
