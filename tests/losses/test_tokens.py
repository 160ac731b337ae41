import pytest
import torch

from rlpref.losses import nll, value_clip


def test_nll_is_the_negative_log_prob():
    assert nll(torch.tensor([-0.5, -2.0])).tolist() == [0.5, 2.0]


def test_value_clip_by_hand():
    """A value that moved beyond the range counts as if it had not, where that is worse."""
    cases = [  # value, old value, return, loss at cliprange_value 0.2
        (1.1, 1.0, 2.0, 0.5 * 0.9**2),
        (1.9, 1.0, 2.0, 0.5 * 0.8**2),
        (0.0, 1.0, 2.0, 0.5 * 2.0**2),
    ]
    value, old, returns, expected = torch.tensor(cases, dtype=torch.float64).T
    torch.testing.assert_close(value_clip(value, old, returns, 0.2), expected)


def test_value_clip_against_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64).unbind()
    value = value_clip(a, b, c, 0.4)
    for i in range(4):
        for t in range(5):
            x, y, z = a[i, t].item(), b[i, t].item(), c[i, t].item()
            near = min(max(x, y - 0.4), y + 0.4)
            assert value[i, t].item() == pytest.approx(0.5 * max((x - z) ** 2, (near - z) ** 2))


def test_the_gradient_of_value_clip_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(1)
    a, b, c = torch.randn(3, 6, generator=generator, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(lambda x: value_clip(x, b, c, 0.2), a.clone().requires_grad_())
