"""Attention of spans against the definition."""

import pytest
import torch

from rlpref.ops.attention import Span, span_attention


def spans():
    """A prompt of 3 with an answer of 2 behind it, then another of 4 that sees the prompt; and a row of its own."""
    first, second, third = slice(0, 5), slice(5, 9), slice(9, 12)
    return [
        Span(first, None, torch.ones(5, 5, dtype=torch.bool).tril()),
        Span(second, slice(0, 3), torch.ones(4, 7, dtype=torch.bool).tril(3)),
        Span(third, None, torch.ones(3, 3, dtype=torch.bool).tril()),
    ]


def states(dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    return [(scale * torch.randn(1, heads, 12, 8)).to(dtype).requires_grad_() for heads in (6, 2, 2)]


def by_definition(query, key, value, scaling):
    sees = torch.zeros(12, 12, dtype=torch.bool)
    for span in spans():
        at = span.keys(torch.arange(12)[:, None])[:, 0]
        for row, seen in zip(range(12)[span.own], span.sees):
            sees[row, at[seen]] = True
    key, value = (each.repeat_interleave(3, 1) for each in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~sees, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def test_every_token_sees_what_its_span_says():
    torch.testing.assert_close(
        span_attention(*states(), spans(), 0.3), by_definition(*states(), 0.3), atol=1e-12, rtol=0
    )
    with torch.no_grad():
        torch.testing.assert_close(
            span_attention(*states(), spans(), 0.3), by_definition(*states(), 0.3), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_those_of_the_definition(scale):
    ours, plain = states(scale=scale), states(scale=scale)
    upstream = torch.randn(1, 12, 6, 8, dtype=torch.float64)
    span_attention(*ours, spans(), 0.3).backward(upstream)
    by_definition(*plain, 0.3).backward(upstream)
    for one, other in zip(ours, plain):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-11, rtol=1e-10)


def test_the_error_of_bfloat16_is_that_of_its_roundings():
    exact, rounded = states(), states(torch.bfloat16)
    upstream = torch.randn(1, 12, 6, 8)
    span_attention(*exact, spans(), 0.3).backward(upstream.double())
    span_attention(*rounded, spans(), 0.3).backward(upstream.bfloat16())
    for one, other in zip(exact, rounded):
        assert torch.cosine_similarity(one.grad.flatten(), other.grad.double().flatten(), 0) > 0.9999
