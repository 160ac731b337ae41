import math

import pytest
import torch
from tokens import assert_same, rollouts, tokens_of, value_and_gradient

from rlpref.losses import LOSSES, make_loss
from rlpref.losses.bounds import counted
from rlpref.losses.inputs import RolloutLogps


def clip(x, low, high):
    return min(max(x, low), high)


def gamma(w, k, rate):
    return w**k * math.exp(rate * (1 - w))


FORMULAS = {  # log pi(y)/old(y), |y|, advantage, log pi(y), log pi(y)/ref(y) -> the answer's share of the reduced loss
    "ppo_clip_answer": lambda h, n, a, p, k: -min(math.exp(h) * a, clip(math.exp(h), 0.8, 1.2) * a),
    "gspo": lambda h, n, a, p, k: -min(math.exp(h / n) * a, clip(math.exp(h / n), 1 - 3e-4, 1 + 4e-4) * a),
    "gspo_token": lambda h, n, a, p, k: -min(math.exp(h / n) * a, clip(math.exp(h / n), 1 - 3e-4, 1 + 4e-4) * a),
    "luspo": lambda h, n, a, p, k: -n * min(math.exp(h / n) * a, clip(math.exp(h / n), 1 - 3e-4, 1 + 4e-4) * a),
    "vespo": lambda h, n, a, p, k: -gamma(math.exp(h), *((2, 3) if a > 0 else (3, 2))) * a * p,
    "topr": lambda h, n, a, p, k: -(1 if a > 0 else min(1, math.exp(h))) * a * p,
    "dro": lambda h, n, a, p, k: (a - 0.3 * k) ** 2 / 0.6,
    "a_star_po": lambda h, n, a, p, k: (0.3 * k - a) ** 2,
}
BETA = {"dro": {"tau": 0.3}, "a_star_po": {"beta": 0.3}}


def answers(rl):
    """(log pi/old, length, advantage, log pi, log pi/ref) of each answer."""
    sums = [[0.0, 0, 0.0, 0.0, 0.0] for _ in range(len(rl))]
    for i, _, new, old, advantage, ref in tokens_of(rl):
        sums[i] = [sums[i][0] + new - old, sums[i][1] + 1, advantage, sums[i][3] + new, sums[i][4] + new - ref]
    return sums


@pytest.mark.parametrize("name", FORMULAS)
def test_against_a_loop_over_answers(name):
    rl = rollouts()
    found, _ = value_and_gradient(name, rl, **BETA.get(name, {}))
    values = [FORMULAS[name](*answer) for answer in answers(rl)]
    count = int(rl.mask.sum()) if name == "vespo" else len(values)
    assert found.item() == pytest.approx(sum(values) / count, rel=1e-12)


def test_gmpo_is_the_geometric_mean_of_one_sided_clips():
    rl = rollouts(spread=1.0)
    kept = [[] for _ in range(len(rl))]
    for i, _, new, old, advantage, _ in tokens_of(rl):
        kept[i].append(min(new - old, 0.4) if advantage > 0 else max(new - old, -0.4))
    values = [-answer[2] * math.exp(sum(own) / len(own)) for answer, own in zip(answers(rl), kept)]
    assert value_and_gradient("gmpo", rl)[0].item() == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_gspo_token_has_the_value_and_the_gradient_of_gspo_where_an_answer_has_one_advantage():
    rl = rollouts()
    wide = {"cliprange_low": 0.3, "cliprange_high": 0.3}
    assert_same(value_and_gradient("gspo_token", rl), value_and_gradient("gspo", rl))
    assert_same(value_and_gradient("gspo_token", rl, **wide), value_and_gradient("gspo", rl, **wide))
    assert value_and_gradient("gspo", rl, **wide)[1].abs().sum() > 0


def test_gspo_token_weighs_tokens_by_their_own_advantages():
    rl = rollouts(whole_answers=False)
    _, gradient = value_and_gradient("gspo_token", rl, cliprange_low=1.0, cliprange_high=1e9)
    for i, t, _, _, advantage, _ in tokens_of(rl):
        h, n, *_ = answers(rl)[i]
        assert gradient[i, t].item() == pytest.approx(-math.exp(h / n) * advantage / n / len(rl))


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "luspo"])
def test_an_answer_of_one_token_is_a_token(name):
    rl = rollouts(lengths=(1, 1, 1, 1))
    wide = {"cliprange_low": 0.2, "cliprange_high": 0.2}
    assert_same(value_and_gradient(name, rl, **wide), value_and_gradient("ppo_clip", rl))
    assert_same(value_and_gradient("ppo_clip_answer", rl), value_and_gradient("ppo_clip", rl))


def test_identities():
    rl, equal = rollouts(), rollouts(lengths=(3, 3, 3))
    assert_same(value_and_gradient("luspo", equal), [3 * x for x in value_and_gradient("gspo", equal)])
    regression = value_and_gradient("a_star_po", rl, beta=0.3)
    assert_same(regression, [0.6 * x for x in value_and_gradient("dro", rl, tau=0.3)])
    good = RolloutLogps(rl.logps, rl.old_logps, rl.advantages.abs(), rl.mask)
    assert_same(value_and_gradient("topr", good), value_and_gradient("reinforce", good), rtol=0, atol=0)
    within = rollouts(spread=0.01)
    assert_same(
        value_and_gradient("gmpo", within), value_and_gradient("gspo", within, cliprange_low=1.0, cliprange_high=1e9)
    )


def test_an_answer_out_of_range_has_no_gradient_at_all():
    rl = rollouts(lengths=(3,))
    above = RolloutLogps(rl.old_logps + 0.1, rl.old_logps, rl.advantages.abs(), rl.mask)
    assert (value_and_gradient("gspo", above)[1] == 0).all()
    within = RolloutLogps(rl.old_logps + 3e-4, rl.old_logps, rl.advantages.abs(), rl.mask)
    assert (value_and_gradient("gspo", within)[1] < 0).all()


def test_dro_and_a_star_po_are_solved_by_the_optimum_of_the_regularised_objective():
    """log pi = log ref + A / beta with A = r - V: no loss and no gradient."""
    rl = rollouts(lengths=(1, 1, 1))
    best = RolloutLogps(rl.ref_logps + rl.advantages / 0.3, rl.old_logps, rl.advantages, rl.mask, rl.ref_logps)
    for name, settings in BETA.items():
        value, gradient = value_and_gradient(name, best, **settings)
        assert value.item() == pytest.approx(0, abs=1e-24)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("name", "key"), [("dro", "tau"), ("a_star_po", "beta")])
def test_beta_may_differ_from_answer_to_answer(name, key):
    rl = rollouts()
    betas = torch.linspace(0.1, 0.9, len(rl), dtype=torch.float64)
    together = LOSSES[name].function(rl, **{key: betas})
    alone = [make_loss(name, **{key: float(beta)})(rl[i : i + 1]) for i, beta in enumerate(betas)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_vespo_counts_what_it_holds():
    rl = rollouts(lengths=(2, 2))
    rl.old_logps[0] = -60.0
    loss = make_loss("vespo")
    with counted() as held_back:
        loss(rl)
    assert torch.stack(held_back).any(0).any(1).tolist() == [True, False]
