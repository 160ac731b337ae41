import math

import pytest
import torch

from rlpref.losses import make_loss
from rlpref.losses.inputs import PairLogps

LOSSES = {
    "dpo": {"beta": 0.3},
    "dpo_smoothed": {"beta": 0.3, "label_smoothing": 0.2},
    "ipo_sum": {"tau": 0.25, "normalize": "sum"},
    "ipo_mean": {"tau": 0.25, "normalize": "mean"},
}


def loss(key):
    return make_loss(key.split("_")[0], **LOSSES[key])


def logps(chosen, rejected, chosen_len=None, rejected_len=None, dtype=torch.float64):
    """Pairs with the given log-ratios, on top of a reference that is not zero."""
    chosen, rejected = torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype)
    ref_chosen, ref_rejected = torch.full_like(chosen, -5.0), torch.full_like(rejected, -7.0)
    ones = torch.ones(len(chosen), dtype=torch.long)
    return PairLogps(
        chosen=chosen + ref_chosen,
        rejected=rejected + ref_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        chosen_len=ones if chosen_len is None else torch.tensor(chosen_len),
        rejected_len=ones if rejected_len is None else torch.tensor(rejected_len),
    )


def test_dpo_by_hand():
    # margin (1.0 - -0.5) = 1.5, times 0.3 = 0.45; margin -2 times 0.3 = -0.6
    value = loss("dpo")(logps([1.0, -1.0], [-0.5, 1.0]))
    assert value.tolist() == pytest.approx([math.log(1 + math.exp(-0.45)), math.log(1 + math.exp(0.6))])


def test_smoothed_dpo_by_hand():
    value = loss("dpo_smoothed")(logps([1.0], [-0.5]))
    expected = 0.8 * math.log(1 + math.exp(-0.45)) + 0.2 * math.log(1 + math.exp(0.45))
    assert value.item() == pytest.approx(expected)


def test_ipo_by_hand():
    # 1/(2 tau) = 2; sum: 6 - -1 - 2 = 5; mean: 6/3 - -1/2 - 2 = 0.5
    pairs = logps([6.0], [-1.0], chosen_len=[3], rejected_len=[2])
    assert loss("ipo_sum")(pairs).item() == pytest.approx(25.0)
    assert loss("ipo_mean")(pairs).item() == pytest.approx(0.25)


def test_values_where_policy_is_reference():
    pairs = logps([0.0, 0.0], [0.0, 0.0], chosen_len=[3, 7], rejected_len=[5, 2])
    for key in ("dpo", "dpo_smoothed"):
        assert loss(key)(pairs).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)
    for key in ("ipo_sum", "ipo_mean"):
        assert loss(key)(pairs).tolist() == pytest.approx([1 / (4 * 0.25**2)] * 2, abs=1e-15)


@pytest.mark.parametrize("key", LOSSES)
def test_gradient_is_that_of_the_formula(key):
    reference = logps([0.7, -1.2], [0.1, 2.0], chosen_len=[3, 4], rejected_len=[2, 6])

    def value(chosen, rejected):
        return loss(key)(PairLogps(**{**dict(reference.items()), "chosen": chosen, "rejected": rejected}))

    inputs = reference.chosen.clone().requires_grad_(), reference.rejected.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("key", LOSSES)
def test_a_swap_of_chosen_and_rejected_flips_the_margin(key):
    """With lengths swapped too, loss(swapped, margin m) is loss(margin -m), and both are larger at the wrong
    sign of the margin."""
    right = logps([1.0], [-0.5], chosen_len=[3], rejected_len=[2])
    swapped = PairLogps(
        right.rejected,
        right.chosen,
        right.ref_rejected,
        right.ref_chosen,
        right.rejected_len,
        right.chosen_len,
    )
    negative = logps([-1.0], [0.5], chosen_len=[3], rejected_len=[2])
    assert loss(key)(swapped).item() == pytest.approx(loss(key)(negative).item())
    assert loss(key)(swapped).item() > loss(key)(right).item()


def test_ipo_mean_is_ipo_sum_at_unit_lengths_and_only_there():
    unit, longer = logps([1.0], [-0.5]), logps([1.0], [-0.5], chosen_len=[2], rejected_len=[2])
    assert torch.equal(loss("ipo_mean")(unit), loss("ipo_sum")(unit))
    assert loss("ipo_mean")(longer).item() != pytest.approx(loss("ipo_sum")(longer).item())


@pytest.mark.parametrize(("key", "invariant"), [("dpo", True), ("ipo_sum", True), ("ipo_mean", False)])
def test_a_constant_per_prompt_cancels_unless_lengths_divide_it(key, invariant):
    lengths = {"chosen_len": [3], "rejected_len": [2]}
    plain, shifted = logps([1.0], [-0.5], **lengths), logps([3.0], [1.5], **lengths)
    same = loss(key)(plain).item() == pytest.approx(loss(key)(shifted).item(), abs=1e-12)
    assert same == invariant


def test_a_coin_flip_of_labels_leaves_no_preference():
    even = make_loss("dpo", beta=0.3, label_smoothing=0.5)
    forth, back = even(logps([2.0, 0.3], [0.0, 1.0])), even(logps([-2.0, -0.3], [0.0, -1.0]))
    torch.testing.assert_close(forth, back)
    assert (forth >= math.log(2)).all()


@pytest.mark.parametrize("key", LOSSES)
@pytest.mark.parametrize("nats", [4000.0, -4000.0])
def test_value_and_gradient_are_finite_in_fp32_far_out(key, nats):
    pairs = logps([nats], [-nats], dtype=torch.float32)
    pairs.chosen.requires_grad_()
    value = loss(key)(pairs)
    value.sum().backward()
    assert value.isfinite().all()
    assert pairs.chosen.grad.isfinite().all()


@pytest.mark.parametrize("key", LOSSES)
def test_one_value_per_pair_whatever_stands_beside_it(key):
    both = logps([1.0, -4.0], [-0.5, 2.0], chosen_len=[3, 1], rejected_len=[2, 9])
    alone = torch.cat([loss(key)(both[i : i + 1]) for i in range(2)])
    assert torch.equal(loss(key)(both), alone)
