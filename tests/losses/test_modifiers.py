"""Modifiers over every pair loss: each combination either changes the loss as it should or is refused by name."""

import itertools

import every
import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.losses import LOSSES
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import APART, Modifiers, make_modifiers, make_objective, refusals
from rlpref.losses.registry import make_loss

ON = {
    "length_normalize": {"length_normalize": True},
    "divergence": {"divergence": "js"},
    "margin": {"margin": 0.7},
    "score_margin": {"score_margin": 0.3},
    "soft_labels": {"soft_labels": True},
    "wpo": {"wpo": True},
    "ld_alpha": {"ld_alpha": 0.5},
    "nll": {"nll": {"coef": 0.2, "over": "chosen", "reduce": "token"}},
}
AT_TOKENS = ("ld_alpha",)  # works on the log-probs of tokens, before a loss sees their sums
PAIR_LOSSES = every.cases(PairLogps)
GRID = [(name, settings, modifier) for name, settings in PAIR_LOSSES for modifier in ON]


def objective(name, settings, **modifiers):
    return make_objective({"name": name} | settings, (PairLogps,), make_modifiers(modifiers))


def allowed(name, settings, modifier):
    return modifier not in refusals(LOSSES[name], make_loss(name, **settings))


@pytest.mark.parametrize(("name", "settings", "modifier"), GRID, ids=every.label)
def test_a_modifier_changes_the_loss_or_is_refused_by_name(name, settings, modifier):
    if not allowed(name, settings, modifier):
        with pytest.raises(ConfigError, match=f"modifier '{modifier}' makes no sense with loss '{name}', which "):
            objective(name, settings, **ON[modifier])
        return
    plain, modified = objective(name, settings), objective(name, settings, **ON[modifier])
    rows = every.batch(PairLogps)
    assert plain.reads <= modified.reads
    if modifier not in AT_TOKENS:
        assert not torch.allclose(plain(rows), modified(rows))
    leaf = rows.chosen.clone().requires_grad_()
    gradient = torch.autograd.grad(modified(every.moved(rows, "chosen", leaf)).sum(), leaf)[0]
    torch.testing.assert_close(gradient, every.numerical_gradient(modified, rows, "chosen"), rtol=1e-6, atol=1e-7)


def test_the_table_has_both_answers_for_every_modifier():
    for modifier in ON:
        answers = {allowed(*case[:2], modifier) for case in GRID if case[2] == modifier}
        assert answers == {True, False}, modifier


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ON, 2)))
def test_two_modifiers_of_dpo_go_together_or_are_refused_by_name(one, other):
    if any({one, other} == set(pair[:2]) for pair in APART):
        with pytest.raises(ConfigError, match=f"'{one}' and '{other}'|'{other}' and '{one}'"):
            objective("dpo", {"beta": 0.3}, **ON[one], **ON[other])
    else:
        both, first = (objective("dpo", {"beta": 0.3}, **on) for on in (ON[one] | ON[other], ON[one]))
        rows = every.batch(PairLogps)
        assert both(rows).isfinite().all()
        assert other in AT_TOKENS or not torch.allclose(both(rows), first(rows))


def test_off_is_the_loss_itself():
    rows = every.batch(PairLogps)
    for name, settings in PAIR_LOSSES:
        assert make_modifiers({}).used == []
        torch.testing.assert_close(objective(name, settings)(rows), make_loss(name, **settings)(rows), rtol=0, atol=0)


def test_a_margin_is_taken_off_the_margin():
    rows = every.batch(PairLogps)
    less = every.moved(rows, "chosen", rows.chosen - 0.7)
    torch.testing.assert_close(objective("dpo", {"beta": 0.3}, margin=0.7)(rows), make_loss("dpo", beta=0.3)(less))
    gap = rows.chosen_score - rows.rejected_score
    by_score = every.moved(rows, "chosen", rows.chosen - 0.5 * gap)
    found = objective("hinge", {"beta": 0.3}, score_margin=0.5)(rows)
    torch.testing.assert_close(found, make_loss("hinge", beta=0.3)(by_score))


def test_soft_labels_mix_both_labels():
    rows = every.batch(PairLogps)
    loss = make_loss("apo_zero", beta=0.3)
    mixed = rows.soft_label * loss(rows) + (1 - rows.soft_label) * loss(rows.swapped())
    torch.testing.assert_close(objective("apo_zero", {"beta": 0.3}, soft_labels=True)(rows), mixed)
    certain = every.moved(rows, "soft_label", torch.ones_like(rows.chosen))
    torch.testing.assert_close(objective("apo_zero", {"beta": 0.3}, soft_labels=True)(certain), loss(rows))


def test_a_swap_twice_is_no_swap():
    rows = every.batch(PairLogps)
    for (name, column), (_, again) in zip(rows.items(), rows.swapped().swapped().items()):
        assert column is None if again is None else torch.allclose(column, again), name
    assert torch.equal(rows.swapped().chosen_kl, rows.rejected_kl)


def test_wpo_weights_by_the_confidence_in_both_answers_without_gradient():
    rows = every.batch(PairLogps)
    weight = (rows.chosen_confidence + rows.rejected_confidence).exp()
    torch.testing.assert_close(
        objective("dpo", {"beta": 0.3}, wpo=True)(rows), weight * make_loss("dpo", beta=0.3)(rows)
    )
    leaf = rows.chosen_confidence.clone().requires_grad_()
    value = objective("dpo", {"beta": 0.3}, wpo=True)(every.moved(rows, "chosen_confidence", leaf))
    assert not value.requires_grad


@pytest.mark.parametrize(
    ("over", "reduce", "by_hand"),
    [
        ("chosen", "token", lambda lp: -lp.chosen / lp.chosen_len),
        ("chosen", "sequence", lambda lp: -lp.chosen),
        ("both", "token", lambda lp: -lp.chosen / lp.chosen_len - lp.rejected / lp.rejected_len),
        ("both", "sequence", lambda lp: -lp.chosen - lp.rejected),
    ],
)
def test_the_scope_of_the_likelihood_term(over, reduce, by_hand):
    rows = every.batch(PairLogps)
    found = objective("dpo", {"beta": 0.3}, nll={"coef": 0.2, "over": over, "reduce": reduce})(rows)
    torch.testing.assert_close(found, make_loss("dpo", beta=0.3)(rows) + 0.2 * by_hand(rows))


def test_dpo_with_a_likelihood_term_is_dpo_nll():
    rows = every.batch(PairLogps)
    nll = {"coef": 0.5, "over": "chosen", "reduce": "token"}
    found = objective("dpo", {"beta": 0.3}, nll=nll)(rows)
    torch.testing.assert_close(found, make_loss("dpo_nll", beta=0.3, alpha=0.5)(rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"marginn": 1.0}, "algorithm.modifiers does not use 'marginn'. Did you mean 'margin'"),
        ({"divergence": "kl"}, "'divergence' cannot be 'kl'"),
        ({"divergence": "alpha"}, "divergence 'alpha' needs a value for 'divergence_alpha'"),
        ({"divergence_alpha": 0.5}, "'divergence_alpha' is used by divergence 'alpha' alone"),
        ({"divergence": "alpha", "divergence_alpha": 2.0}, "divergence_alpha must be above 0 and at most 1"),
        ({"ld_alpha": 1.5}, "ld_alpha must be from 0 to 1"),
        ({"nll": {"coef": -1.0, "over": None, "reduce": None}}, "nll.coef must not be below 0"),
        ({"nll": {"coef": 0.1}}, "nll.coef above 0 needs a value for 'over'"),
        ({"nll": {"coef": 0.0, "over": "both"}}, "'over' is used by nll.coef above 0 alone"),
        ({"nll": {"coeff": 0.1}}, "algorithm.modifiers.nll does not use 'coeff'. Did you mean 'coef'"),
    ],
)
def test_modifiers_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError) as refused:
        make_modifiers(settings)
    assert message in str(refused.value)


def test_what_an_objective_reads():
    assert objective("dpo", {"beta": 0.3}).reads == {"chosen", "rejected", "ref_chosen", "ref_rejected"}
    assert not objective("simpo", {}).reads_reference
    assert objective("ipo", {"tau": 0.3}, score_margin=1.0).reads >= {"chosen_score", "rejected_score"}
    assert "chosen_len" not in objective("ipo", {"tau": 0.3}).reads
    assert "chosen_len" in objective("ipo", {"tau": 0.3, "normalize": "mean"}).reads


def test_a_loss_of_another_kind_is_refused_by_name():
    with pytest.raises(ConfigError, match="loss 'kto' takes data of kind 'unpaired', not 'pairs'"):
        objective("kto", {"beta": 0.3})


def test_modifiers_compare_by_value():
    assert make_modifiers({"margin": 0.5}) == Modifiers(margin=0.5) != Modifiers()
