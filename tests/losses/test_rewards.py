import math

import pytest
import torch

from rlpref.losses import bradley_terry


def test_bradley_terry_by_hand():
    value = bradley_terry(torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.5, 0.0, 1.0]))
    assert value.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(2), math.log(1 + math.exp(2.0))])


def test_probabilities_of_both_labels_sum_to_one_and_far_scores_stay_finite():
    chosen, rejected = torch.randn(2, 8, dtype=torch.float64)
    both = (-bradley_terry(chosen, rejected)).exp() + (-bradley_terry(rejected, chosen)).exp()
    torch.testing.assert_close(both, torch.ones_like(both))
    assert bradley_terry(torch.tensor([-4000.0]), torch.tensor([4000.0])).item() == 8000.0


def test_gradcheck():
    chosen, rejected = torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(bradley_terry, (chosen.requires_grad_(), rejected.requires_grad_()))
