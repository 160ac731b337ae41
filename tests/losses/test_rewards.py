import math
from dataclasses import replace

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.losses import LOSSES, bradley_terry, make_loss
from rlpref.losses.inputs import RewardLists, RewardPairs
from rlpref.losses.registry import columns_read

LISTS = [name for name, entry in LOSSES.items() if entry.takes is RewardLists]
PAIRS = [name for name, entry in LOSSES.items() if entry.takes is RewardPairs]


def l(z):  # noqa: E743
    return math.log1p(math.exp(-z))


def pairs(*rows) -> RewardPairs:
    """Rows of (chosen, rejected, margin, soft label, chosen target, rejected target)."""
    return RewardPairs(*torch.tensor(rows, dtype=torch.float64).T)


def random_pairs(rows=6, seed=0) -> RewardPairs:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(6, rows, generator=generator, dtype=torch.float64)
    return RewardPairs(*columns[:2], columns[2].abs(), columns[3].sigmoid(), *columns[4:])


ROW = (2.0, 0.5, 1.0, 0.7, 3.0, -0.5)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("bradley_terry", {}, l(1.5)),
        ("bt_margin", {}, l(0.5)),
        ("bt_scaled", {}, l(1.5)),
        ("bt_center", {}, l(1.5) + 0.01 * 2.5**2),
        ("bt_soft", {}, 0.7 * l(1.5) + 0.3 * l(-1.5)),
        ("bt_lapse", {}, -math.log(0.9 / (1 + math.exp(-1.5)) + 0.05)),
        ("reward_hinge", {}, 0.0),
        ("reward_hinge", {"delta": 2.0}, 0.5),
        ("eurus", {}, l(1.5) + l(2.0) + l(-0.5)),
        ("reward_mse", {}, 1.0),
    ],
)
def test_by_hand(name, settings, expected):
    assert make_loss(name, **settings)(pairs(ROW)).item() == pytest.approx(expected, rel=1e-12)


def test_probabilities_of_both_labels_sum_to_one_and_far_scores_stay_finite():
    rp = random_pairs()
    both = (-bradley_terry(rp)).exp() + (-bradley_terry(RewardPairs(rp.rejected, rp.chosen))).exp()
    torch.testing.assert_close(both, torch.ones_like(both))
    assert bradley_terry(RewardPairs(torch.tensor([-4000.0]), torch.tensor([4000.0]))).item() == 8000.0


def test_identities():
    rp = random_pairs()
    plain, count = bradley_terry(rp), torch.ones(6, dtype=torch.float64)

    def same(name, rp=rp, **settings):
        torch.testing.assert_close(make_loss(name, **settings)(rp), plain, rtol=0, atol=1e-14)

    same("bt_center", coef=0.0)
    same("bt_margin", replace(rp, margin=0 * count))
    same("bt_scaled", replace(rp, margin=count))
    same("bt_soft", replace(rp, soft_label=count))
    torch.testing.assert_close(make_loss("bt_lapse", lapse=1e-12)(rp), plain)
    terms = torch.nn.functional.softplus(-rp.chosen) + torch.nn.functional.softplus(rp.rejected)
    torch.testing.assert_close(make_loss("eurus")(rp) - plain, terms)


def test_plackett_luce_of_two_answers_is_bradley_terry_in_the_order_of_their_scores():
    rp = random_pairs()
    rewards = torch.stack([rp.chosen, rp.rejected], 1)
    scores, present = torch.tensor([[1.0, 0.0]] * 6), torch.ones(6, 2, dtype=torch.bool)
    found = make_loss("reward_plackett_luce")
    torch.testing.assert_close(found(RewardLists(rewards, scores, present)), bradley_terry(rp))
    turned = bradley_terry(RewardPairs(rp.rejected, rp.chosen))
    torch.testing.assert_close(found(RewardLists(rewards, -scores, present)), turned)


def test_plackett_luce_probabilities_of_all_orders_sum_to_one_and_absent_answers_do_not_count():
    rewards = torch.tensor([[0.3, -1.0, 2.0, 50.0]], dtype=torch.float64)
    present = torch.tensor([[True, True, True, False]])
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    scores = torch.cat([orders, torch.full((6, 1), 9)], 1).double()
    lists = RewardLists(rewards.expand(6, -1), scores, present.expand(6, -1))
    assert (-make_loss("reward_plackett_luce")(lists)).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", LISTS)
def test_a_constant_on_a_list_cancels_and_absent_answers_do_not_count(name):
    loss = make_loss(name)
    rewards, scores = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    present = (torch.arange(4) < torch.tensor([4, 3, 2, 4, 3])[:, None]).expand(5, 4)
    value = loss(RewardLists(rewards, scores, present))
    shifted = rewards + torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(RewardLists(shifted, scores, present)), value)
    other = torch.where(present, rewards, 40.0), torch.where(present, scores, -40.0)
    torch.testing.assert_close(loss(RewardLists(*other, present)), value)
    torch.testing.assert_close(loss(RewardLists(rewards[1:2, :3], scores[1:2, :3], present[1:2, :3])), value[1:2])


def test_all_pairs_of_a_list_are_the_mean_of_bradley_terry_over_them():
    rewards, scores = torch.tensor([[[0.3, -1.0, 2.0, 0.7]], [[1.0, 3.0, 3.0, 2.0]]], dtype=torch.float64)
    pairs_of = [(1, 3), (1, 0), (2, 3), (2, 0), (3, 0)]  # 1 and 2 tie
    expected = sum(l(float(rewards[0, i] - rewards[0, j])) for i, j in pairs_of) / 5
    found = make_loss("reward_all_pairs")(RewardLists(rewards, scores, torch.ones(1, 4, dtype=torch.bool)))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_listnet_rests_where_the_rewards_are_the_scores_over_the_temperature(temperature):
    scores = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    rewards = (scores / temperature + 3).requires_grad_()
    loss = make_loss("reward_listnet", temperature=temperature)
    value = loss(RewardLists(rewards, scores, torch.ones(1, 3, dtype=torch.bool)))
    p = (scores / temperature).softmax(1)
    assert value.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-12)  # entropy: no reward can do better
    assert torch.autograd.grad(value.sum(), rewards)[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", PAIRS)
def test_a_constant_on_both_scores_cancels_exactly_where_that_is_claimed(name):
    loss, rp = make_loss(name), random_pairs()
    shifted = replace(rp, chosen=rp.chosen + 0.7, rejected=rp.rejected + 0.7)
    assert torch.allclose(loss(rp), loss(shifted), rtol=0, atol=1e-12) == LOSSES[name].shift_invariant


def test_minimisers():
    """Gradient 0 exactly where each should rest."""
    half = math.log(0.7 / 0.3)
    cases = {
        "bt_soft": pairs((half, 0.0, 1.0, 0.7, 0.0, 0.0)),
        "reward_mse": pairs((3.0, -0.5, 1.0, 0.7, 3.0, -0.5)),
        "reward_hinge": pairs((1.5, 0.0, 1.0, 0.7, 0.0, 0.0)),
    }
    for name, rp in cases.items():
        leaves = rp.chosen.requires_grad_(), rp.rejected.requires_grad_()
        for gradient in torch.autograd.grad(make_loss(name)(rp).sum(), leaves):
            assert gradient.item() == pytest.approx(0, abs=1e-15), name


def test_a_mistake_of_the_judge_costs_at_most_a_bounded_sum_under_bt_lapse():
    far = RewardPairs(torch.tensor([-4000.0]), torch.tensor([4000.0]))
    assert make_loss("bt_lapse", lapse=0.1)(far).item() == pytest.approx(math.log(20))


def test_each_says_what_it_reads():
    own = {"bt_margin": {"margin"}, "bt_scaled": {"margin"}, "bt_soft": {"soft_label"}}
    own["reward_mse"] = {"chosen_target", "rejected_target"}
    for name in PAIRS:
        assert columns_read(make_loss(name), RewardPairs) == {"chosen", "rejected"} | own.get(name, set())


def test_refusals():
    with pytest.raises(ConfigError, match="'lapse' must be above 0 and at most 1"):
        make_loss("bt_lapse", lapse=0.0)
    with pytest.raises(ConfigError, match="loss 'bt_center' does not use 'coeff'"):
        make_loss("bt_center", coeff=0.1)
