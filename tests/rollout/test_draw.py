import pytest
import torch

from rlpref.rollout.draw import BLOCK, draw, invert


@pytest.mark.parametrize("vocab", [2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_inverts_the_distribution_function(vocab):
    """The token at u is the first whose cumulative probability, in float64, passes u."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, vocab, generator=generator)
    noise = torch.rand(200, generator=generator)
    token, logps = draw(logits, noise, 1.3)
    exact = (logits.double() / 1.3).log_softmax(-1)
    ends = exact.exp().cumsum(-1)
    top = ends.gather(1, token[:, None])[:, 0]
    bottom = top - exact.gather(1, token[:, None])[:, 0].exp()
    assert (bottom - 1e-6 <= noise).all()
    assert (noise <= top + 1e-6).all()
    torch.testing.assert_close(logps.double(), exact.gather(1, token[:, None])[:, 0], atol=1e-5, rtol=0)


def test_never_a_token_of_probability_zero():
    """At both ends of [0, 1), with impossible tokens at the ends of the vocabulary and of its blocks."""
    vocab = 4 * BLOCK
    weights = torch.zeros(4, vocab)
    weights[0, 5] = weights[1, BLOCK - 1] = weights[2, BLOCK] = weights[3, 3 * BLOCK - 1] = 1.0
    weights[3, BLOCK + 2] = 1e-30
    top = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    for noise in (torch.zeros(4), top.expand(4), torch.full((4,), 0.5)):
        token = invert(weights, noise)
        assert (weights.gather(1, token[:, None]) > 0).all()


def test_frequencies_are_the_probabilities():
    logits = torch.randn(300, generator=torch.Generator().manual_seed(2))
    n = 60_000
    noise = (torch.arange(n) + 0.5) / n  # evenly spread: frequencies are exact to 1/n
    token, _ = draw(logits.expand(n, -1), noise, 1.0)
    found = torch.bincount(token, minlength=300) / n
    torch.testing.assert_close(found, logits.softmax(-1), atol=2 / n, rtol=0)
