import pytest
import torch

from rlpref.catalogue.shapes import curves, figure
from rlpref.losses import LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_finite_shape(name):
    x, value, weights = curves(LOSSES[name])
    assert x.shape == value.shape == weights[0].shape
    assert value.isfinite().all()
    assert all(weight.isfinite().all() for weight in weights)


def test_the_weight_is_the_slope_of_the_curve():
    """Both answers move by half of the margin, and for DPO both weights are beta sigmoid(-beta margin)."""
    x, value, (up, down) = curves(LOSSES["dpo"])
    torch.testing.assert_close(up, 0.5 * torch.sigmoid(-0.5 * x))
    torch.testing.assert_close(up, down)
    slope = (value[2:] - value[:-2]) / (x[2:] - x[:-2])
    torch.testing.assert_close(-slope, (up + down)[1:-1] / 2, rtol=1e-3, atol=1e-3)


def test_a_figure_has_a_panel_for_each_loss():
    drawn = figure([LOSSES["dpo"], LOSSES["kto"]])
    assert [axes.get_title() for axes in drawn.axes if axes.get_title()] == ["dpo", "kto"]
