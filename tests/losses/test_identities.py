"""Identities between losses, on random pairs: what one of them is, others must agree with."""

import math

import every
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlpref.losses import make_loss
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps
from rlpref.losses.modifiers import Modifiers, make_objective

NATS = hnp.arrays("float64", 4, elements=st.floats(-20, 20))
COUNTS = hnp.arrays("int64", 4, elements=st.integers(1, 60))
SCORES = hnp.arrays("float64", 4, elements=st.floats(-5, 5))
BETAS = st.floats(0.05, 3)
RATES = st.floats(0.01, 0.45)
LOGIT = [math.log((1 - e) / e) for e in (0.1, 0.3)]


@st.composite
def pairs(draw, unit_lengths=False):
    """Pairs of any log-ratios, lengths and scores."""
    chosen, rejected, ref_chosen, ref_rejected = (torch.from_numpy(draw(NATS)) for _ in range(4))
    lengths = [torch.ones(4) if unit_lengths else torch.from_numpy(draw(COUNTS)) for _ in range(2)]
    scores = [torch.from_numpy(draw(SCORES)) for _ in range(2)]
    return PairLogps(chosen - 40, rejected - 40, ref_chosen - 40, ref_rejected - 40, *lengths, *scores)


def same(one, other, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def value(name, lp, **hyperparameters):
    return make_loss(name, **hyperparameters)(lp)


def gradients(name, lp, **hyperparameters):
    sides = lp.chosen.clone().requires_grad_(), lp.rejected.clone().requires_grad_()
    rows = every.moved(every.moved(lp, "chosen", sides[0]), "rejected", sides[1])
    return torch.stack(torch.autograd.grad(value(name, rows, **hyperparameters).sum(), sides))


@given(pairs(), BETAS, RATES)
def test_robust_is_unbiased_under_flips(lp, beta, eps):
    clean = (1 - eps) * value("robust", lp, beta=beta, label_smoothing=eps)
    same(clean + eps * value("robust", lp.swapped(), beta=beta, label_smoothing=eps), value("dpo", lp, beta=beta))


@given(pairs(), BETAS)
def test_smoothing_of_one_half_prefers_nothing(lp, beta):
    even = {"beta": beta, "label_smoothing": 0.5}
    same(value("dpo", lp, **even), value("dpo", lp.swapped(), **even))


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
def test_the_margin_that_conservative_dpo_likes_best(eps):
    """beta * margin = logit(1 - eps)."""
    best = math.log((1 - eps) / eps) / 0.7
    margins = torch.tensor([best, best - 1e-3, best + 1e-3], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    found = value("dpo", PairLogps(margins, zero, zero, zero, zero + 1, zero + 1), beta=0.7, label_smoothing=eps)
    assert found[0] < found[1:].min()


@given(pairs(unit_lengths=True), BETAS)
def test_ipo_per_token_is_ipo_at_unit_lengths(lp, tau):
    same(value("ipo", lp, tau=tau, normalize="mean"), value("ipo", lp, tau=tau, normalize="sum"))


@given(pairs(), BETAS)
def test_rebel_with_a_constant_gap_is_ipo(lp, tau):
    gap = torch.full_like(lp.chosen, 1 / (2 * tau))
    lp = every.moved(every.moved(lp, "chosen_score", gap), "rejected_score", torch.zeros_like(gap))
    same(value("rebel", lp, beta=1.0), value("ipo", lp, tau=tau))


@given(pairs(), BETAS)
def test_alpha_divergence_between_reverse_and_forward_kl(lp, beta):
    same(
        value("f_dpo", lp, beta=beta, divergence="alpha", alpha=1.0),
        value("f_dpo", lp, beta=beta, divergence="forward_kl"),
    )
    near = every.batch(PairLogps)
    nearly = value("f_dpo", near, beta=beta, divergence="alpha", alpha=1e-6)
    same(nearly, value("dpo", near, beta=beta), rtol=1e-4, atol=1e-4)


@given(pairs(), BETAS)
def test_sppo_with_hard_labels_is_half_of_the_sum_of_squares(lp, beta):
    chosen, rejected = lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected
    same(2 * value("sppo", lp, beta=beta), (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2)
    certain = every.moved(lp, "soft_label", torch.ones_like(lp.chosen))
    same(value("sppo", certain, beta=beta, labels="soft"), value("sppo", lp, beta=beta))


@given(pairs(), BETAS)
def test_bco_without_a_shift_classifies_each_answer(lp, beta):
    answers = AnswerLogps(
        torch.cat([lp.chosen, lp.rejected]),
        torch.cat([lp.ref_chosen, lp.ref_rejected]),
        torch.cat([lp.chosen_len, lp.rejected_len]),
        torch.arange(8) < 4,
    )
    ratio = beta * (answers.logps - answers.ref_logps)
    by_hand = torch.nn.functional.softplus(torch.where(answers.label, -ratio, ratio))
    same(by_hand[:4] + by_hand[4:], value("bco_pair", lp, beta=beta))
    shift = (ratio[:4].mean() + ratio[4:].mean()) / 2
    same(value("bco", answers, beta=beta).view(2, 4).sum(0), value("bco_pair", lp, beta=beta, delta=float(shift)))
    same(value("apo_zero_unpaired", answers, beta=beta).view(2, 4).sum(0), value("apo_zero", lp, beta=beta))


@given(pairs(), BETAS, RATES)
def test_soft_dpo_with_the_odds_of_flips_is_conservative_dpo(lp, beta, eps):
    gap = torch.full_like(lp.chosen, math.log((1 - eps) / eps))
    lp = every.moved(every.moved(lp, "chosen_score", gap), "rejected_score", torch.zeros_like(gap))
    same(value("soft_dpo", lp, beta=beta), value("dpo", lp, beta=beta, label_smoothing=eps))


@given(pairs(), BETAS)
def test_backward_kl_of_rpo_has_the_gradient_of_soft_dpo(lp, beta):
    same(gradients("rpo_bwd_kl", lp, beta=beta), gradients("soft_dpo", lp, beta=beta))


@given(pairs(), BETAS)
def test_squared_rpo_is_rebel(lp, beta):
    same(value("rpo_sq", lp, beta=beta), value("rebel", lp, beta=beta))


@given(pairs(), BETAS)
def test_what_becomes_dpo_when_its_own_part_is_switched_off(lp, beta):
    plain = value("dpo", lp, beta=beta)
    nothing = torch.full_like(lp.chosen, 0.7)
    lp = every.moved(every.moved(lp, "chosen_kl", nothing), "rejected_kl", nothing)
    same(value("r_dpo", lp, beta=beta, alpha=0.0), plain)
    same(value("dpop", lp, beta=beta, lam=0.0), plain)
    same(value("tdpo1", lp, beta=beta), plain)
    same(value("tdpo2", lp, beta=beta), plain)
    same(value("dpo_nll", lp, beta=beta, alpha=0.0), plain)
    same(value("dpo_shift", lp, beta=beta, lam=1.0), plain)
    same(value("robust", lp, beta=beta, label_smoothing=0.0), plain)
    same(value("odpo", lp, beta=beta, alpha=0.0), plain)
    same(value("beta_dpo", lp, beta=beta, a=0.0), plain)
    same(value("gpo", lp, beta=beta, f="logistic"), plain)


@given(pairs(unit_lengths=True), BETAS)
def test_length_normalised_dpo_is_dpo_at_unit_lengths(lp, beta):
    same(value("dpo_norm", lp, beta=beta), value("dpo", lp, beta=beta))


@given(pairs(), BETAS)
def test_members_of_gpo(lp, beta):
    same(value("gpo", lp, beta=beta, f="hinge"), value("hinge", lp, beta=beta))
    same(value("gpo", lp, beta=beta, f="square"), beta**2 * value("ipo", lp, tau=beta / 2))


@given(pairs(), st.floats(0.5, 3), st.floats(0, 2))
def test_alphapo_goes_to_simpo_and_simpo_to_dpo_without_a_reference(lp, beta, gamma):
    same(value("alphapo", lp, beta=beta, gamma=gamma, alpha=0.0), value("simpo", lp, beta=beta, gamma=gamma))
    nearly = value("alphapo", lp, beta=beta, gamma=gamma, alpha=1e-7)
    same(nearly, value("simpo", lp, beta=beta, gamma=gamma), rtol=1e-3, atol=1e-3)
    zero, one = torch.zeros_like(lp.chosen), torch.ones_like(lp.chosen)
    free = PairLogps(lp.chosen, lp.rejected, zero, zero, one, one)
    same(value("simpo", free, beta=beta, gamma=0.0), value("dpo", free, beta=beta))
    same(value("cpo", free, beta=beta, alpha=0.0), value("dpo", free, beta=beta))


@given(pairs(), BETAS)
def test_lists_of_two_are_pairs(lp, beta):
    columns = [("chosen", "rejected"), ("ref_chosen", "ref_rejected"), ("chosen_len", "rejected_len")]
    stacked = [torch.stack([getattr(lp, name) for name in names], 1) for names in columns]
    scores = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    lists = ListLogps(*stacked, scores, torch.ones(4, 2, dtype=torch.bool))
    same(value("plackett_luce", lists, beta=beta), value("dpo", lp, beta=beta))
    same(value("s_dpo", lists, beta=beta), value("dpo", lp, beta=beta))
    same(value("infonca", lists, beta=beta, temperature=1e-3), value("dpo", lp, beta=beta))
    same(value("nca_k", lists, beta=beta, temperature=1e-3), value("nca", lp, beta=beta))


def test_answers_that_are_not_there_change_nothing():
    rows = every.batch(ListLogps)
    wide = {
        name: torch.cat([column, torch.full_like(column[:, :1], column.dtype != torch.bool and 7)], 1)
        for name, column in rows.items()
        if column is not None
    }
    for name, hyperparameters in every.cases(ListLogps):
        same(value(name, ListLogps(**wide), **hyperparameters), value(name, rows, **hyperparameters))


def test_z_of_kto_is_the_mean_log_ratio_of_mismatched_answers_held_at_zero():
    rows = every.batch(AnswerLogps, rows=4)
    for mismatched, z in (([1.0, 2.0, -1.0, 4.0], 1.5), ([-1.0, -2.0, 0.0, 0.0], 0.0)):
        rows = every.moved(rows, "mismatched", torch.tensor(mismatched, dtype=torch.float64))
        h = rows.logps - rows.ref_logps
        by_hand = torch.where(
            rows.label, 2 * (1 - torch.sigmoid(0.3 * (h - z))), 0.5 * (1 - torch.sigmoid(0.3 * (z - h)))
        )
        same(value("kto", rows, beta=0.3, desirable_weight=2.0, undesirable_weight=0.5), by_hand)


@given(pairs(), BETAS)
def test_losses_that_are_another_loss_under_a_modifier(lp, beta):
    def modified(name, modifiers, **hyperparameters):
        return make_objective({"name": name} | hyperparameters, (PairLogps,), modifiers)(lp)

    same(modified("dpo", Modifiers(length_normalize=True), beta=beta), value("dpo_norm", lp, beta=beta))
    same(modified("ipo", Modifiers(length_normalize=True), tau=beta), value("ipo", lp, tau=beta, normalize="mean"))
    same(
        modified("dpo", Modifiers(divergence="forward_kl"), beta=beta),
        value("f_dpo", lp, beta=beta, divergence="forward_kl"),
    )
    labels = torch.sigmoid(lp.chosen_score - lp.rejected_score)
    lp = every.moved(lp, "soft_label", labels)
    same(modified("dpo", Modifiers(soft_labels=True), beta=beta), value("soft_dpo", lp, beta=beta))
