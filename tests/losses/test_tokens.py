import math

import pytest
import torch

from rlpref.losses import nll, ppo_clip, reinforce, value_clip


def test_nll_is_the_negative_log_prob():
    assert nll(torch.tensor([-0.5, -2.0])).tolist() == [0.5, 2.0]


def test_ppo_clip_by_hand():
    """Gains are cut beyond the range, losses are not."""
    cases = [  # ratio, advantage, loss at cliprange 0.2
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),
        (0.5, 2.0, -1.0),
        (1.5, -2.0, 3.0),
        (0.5, -2.0, 1.6),
    ]
    ratio, advantage, expected = torch.tensor(cases, dtype=torch.float64).T
    found = ppo_clip(ratio.log() - 3.0, torch.full_like(ratio, -3.0), advantage, 0.2)
    torch.testing.assert_close(found, expected)


def test_value_clip_by_hand():
    """A value that moved beyond the range counts as if it had not, where that is worse."""
    cases = [  # value, old value, return, loss at cliprange_value 0.2
        (1.1, 1.0, 2.0, 0.5 * 0.9**2),
        (1.9, 1.0, 2.0, 0.5 * 0.8**2),
        (0.0, 1.0, 2.0, 0.5 * 2.0**2),
    ]
    value, old, returns, expected = torch.tensor(cases, dtype=torch.float64).T
    torch.testing.assert_close(value_clip(value, old, returns, 0.2), expected)


def test_both_against_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64).unbind()
    policy, value = ppo_clip(a, b, c, 0.3), value_clip(a, b, c, 0.4)
    for i in range(4):
        for t in range(5):
            x, y, z = a[i, t].item(), b[i, t].item(), c[i, t].item()
            ratio = math.exp(x - y)
            assert policy[i, t].item() == pytest.approx(-min(ratio * z, min(max(ratio, 0.7), 1.3) * z))
            near = min(max(x, y - 0.4), y + 0.4)
            assert value[i, t].item() == pytest.approx(0.5 * max((x - z) ** 2, (near - z) ** 2))


@pytest.mark.parametrize("loss", [reinforce, lambda logps, a: ppo_clip(logps, logps.detach(), a, 0.2)])
def test_at_ratio_one_the_gradient_is_the_policy_gradient(loss):
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss(logps, torch.tensor([3.0, -4.0])).sum().backward()
    assert logps.grad.tolist() == [-3.0, 4.0]


def test_beyond_the_range_a_gain_has_no_gradient_and_a_loss_keeps_its_own():
    logps = torch.tensor([0.5, 0.5], requires_grad=True)
    ppo_clip(logps, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2).sum().backward()
    assert logps.grad[0] == 0
    assert logps.grad[1].item() == pytest.approx(math.exp(0.5))


def test_gradients_are_those_of_the_formulas():
    generator = torch.Generator().manual_seed(1)
    a, b, c = torch.randn(3, 6, generator=generator, dtype=torch.float64).unbind()
    for function in (ppo_clip, value_clip):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, b, c, 0.2), a.clone().requires_grad_())
