"""Each loss that TRL has too, against the installed TRL; and the comparison itself, which must be able to fail."""

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("trl")

from rlpref.losses import LOSSES, make_loss
from rlpref.verify import trl_preferences, trl_rollouts, trl_stubs
from rlpref.verify.compare import apart, compare
from rlpref.verify.oracle import Oracle
from rlpref.verify.oracles import oracles, without_counterpart
from rlpref.verify.preferences import ALPHA, LEFT_OUT
from rlpref.verify.tokens import as_answers, as_pairs, draw

ROWS = oracles()
DPO_TYPES = {
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
}


def row(name: str, **modifiers) -> Oracle:
    return next(each for each in ROWS if each.name == name and each.modifiers == modifiers)


@pytest.mark.parametrize("oracle", ROWS, ids=[f"{each.ours}-{each.trl}" for each in ROWS])
def test_equal_in_double_precision(oracle):
    difference = compare(oracle, range(3))
    assert difference.tolerance == 1e-12
    assert difference.within, difference


@pytest.mark.parametrize("oracle", ROWS, ids=[f"{each.ours}-{each.trl}" for each in ROWS])
def test_equal_in_single_precision_with_nothing_of_trl_changed(oracle):
    assert compare(oracle, [3], torch.float32).within


def test_every_loss_type_of_dpo_has_a_row():
    kinds = [each.theirs.keywords["loss_type"] for each in ROWS if each.theirs.func is trl_preferences.dpo]
    assert {kind for kind in kinds if isinstance(kind, str)} == DPO_TYPES


def test_every_loss_type_of_grpo_has_a_row():
    kinds = {each.theirs.keywords["loss_type"] for each in ROWS if each.theirs.func is trl_rollouts.grpo}
    assert kinds == {"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"}


def test_every_registered_loss_is_compared_or_listed():
    compared = {each.name for each in ROWS} & LOSSES.keys()
    assert compared | set(without_counterpart()) == LOSSES.keys()
    assert not compared & set(without_counterpart())


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": {"name": "ipo", "tau": 0.1, "normalize": "sum"}},
        {"loss": {"name": "ipo", "tau": 0.1 + 1e-9, "normalize": "mean"}},
        {"factor": -1.0},
    ],
    ids=["another normalisation", "another tau", "another sign"],
)
def test_a_difference_is_seen(wrong):
    difference = compare(replace(row("ipo"), **wrong), range(2))
    assert not difference.within


def test_a_difference_of_the_gradient_alone_is_seen():
    """WPO's weight carries no gradient: with one, the values are the same."""
    oracle = row("dpo", wpo=True)

    def leaky(tokens):
        lp = as_pairs(tokens)
        weight = ((tokens.logps - tokens.log_sum_sq) * tokens.mask).sum(1) / tokens.lengths
        return (make_loss("dpo", beta=0.1)(lp) * weight.view(2, -1).sum(0).exp()).mean()

    difference = compare(replace(oracle, outside=leaky), range(2))
    assert difference.value < 1e-12 < difference.gradient


def test_nan_is_a_difference():
    nothing = replace(row("dpo"), outside=lambda tokens: tokens.logps.sum() * float("nan"))
    assert not compare(nothing, range(2)).within
    one = torch.tensor([1.0, 2.0])
    assert apart(one, one) == 0
    assert apart(one + 0.2, one) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["exo", "orpo", "f_dpo", "sapo"])
def test_trl_computes_these_in_fp32_by_itself(name):
    """Why `in_double` is needed, and that it is asked for nowhere else."""
    oracle = next(each for each in ROWS if each.name == name and each.in_double)
    plain = replace(oracle, in_double=False)
    if name == "f_dpo":
        with pytest.raises(KeyError):
            compare(plain, range(1))
    else:
        assert not compare(plain, range(1)).within
    marked = {each.name for each in ROWS if each.in_double and "divergence_alpha" not in each.modifiers}
    assert marked == {"exo", "orpo", "f_dpo", "sapo"}


def test_casts_are_lifted_only_within():
    before = torch.get_default_dtype(), torch.Tensor.float, trl_stubs.dpo_trainer.torch
    with trl_stubs.in_double():
        assert torch.zeros(1).float().dtype == torch.float64
    assert (torch.get_default_dtype(), torch.Tensor.float, trl_stubs.dpo_trainer.torch) == before
    assert torch.zeros(1, dtype=torch.float64).float().dtype == torch.float32


@pytest.mark.parametrize("name", sorted(LEFT_OUT["divergence"][1]))
def test_trl_ignores_the_divergence_where_a_row_is_left_out(name):
    tokens, theirs = draw(0, torch.float64), row(name).theirs
    assert theirs(tokens, divergence="js_divergence") == theirs(tokens)
    with_link = replace(row(name), modifiers={"divergence": "js"})
    assert not torch.isclose(with_link.value(tokens), row(name).value(tokens))


def test_trl_has_no_gradient_of_a_weighted_hinge():
    tokens = draw(0, torch.float64)
    value = row("hinge").theirs(tokens, weighting=True)
    torch.testing.assert_close(value, replace(row("hinge"), modifiers={"wpo": True}).value(tokens))
    with pytest.raises(RuntimeError, match="inplace"):
        value.backward()


def test_trl_weights_the_likelihood_by_wpo_too():
    oracle = next(each for each in ROWS if each.name == "ipo" and "nll" in each.modifiers)
    weighted = replace(
        oracle, modifiers={**oracle.modifiers, "wpo": True}, theirs=partial(oracle.theirs, weighting=True)
    )
    assert not compare(weighted, range(1)).within


def test_trl_ignores_label_smoothing_of_dpo():
    tokens = draw(0, torch.float64)
    assert row("dpo").theirs(tokens, label_smoothing=0.2) == row("dpo").theirs(tokens)


def test_token_mean_of_trl_is_another_mean_on_whole_batches():
    together = replace(row("dpo_nll"), pair_by_pair=False)
    assert not compare(together, range(1)).within


def test_orpo_at_probability_one_in_single_precision():
    """TRL's odds are infinite there and have no gradient; ours are held just below."""
    tokens = draw(0, torch.float32)
    tokens = replace(tokens, logps=torch.zeros_like(tokens.logps).requires_grad_())
    certain = torch.zeros(2, requires_grad=True)
    theirs, *_ = trl_stubs.trainer(trl_preferences.ORPOTrainer, beta=0.1).odds_ratio_loss(certain, certain - 1)
    assert not torch.autograd.grad(theirs.sum(), certain)[0].isfinite().all()
    ours = row("orpo").value(tokens)
    assert ours.isfinite()
    assert torch.autograd.grad(ours, tokens.logps)[0].isfinite().all()


class TestTokens:
    def test_padding_is_zero_and_lengths_vary(self):
        for seed in range(4):
            tokens = draw(seed, torch.float64)
            assert not tokens.logps[~tokens.mask].any()
            assert tokens.lengths.min() == 1
            assert tokens.lengths.max() == tokens.mask.shape[1]
            chosen, rejected = tokens.lengths.chunk(2)
            assert (chosen != rejected).sum() > len(chosen) / 2
            assert (tokens.logps[tokens.mask] < 0).all()

    def test_both_signs_of_the_kl_and_both_labels(self):
        kls = [as_answers(draw(seed, torch.float64)).mismatched.mean() for seed in range(4)]
        assert [float(kl) > 0 for kl in kls] == [True, False, True, False]
        assert set(draw(0, torch.float64).label.tolist()) == {True, False}

    def test_hinges_bend(self):
        lps = [as_pairs(draw(seed, torch.float64)) for seed in range(4)]
        margins = torch.cat([lp.chosen - lp.ref_chosen - lp.rejected + lp.ref_rejected for lp in lps])
        assert (0.2 * margins > 1).any()
        assert (0.2 * margins < 1).any()

    def test_ratios_are_clipped_on_both_sides_at_both_signs(self):
        drawn = [draw(seed, torch.float64) for seed in range(4)]
        ratios = torch.cat([(tokens.logps - tokens.old_logps).exp()[tokens.mask] for tokens in drawn])
        up = torch.cat([(tokens.advantages[:, None] > 0).expand_as(tokens.mask)[tokens.mask] for tokens in drawn])
        for sign in (up, ~up):
            assert (ratios[sign] > 1.3).any()
            assert (ratios[sign] < 0.8).any()
            assert ((ratios[sign] > 0.8) & (ratios[sign] < 1.2)).any()

    def test_pairs_keep_their_rows(self):
        tokens = draw(0, torch.float64)
        whole, alone = as_pairs(tokens, 0.5), [as_pairs(pair, 0.5) for pair in tokens.pairs]
        for name in ("chosen", "rejected", "ref_chosen", "chosen_len", "rejected_confidence"):
            torch.testing.assert_close(torch.cat([getattr(lp, name) for lp in alone]), getattr(whole, name))


def test_writing_of_a_row():
    oracle = row("dpo", divergence="alpha", divergence_alpha=ALPHA)
    assert oracle.ours == "dpo(beta=0.1) + divergence alpha + divergence_alpha 0.3"
    assert row("dpo", wpo=True).ours == "dpo(beta=0.1) + wpo"
    assert row("dpo_nll").trl == "dpo sigmoid+sft weights=1.0+0.7, beta=0.1"
    assert isinstance(oracle.theirs, partial)
