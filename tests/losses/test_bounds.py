import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpref.losses import make_loss
from rlpref.losses.bounds import bounded, bounded_exp, counted, log1mexp, rows_held
from rlpref.losses.inputs import PairLogps


def test_what_is_held_back_has_no_gradient_and_is_counted_where_somebody_counts():
    values = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    bounded(values, -1, 1)  # nobody counts
    with counted() as held:
        out = bounded(values, -1, 1)
    assert out.tolist() == [-1, 0.5, 1]
    assert [mask.tolist() for mask in held] == [[True, False, True]]
    out.sum().backward()
    assert values.grad.tolist() == [0, 1, 0]
    bounded(values, -1, 1)
    assert len(held) == 1, "outside nothing is counted any more"


def test_the_largest_exponential_is_finite_in_fp32():
    with counted() as held:
        assert bounded_exp(torch.tensor([4000.0, 1.0]))[0].isfinite()
    assert held[0].tolist() == [True, False]


@given(st.floats(-700, -1e-12))
def test_log1mexp_against_high_precision(x):
    from mpmath import exp, log, mp

    mp.dps = 400
    exact = float(log(1 - exp(x)))
    assert log1mexp(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(exact, rel=1e-12, abs=1e-300)


def test_log1mexp_at_certainty_is_finite_and_counted():
    x = torch.tensor([0.0, -1e-30, -1e4], requires_grad=True)
    with counted() as held:
        value = log1mexp(x)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad.isfinite().all()
    assert held[0].tolist() == [True, True, False]
    assert value[0].item() == pytest.approx(math.log(torch.finfo(torch.float32).eps), rel=1e-6)


def test_rows_that_any_bound_held():
    masks = [torch.tensor([True, False, False]), torch.tensor([[False, False], [False, True], [False, False]])]
    assert rows_held(masks, 3).tolist() == [True, True, False]
    assert rows_held([torch.tensor(True)], 2).tolist() == [True, True]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("f_dpo", {"divergence": "forward_kl"}),
        ("f_dpo", {"divergence": "alpha", "alpha": 0.5}),
        ("chi_po", {}),
        ("gpo", {"f": "exponential"}),
    ],
)
def test_exponentials_that_would_overflow_are_counted(name, settings):
    far, zero, one = torch.tensor([-4000.0, 0.0]), torch.zeros(2), torch.ones(2)
    with counted() as held:
        value = make_loss(name, beta=0.3, **settings)(PairLogps(far, -far, zero, zero, one, one))
    assert value.isfinite().all()
    assert rows_held(held[-2:] + held[:2], 2)[0]
