import pytest
import torch

from rlpref.ops.moments import Moments, merged


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parts_give_the_moments_of_the_whole_for_each_run(dtype):
    values = 3 + 2 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    seen = Moments(*torch.zeros(3, 2, dtype=dtype))
    assert seen.std.tolist() == [0, 0]
    for part in values.split([1, 7, 40, 2], 1):
        seen = merged(seen, part)
    assert seen.count.tolist() == [50, 50]
    torch.testing.assert_close(seen.mean, values.mean(1))
    torch.testing.assert_close(seen.std, values.std(1, correction=0))


def test_a_large_mean_does_not_swallow_the_spread():
    seen = Moments(*torch.zeros(3, 1, dtype=torch.float64))
    for value in (1e8, 1e8 + 1, 1e8 + 2):
        seen = merged(seen, torch.tensor([[value]], dtype=torch.float64))
    assert seen.std.item() == pytest.approx((2 / 3) ** 0.5)
