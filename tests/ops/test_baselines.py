import pytest
import torch

from rlpref.ops.baselines import leave_one_out, moving_mean


def test_leave_one_out_by_hand_and_against_a_loop():
    assert leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[4.0, 3.5, 1.5]]
    values = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = leave_one_out(values)
    for own in range(5):
        others = values[..., [i for i in range(5) if i != own]]
        torch.testing.assert_close(found[..., own], others.mean(-1))


def test_no_value_moves_its_own_baseline():
    values = torch.zeros(1, 4)
    changed = values.clone()
    changed[0, 2] = 100.0
    moved = (leave_one_out(changed) - leave_one_out(values))[0]
    assert moved[2] == 0
    assert (moved[[0, 1, 3]] > 0).all()


def test_one_answer_has_no_others():
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(torch.zeros(3, 1))


def test_the_moving_mean_goes_its_share_of_the_way():
    values = torch.tensor([1.0, 5.0])
    assert moving_mean(torch.tensor(1.0), values, 0.25) == 1.5
    assert moving_mean(torch.tensor(1.0), values, 1.0) == 3.0
    mean = torch.tensor(0.0)
    for _ in range(100):
        mean = moving_mean(mean, values, 0.2)
    assert float(mean) == pytest.approx(3.0)
