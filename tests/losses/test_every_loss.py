"""What holds for every registered loss, whatever it is: a new one is tested here without being named."""

import math

import every
import pytest
import torch

from rlpref.losses import LOSSES, bounds, make_loss
from rlpref.losses.bounds import counted, rows_held
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardLists, RewardPairs, RolloutLogps
from rlpref.losses.registry import columns_read

ALL = every.cases()
PAIRS = every.cases(PairLogps)
DEFAULTS = every.cases(PairLogps, AnswerLogps, ListLogps, default_only=True)


@pytest.mark.parametrize(("name", "settings"), ALL, ids=every.label)
def test_the_gradient_is_that_of_the_value(name, settings):
    """By central differences in fp64, what the loss detaches held constant."""
    loss, takes = make_loss(name, **settings), LOSSES[name].takes
    for column in every.TRAINED[takes]:
        rows = every.batch(takes)
        leaf = getattr(rows, column).clone().requires_grad_()
        value = loss(every.moved(rows, column, leaf))
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            torch.testing.assert_close(gradient, every.numerical_gradient(loss, rows, column), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "settings"), ALL, ids=every.label)
def test_one_finite_value_for_each_example(name, settings):
    entry = LOSSES[name]
    rows = every.batch(entry.takes)
    value = make_loss(name, **settings)(rows)
    assert value.shape == (rows.logps.shape if entry.takes is RolloutLogps else (len(rows),))
    assert value.isfinite().all()
    assert value.requires_grad is False


def extremes(takes, nats, length, dtype=torch.float32):
    """Log-ratios of so many nats either way, and probabilities of nearly 1; answers of so many tokens."""
    rows = every.batch(takes, rows=6, dtype=dtype, tokens=length)
    change = torch.tensor([nats, -nats, 0.0, nats, -nats, nats], dtype=dtype)
    columns = dict(rows.items())
    for name, value in columns.items():
        if name in ("length", "chosen_len", "rejected_len"):
            columns[name] = torch.full_like(value, length)
        if name in every.TRAINED[takes] and not name.endswith("_kl"):
            toward = -change if name == "rejected" else change
            start = value if takes in (RewardPairs, RewardLists) else torch.zeros_like(value)
            columns[name] = start + (toward if value.dim() == 1 else toward[:, None]).clamp(max=nats)
        if name.startswith(("ref_", "old_")):
            columns[name] = torch.zeros_like(value)
    if takes not in (RewardPairs, RewardLists):  # log-probs: at most 0
        for name in [*every.TRAINED[takes], "ref_chosen", "ref_rejected", "ref_logps", "old_logps"]:
            if name in columns and not name.endswith("_kl"):
                columns[name] = columns[name] - nats
        columns = {k: v.clamp(max=0) if k in every.TRAINED[takes] and "kl" not in k else v for k, v in columns.items()}
    return takes(**columns)


@pytest.mark.parametrize("length", [1, 4096])
@pytest.mark.parametrize("nats", [4000.0, 1e-4, 0.0])
@pytest.mark.parametrize(("name", "settings"), ALL, ids=every.label)
def test_value_and_gradient_are_finite_in_fp32_far_out_and_at_certainty(name, settings, nats, length):
    loss, takes = make_loss(name, **settings), LOSSES[name].takes
    rows = extremes(takes, nats, length)
    for column in every.TRAINED[takes]:
        leaf = getattr(rows, column).clone().requires_grad_()
        value = loss(every.moved(rows, column, leaf))
        assert value.isfinite().all()
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), ALL, ids=every.label)
def test_what_is_held_back_is_counted(name, settings, monkeypatch):
    """Nearby no bound holds; far out every row that would not be finite without bounds is counted."""
    loss, takes = make_loss(name, **settings), LOSSES[name].takes
    with counted() as near:
        loss(every.batch(takes))
    assert not any(mask.any() for mask in near), "a bound changes ordinary values"
    rows = extremes(takes, 4000.0, 1)
    with counted() as far:
        loss(rows)
    monkeypatch.setattr(bounds, "LARGEST_EXPONENT", math.inf)
    lost = ~loss(rows).isfinite().view(len(rows), -1).all(1)
    if lost.any():
        assert (rows_held(far, len(rows)) | ~lost).all(), "a bound that nobody counts"


def at_reference(takes, seed=0):
    """Policy == reference, lengths equal."""
    rows = every.batch(takes, seed=seed)
    if takes is PairLogps:
        zeros = torch.zeros_like(rows.chosen)
        changes = {"chosen": rows.ref_chosen, "rejected": rows.ref_rejected, "rejected_len": rows.chosen_len}
        changes |= {"chosen_kl": zeros, "rejected_kl": zeros}
    else:
        changes = {"logps": rows.ref_logps}
        changes |= {"mismatched": torch.zeros_like(rows.logps)} if takes is AnswerLogps else {}
    for name, value in changes.items():
        rows = every.moved(rows, name, value)
    return rows


@pytest.mark.parametrize(
    ("name", "settings"), every.cases(PairLogps, AnswerLogps, ListLogps, claim="at_ref"), ids=every.label
)
def test_the_stated_value_where_policy_is_reference(name, settings):
    entry = LOSSES[name]
    rows = at_reference(entry.takes)
    defaults = {key: p.default for key, p in entry.hyperparameters.items()}
    for row, found in enumerate(make_loss(name, **settings)(rows).tolist()):
        facts = {"nll": 0.0, "label": True, "k": 0}
        if entry.takes is PairLogps:
            facts |= {"nll": float(-rows.chosen[row] / rows.chosen_len[row]), "p": float(rows.soft_label[row])}
        elif entry.takes is AnswerLogps:
            facts |= {"label": bool(rows.label[row]), "score": float(rows.score[row])}
        else:
            facts["k"] = int(rows.present[row].sum())
        stated = eval(entry.at_ref, {"dict": dict, **vars(math)}, defaults | settings | facts)
        assert found == pytest.approx(stated, abs=1e-12), entry.at_ref


@pytest.mark.parametrize(("name", "settings"), PAIRS, ids=every.label)
def test_the_right_order_costs_less_than_the_wrong_one(name, settings):
    loss = make_loss(name, **settings)
    rows = every.moved(at_reference(PairLogps), "soft_label", torch.full((5,), 0.9, dtype=torch.float64))
    rows = every.moved(every.moved(rows, "chosen_score", rows.rejected_score + 1), "chosen", rows.chosen + 1)
    right = every.moved(rows, "rejected", rows.rejected - 1)
    wrong = every.moved(every.moved(rows, "chosen", rows.chosen - 2), "rejected", rows.rejected + 1)
    assert (loss(right) < loss(wrong)).all()


@pytest.mark.parametrize(("name", "settings"), DEFAULTS, ids=every.label)
def test_a_constant_for_each_prompt_cancels_exactly_where_that_is_claimed(name, settings):
    entry, loss = LOSSES[name], make_loss(name, **settings)
    rows = every.batch(entry.takes)
    shift = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    shifted = rows
    for column in ("chosen", "rejected") if entry.takes is PairLogps else ("logps",):
        by = shift[:, None] * rows.present if entry.takes is ListLogps else shift
        shifted = every.moved(shifted, column, getattr(rows, column) + by)
    same = torch.allclose(loss(rows), loss(shifted), rtol=0, atol=1e-12)
    assert same == entry.shift_invariant


@pytest.mark.parametrize(("name", "settings"), ALL, ids=every.label)
def test_an_example_is_alone_exactly_where_the_loss_does_not_couple(name, settings):
    entry, loss = LOSSES[name], make_loss(name, **settings)
    rows = every.batch(entry.takes)
    alone = torch.cat([loss(rows[i : i + 1]) for i in range(len(rows))])
    assert torch.allclose(loss(rows), alone, rtol=0, atol=1e-12) != entry.coupled


@pytest.mark.parametrize(("name", "settings"), every.cases(PairLogps, AnswerLogps, ListLogps), ids=every.label)
def test_beta_may_differ_from_row_to_row(name, settings):
    """As replicas need it."""
    entry = LOSSES[name]
    key = entry.regularisation
    if key is None or entry.coupled:
        return
    rows = every.batch(entry.takes)
    betas = torch.linspace(0.1, 0.9, len(rows), dtype=torch.float64)
    together = entry.function(rows, **settings | {key: betas})
    alone = [entry.function(rows[i : i + 1], **settings | {key: float(betas[i])}) for i in range(len(rows))]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_what_it_is_and_where_it_is_from(name):
    entry = LOSSES[name]
    assert len(entry.formula) > 10
    assert entry.reduce == "example" or entry.takes is RolloutLogps
    assert entry.papers or any(str(year) in entry.function.__doc__ for year in range(1950, 2030))
    assert entry.takes in every.TRAINED
    assert columns_read(make_loss(name, **every.settings_of(name)[0]), entry.takes) & set(every.TRAINED[entry.takes])
