import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokens import assert_same, rollouts, tokens_of, value_and_gradient

from rlpref.binding import ConfigError
from rlpref.losses import LOSSES, make_loss, ppo_clip, reduced
from rlpref.losses.bounds import counted
from rlpref.losses.inputs import RolloutLogps
from rlpref.losses.registry import reads_reference

REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum")
BETA = {"dro": {"tau": 0.3}, "a_star_po": {"beta": 0.3}}
ALL = [name for name, entry in LOSSES.items() if entry.takes is RolloutLogps]


def clip(x, low, high):
    return min(max(x, low), high)


def one_token(ratio, advantage, ref_ratio=1.0):
    """[N, 1] answers of one token each."""
    old = torch.full_like(ratio, -3.0)
    logps = old + ratio.log()
    return RolloutLogps(*(x[:, None] for x in (logps, old, advantage, ratio > 0, logps - math.log(ref_ratio))))


def table(rows):
    return torch.tensor(rows, dtype=torch.float64).T


def test_ppo_clip_by_hand():
    """Gains are cut beyond the range, losses are not."""
    cases = [  # ratio, advantage, loss at cliprange 0.2
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),
        (0.5, 2.0, -1.0),
        (1.5, -2.0, 3.0),
        (0.5, -2.0, 1.6),
    ]
    ratio, advantage, expected = table(cases)
    torch.testing.assert_close(ppo_clip(one_token(ratio, advantage), 0.2)[:, 0], expected)


@pytest.mark.parametrize(
    ("name", "settings", "cases"),  # ratio, advantage, loss
    [
        ("cpi", {}, [(1.5, 2.0, -3.0), (5.0, -1.0, 5.0)]),
        ("dual_clip", {}, [(5.0, -1.0, 3.0), (2.0, -1.0, 2.0), (0.5, -1.0, 0.8), (5.0, 1.0, -1.2)]),
        ("dapo", {}, [(2.0, 1.0, -1.28), (1.25, 1.0, -1.25), (0.5, -1.0, 0.8)]),
        ("dr_grpo", {}, [(2.0, 1.0, -1.2), (0.5, 1.0, -0.5)]),
        ("gpg", {}, [(1.0, 2.0, 6.0)]),
        ("reinforce", {}, [(1.0, 2.0, 6.0)]),
        ("cispo", {}, [(1.0, 2.0, 6.0), (9.0, 1.0, -5 * (math.log(9) - 3)), (0.1, -1.0, 0.1 * (math.log(0.1) - 3))]),
        ("cispo", {"cliprange_low": 0.2}, [(0.1, -1.0, 0.8 * (math.log(0.1) - 3))]),
        ("sapo", {}, [(1.0, 1.0, -2.0), (1.0, -2.1, 4.0), (2.0, 1.0, -4 / (1 + math.exp(-1)))]),
        ("grpo", {"kl_coef": 0.0}, [(2.0, 1.0, -1.2), (2.0, -1.0, 2.0)]),
    ],
)
def test_one_token_by_hand(name, settings, cases):
    ratio, advantage, expected = table(cases)
    torch.testing.assert_close(make_loss(name, **settings)(one_token(ratio, advantage))[:, 0], expected)


def test_grpo_adds_the_k3_of_each_token():
    found = make_loss("grpo", kl_coef=0.5)(one_token(*table([(1.0, 2.0)]), ref_ratio=4.0))
    assert found.item() == pytest.approx(-2 + 0.5 * (1 / 4 - 1 - math.log(1 / 4)))


def test_every_token_loss_against_a_loop():
    """Values and means over the minibatch by another road: floats, one token at a time."""
    rl = rollouts(whole_answers=False)
    formulas = {
        "reinforce": lambda r, a, p, k: -a * p,
        "gpg": lambda r, a, p, k: -a * p,
        "cpi": lambda r, a, p, k: -a * r,
        "ppo_clip": lambda r, a, p, k: -min(r * a, clip(r, 0.8, 1.2) * a),
        "dual_clip": lambda r, a, p, k: min(-min(r * a, clip(r, 0.8, 1.2) * a), -3 * a if a < 0 else math.inf),
        "grpo": lambda r, a, p, k: -min(r * a, clip(r, 0.8, 1.2) * a) + 0.04 * (math.exp(-k) - 1 + k),
        "dr_grpo": lambda r, a, p, k: -min(r * a, clip(r, 0.8, 1.2) * a),
        "dapo": lambda r, a, p, k: -min(r * a, clip(r, 0.8, 1.28) * a),
        "cispo": lambda r, a, p, k: -clip(r, 0.0, 5.0) * a * p,
        "sapo": lambda r, a, p, k: (lambda tau: -a * 4 / tau / (1 + math.exp(-tau * (r - 1))))(1.0 if a > 0 else 1.05),
    }
    for name, formula in formulas.items():
        tokens = [(i, formula(math.exp(p - o), a, p, p - ref)) for i, _, p, o, a, ref in tokens_of(rl)]
        answers = [[value for i, value in tokens if i == answer] for answer in range(len(rl))]
        means = {
            "token_mean": sum(value for _, value in tokens) / len(tokens),
            "sequence_mean": sum(sum(own) / len(own) for own in answers) / len(answers),
            "sequence_sum": sum(sum(own) for own in answers) / len(answers),
        }
        found, _ = value_and_gradient(name, rl)
        assert found.item() == pytest.approx(means[LOSSES[name].reduce], rel=1e-12), name


@pytest.mark.parametrize("name", [name for name in ALL if not LOSSES[name].regularisation])
def test_at_ratio_one_the_gradient_is_the_policy_gradient(name):
    """That of -A log pi under the loss's own reduction; the KL terms have no gradient there."""
    rl = rollouts(spread=0.0)
    _, gradient = value_and_gradient(name, rl)
    lengths = rl.mask.sum(1, keepdim=True).double()
    by_answer = {"token_mean": lengths / lengths.sum(), "sequence_mean": 1 / len(rl), "sequence_sum": lengths / len(rl)}
    per_token = by_answer[LOSSES[name].reduce] / lengths
    if name == "ppo_clip_answer":  # its ratio is a product over tokens: each counts in full
        per_token = torch.full_like(lengths, 1 / len(rl))
    torch.testing.assert_close(gradient, -rl.advantages * per_token * rl.mask)


def test_beyond_the_range_a_gain_has_no_gradient_and_a_loss_keeps_its_own():
    ratio = torch.tensor([math.exp(0.5)] * 2, dtype=torch.float64)
    rl = one_token(ratio, torch.tensor([1.0, -1.0], dtype=torch.float64))
    _, gradient = value_and_gradient("ppo_clip", rl)
    assert gradient[0] == 0
    assert gradient[1].item() == pytest.approx(math.exp(0.5) / 2)


def test_cispo_keeps_the_gradient_that_ppo_clips_away():
    rl = one_token(torch.tensor([9.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert value_and_gradient("ppo_clip", rl)[1].item() == 0
    assert value_and_gradient("cispo", rl)[1].item() == -5.0


@pytest.mark.parametrize(("divergence", "threshold"), [("tv", 0.15), ("kl", 0.05)])
def test_dppo_drops_exactly_the_tokens_that_ran_too_far_with_their_advantage(divergence, threshold):
    rl = rollouts(spread=1.0, whole_answers=False, seed=2)
    _, gradient = value_and_gradient("dppo", rl, divergence=divergence, threshold=threshold)
    kept, dropped = 0, 0
    for i, t, new, old, advantage, _ in tokens_of(rl):
        p, q = math.exp(old), math.exp(new)
        far = abs(p - q) if divergence == "tv" else p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        out = far > threshold and (new > old if advantage > 0 else new < old)
        kept, dropped = kept + (not out), dropped + out
        assert gradient[i, t].item() == pytest.approx(0 if out else -advantage * math.exp(new - old) / len(rl))
    assert min(kept, dropped) > 0


def test_kl_cov_pays_for_the_tokens_of_largest_covariance():
    rl = rollouts(whole_answers=False, seed=1)
    tokens = list(tokens_of(rl))
    mean = [sum(token[k] for token in tokens) / len(tokens) for k in (4, 2)]
    largest = sorted(tokens, key=lambda token: -(token[4] - mean[0]) * (token[2] - mean[1]))[:3]
    difference = make_loss("kl_cov", fraction=0.25, kl_coef=2.0)(rl) - make_loss("cpi")(rl)
    expected = torch.zeros_like(difference)
    for i, t, new, old, *_ in largest:
        expected[i, t] = 2 * abs(new - old)
    torch.testing.assert_close(difference, expected)


def test_identities():
    rl = rollouts(whole_answers=False)
    plain = value_and_gradient("ppo_clip", rl)
    assert_same(value_and_gradient("dapo", rl, cliprange_low=0.2, cliprange_high=0.2), plain, rtol=0, atol=0)
    assert_same(value_and_gradient("dual_clip", rl, dual_clip=1e9), plain, rtol=0, atol=0)
    assert_same(value_and_gradient("cpi", rl), value_and_gradient("ppo_clip", rl, cliprange=1e9), rtol=0, atol=0)
    assert_same(value_and_gradient("cpi", rl), value_and_gradient("dual_clip", rl, cliprange=1e9, dual_clip=1e9))
    by_sum, by_token = value_and_gradient("reinforce", rl), value_and_gradient("gpg", rl)
    assert_same([x * len(rl) for x in by_sum], [x * rl.mask.sum() for x in by_token])
    nothing_dropped = value_and_gradient("dppo", rl, threshold=1.0)
    assert_same([x * len(rl) for x in nothing_dropped], [x * rl.mask.sum() for x in value_and_gradient("cpi", rl)])
    equal = rollouts(lengths=(4, 4, 4), whole_answers=False)
    assert_same(value_and_gradient("grpo", equal, kl_coef=0.0), value_and_gradient("ppo_clip", equal))
    assert_same([x / 4 for x in value_and_gradient("dr_grpo", equal)], value_and_gradient("ppo_clip", equal))


def test_a_clip_that_no_ratio_reaches_is_none_and_sapo_nears_it():
    """SAPO's gate and the plain ratio agree to second order around 1."""
    rl = rollouts(spread=1e-4, whole_answers=False)
    assert_same(value_and_gradient("ppo_clip", rl), value_and_gradient("cpi", rl), rtol=0, atol=0)
    equal = rollouts(spread=1e-4, lengths=(3, 3), whole_answers=False)
    torch.testing.assert_close(
        value_and_gradient("sapo", equal)[1], value_and_gradient("cpi", equal)[1], rtol=1e-3, atol=0
    )


@given(st.lists(st.lists(st.integers(0, 6), min_size=1), min_size=1, max_size=4), st.sampled_from(REDUCTIONS))
def test_all_splits_into_micro_batches_agree(split, reduce):
    """As the trainer adds them up: sum(weight * value) / sum(weight), also with answers of no tokens."""
    lengths = [length for part in split for length in part]
    generator = torch.Generator().manual_seed(len(lengths))
    per_token = torch.randn(len(lengths), 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    rows, above, below = torch.arange(len(lengths)).split([len(part) for part in split]), 0.0, 0.0
    for part in rows:
        value, weight = reduced(per_token[part], mask[part], reduce)
        above, below = above + (weight * value).sum(), below + weight.sum()
    total = torch.where(mask, per_token, 0.0)
    count = torch.tensor(lengths, dtype=torch.float64)
    expected = {
        "token_mean": total.sum() / count.sum(),
        "sequence_mean": (total.sum(1) / count.clamp(min=1)).mean(),
        "sequence_sum": total.sum(1).mean(),
    }
    if count.sum() or reduce != "token_mean":
        torch.testing.assert_close(above / below, expected[reduce])


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_what_stands_outside_the_mask_never_counts(reduce):
    rl = rollouts()
    per_token = torch.where(rl.mask, rl.logps, torch.inf).requires_grad_()
    value, _ = reduced(per_token, rl.mask, reduce)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), per_token)
    assert (gradient[~rl.mask] == 0).all()


@pytest.mark.parametrize("name", [name for name in ALL if not LOSSES[name].coupled])
def test_losses_do_not_look_outside_the_mask(name):
    rl = rollouts()
    settings = BETA.get(name, {})
    columns = {k: torch.where(rl.mask, v, 7.0) if v.is_floating_point() else v for k, v in rl.items()}
    assert_same(value_and_gradient(name, RolloutLogps(**columns), **settings), value_and_gradient(name, rl, **settings))


def test_the_reference_is_read_only_where_it_counts():
    readers = {name for name in ALL if reads_reference(make_loss(name, **BETA.get(name, {})), RolloutLogps)}
    assert readers == {"grpo", "dro", "a_star_po"}
    assert not reads_reference(make_loss("grpo", kl_coef=0.0), RolloutLogps)


def test_a_ratio_beyond_all_bounds_is_counted():
    rl = one_token(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    rl.old_logps[0] = -4000.0
    with counted() as held_back:
        ppo_clip(rl)
    assert torch.stack(held_back).any(0)[:, 0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo_clip", {"cliprange": 0.0}, "loss 'ppo_clip': 'cliprange' must be above 0, not 0.0"),
        (
            "ppo_clip",
            {"cliprange_high": 0.3},
            "loss 'ppo_clip' does not use 'cliprange_high'. Did you mean 'cliprange'",
        ),
        ("dual_clip", {"dual_clip": 1.0}, "'dual_clip' must be above 1"),
        ("grpo", {"kl_coef": -0.1}, "'kl_coef' must be at least 0"),
        ("kl_cov", {"fraction": 2.0}, "'fraction' must be above 0 and at most 1"),
        ("dppo", {"divergence": "js"}, "'divergence' cannot be 'js'; it takes one of 'tv', 'kl'"),
        ("dro", {}, "loss 'dro' needs a value for: tau"),
    ],
)
def test_refusals(name, settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_loss(name, **settings)
    assert message in str(refusal.value)
