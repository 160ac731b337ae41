"""rlpref.evaluation.reward_model: calibration, length bias and agreement against definitions and known truths."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from rlpref.evaluation.reward_model import (
    BINS,
    expected_calibration_error,
    gold_agreement,
    length_bias,
    pair_quality,
    reliability,
    spearman,
)


def calibrated(n=200_000, stretch=1.0, seed=0):
    """Margins of a model whose labels are Bradley-Terry in margin / stretch: calibrated at 1, too sure above it."""
    generator = torch.Generator().manual_seed(seed)
    margins = 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    wins = torch.rand(n, generator=generator, dtype=torch.float64) < margins.sigmoid()
    return stretch * torch.where(wins, margins, -margins)


def test_a_calibrated_model_has_no_calibration_error_and_the_entropy_as_loss():
    margins = calibrated()
    table = reliability(margins)
    assert len(table) == BINS
    assert sum(row["pairs"] for row in table) == len(margins)
    for row in table:
        assert row["accuracy"] == pytest.approx(row["confidence"], abs=4 * 0.5 / row["pairs"] ** 0.5)
        assert 0.5 + row["bin"] / 20 <= row["confidence"] <= 0.55 + row["bin"] / 20
    assert expected_calibration_error(table) < 0.01
    found, p = pair_quality(margins), margins.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()
    assert found["nll"] == pytest.approx(entropy, abs=4 * found["nll_se"])
    assert found["brier"] == pytest.approx((p * (1 - p)).mean().item(), abs=4 * found["brier_se"])
    assert found["accuracy"] == pytest.approx(torch.maximum(p, 1 - p).mean().item(), abs=4 * found["accuracy_se"])


def test_a_model_that_is_too_sure_is_charged_the_difference():
    """Its accuracy is that of the calibrated one, its confidence higher: the error is how much."""
    margins = calibrated(stretch=3.0)
    expected = (margins.abs().sigmoid() - (margins.abs() / 3).sigmoid()).mean().item()
    assert expected > 0.08
    assert expected_calibration_error(reliability(margins)) == pytest.approx(expected, abs=0.01)


def test_the_table_by_hand():
    sure, unsure = math.log(0.96 / 0.04), math.log(0.53 / 0.47)
    table = reliability(torch.tensor([sure, sure, -sure, unsure, 0.0]))
    assert [(row["bin"], row["pairs"]) for row in table] == [(0, 2), (9, 3)]
    assert [row["accuracy"] for row in table] == pytest.approx([0.75, 2 / 3])
    assert [row["confidence"] for row in table] == pytest.approx([0.515, 0.96], abs=1e-6)
    expected = (2 * (0.75 - 0.515) + 3 * (0.96 - 2 / 3)) / 5
    assert expected_calibration_error(table) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(reliability(torch.zeros(7))) == 0  # 1/2 of what it is not sure of


@pytest.mark.parametrize("n", [5, 40])
def test_rank_correlations_are_scipys_with_ties(n):
    generator = torch.Generator().manual_seed(n)
    one, other = (torch.randint(0, 6, (3, n), generator=generator) for _ in range(2))
    for found, x, y in zip(spearman(one, other), one, other):
        assert found.item() == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_length_bias_of_a_model_that_scores_length():
    chosen, rejected = torch.tensor([5, 2, 9, 4, 3]), torch.tensor([3, 8, 1, 4, 7])
    found = length_bias(chosen.float(), rejected.float(), chosen, rejected)
    assert found["length_corr"] == pytest.approx(1)
    assert found["prefers_longer"] == 1
    assert found["longer_wins"] == 0.5  # of the four pairs of unequal lengths
    found = length_bias(-chosen.float(), -rejected.float(), chosen, rejected)
    assert (found["length_corr"], found["prefers_longer"], found["longer_wins"]) == (pytest.approx(-1), 0, 0.5)
    assert length_bias(chosen.float(), rejected.float(), chosen * 0 + 3, chosen * 0 + 3) == {}


def test_agreement_is_within_prompts():
    """A constant of its own for each prompt is none of a reward model's business."""
    gold = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert gold_agreement(gold.exp() - torch.tensor([[100.0], [0.0], [50.0]]), gold)["gold_corr"] == pytest.approx(1)
    mixed = gold_agreement(torch.stack([gold[0], -gold[1], gold[2]]), gold)
    assert mixed["gold_corr"] == pytest.approx(0)
    assert mixed["gold_corr_se"] == pytest.approx(1)
    assert gold_agreement(torch.ones(2, 3), gold[:2]) == {}
