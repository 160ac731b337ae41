import pytest
import torch

from rlpref.ops.masked import last_masked, masked_mean, masked_whiten


def uneven():
    generator = torch.Generator().manual_seed(0)
    values = 3 + 2 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return values, torch.arange(6) < torch.tensor([[6], [2], [1], [4]])


def padded(values, mask):
    junk = torch.full((len(values), 2), float("nan"), dtype=values.dtype)
    return torch.cat([junk, values, junk], 1), torch.nn.functional.pad(mask, (2, 2))


def test_mean_reads_selected_values_only():
    values, mask = uneven()
    assert masked_mean(values, mask).item() == pytest.approx(values[mask].mean().item())
    expected = torch.stack([row[kept].mean() for row, kept in zip(values, mask)])
    torch.testing.assert_close(masked_mean(values, mask, dim=1), expected)
    torch.testing.assert_close(masked_mean(*padded(values, mask), dim=1), expected)


def test_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool), dim=1).tolist() == [0, 0]


def test_whitened_tokens_have_mean_zero_and_variance_one_whatever_the_padding():
    values, mask = uneven()
    white = masked_whiten(values, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(masked_whiten(*padded(values, mask))[:, 2:-2], white)


def test_whitening_keeps_the_mean_where_it_is_asked_to():
    values, mask = uneven()
    white = masked_whiten(values, mask, shift_mean=False)
    assert white[mask].mean().item() == pytest.approx(values[mask].mean().item())
    assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_one_token_is_left_as_it_is():
    values, mask = torch.tensor([[5.0, 7.0]]), torch.tensor([[True, False]])
    assert masked_whiten(values, mask).tolist() == [[5.0, 0.0]]


def test_last_masked_column():
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert last_masked(mask).tolist() == [2, 0, 3, 0]
