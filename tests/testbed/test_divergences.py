"""rlpref.testbed.divergences against derivatives, first-order conditions and random competitors."""

import pytest
import torch
from scipy.special import lambertw

from rlpref.testbed import divergences as div
from rlpref.testbed import exact, optima

BETA = 0.4
ALL = {
    "reverse": div.REVERSE_KL,
    "forward": div.FORWARD_KL,
    "js": div.JENSEN_SHANNON,
    "alpha 0.3": div.alpha_divergence(0.3),
    "alpha 0.8": div.alpha_divergence(0.8),
    "chi": div.CHI_SQUARED_KL,
}
each = pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)


@each
def test_each_divergence_is_convex_and_its_inverse_is_the_inverse(divergence):
    u = torch.logspace(-3, 3, 200, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence.f(u).sum(), u)
    torch.testing.assert_close(slope, divergence.slope(u.detach()))
    assert (slope.diff() > 0).all()
    assert (slope < divergence.supremum).all()
    torch.testing.assert_close(divergence.log_ratio(slope), u.detach().log(), atol=1e-9, rtol=1e-9)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([divergence.f(one), divergence.slope(one)]), torch.zeros(2).double())


@each
@pytest.mark.parametrize("beta", [0.02, 0.4, 10.0])
def test_the_optimum_satisfies_its_first_order_condition(task, finished, divergence, beta):
    """r - beta f'(pi/ref) is one number per prompt: lambda."""
    policy = div.f_optimum(task, task.ref, task.rewards, beta, divergence)
    logs = finished(task, exact.answer_logps(task, policy) - exact.answer_logps(task, task.ref))
    # From log-ratios: with a small beta the worst answers' ratios are below fp64's smallest number.
    slope = logs if divergence is div.REVERSE_KL else divergence.slope(logs.exp())
    multiplier = finished(task, task.rewards) - beta * slope
    kept = logs.exp() > 1e-12
    spread = (multiplier - multiplier.gather(1, logs.argmax(1, keepdim=True)))[kept]
    torch.testing.assert_close(spread, torch.zeros_like(spread), atol=1e-8, rtol=0)
    assert kept.sum() > 4


@each
def test_the_optimum_beats_100_random_policies_on_its_own_objective(task, random_policy, divergence):
    def objective(policy):
        reward = exact.expectation(task, policy, task.rewards)
        return reward - BETA * div.f_divergence(task, policy, task.ref, divergence)

    found = div.f_optimum(task, task.ref, task.rewards, BETA, divergence)
    best = objective(found)
    for seed in range(50):
        noise = random_policy(task, seed)
        for rival in (noise, (found + 0.1 * noise).log_softmax(-1)):
            assert (objective(rival) < best).all()


def test_the_divergences_are_what_they_are_called(task, random_policy, finished):
    policy = random_policy(task, 0)
    p, q = (finished(task, exact.answer_logps(task, table)) for table in (policy, task.ref))
    middle = (p.exp() + q.exp()).log() - torch.tensor(2.0).log()
    expected = {
        "reverse": exact.sequence_kl(task, policy, task.ref),
        "forward": exact.sequence_kl(task, task.ref, policy),
        "js": (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1),
        "chi": 0.5 * ((p.exp() - q.exp()) ** 2 / q.exp()).sum(1) + exact.sequence_kl(task, policy, task.ref),
    }
    for name, value in expected.items():
        torch.testing.assert_close(div.f_divergence(task, policy, task.ref, ALL[name]), value)


def test_the_reverse_kl_gives_the_ordinary_optimum_and_alpha_lies_between_the_kls(task):
    def found(divergence):
        return div.f_optimum(task, task.ref, task.rewards, BETA, divergence)

    plain = optima.optimum(task, task.ref, task.rewards, BETA).policy
    torch.testing.assert_close(found(div.REVERSE_KL), plain)
    torch.testing.assert_close(found(div.alpha_divergence(1e-6)), plain, atol=1e-4, rtol=0)
    near_forward = found(div.alpha_divergence(1 - 1e-6))
    torch.testing.assert_close(near_forward, found(div.FORWARD_KL), atol=1e-4, rtol=0)


def test_chi_po_is_lamberts_function_of_the_reward(task, finished):
    policy = div.f_optimum(task, task.ref, task.rewards, BETA, div.CHI_SQUARED_KL)
    p, q = (finished(task, exact.answer_logps(task, table)) for table in (policy, task.ref))
    ratio, rewards = (p - q).exp(), finished(task, task.rewards)
    multiplier = (rewards - BETA * (ratio + ratio.log()))[:, :1]
    expected = torch.from_numpy(lambertw(((rewards - multiplier) / BETA).exp().numpy()).real)
    torch.testing.assert_close(ratio, expected)


def test_chi_po_stays_nearer_to_the_reference_in_its_largest_ratio(task):
    """The chi-squared term makes pi/ref at most about linear in r/beta, not exponential."""
    ref = exact.answer_logps(task, task.ref).flatten(1)
    largest = [
        torch.where(task.ends.flatten(), exact.answer_logps(task, policy).flatten(1) - ref, -9.0).amax(1)
        for policy in (
            div.f_optimum(task, task.ref, task.rewards, BETA, div.CHI_SQUARED_KL),
            optima.optimum(task, task.ref, task.rewards, BETA).policy,
        )
    ]
    assert (largest[0] < largest[1]).all()


@each
def test_answers_outside_the_reference_stay_outside(task, divergence):
    whole = exact.answer_logps(task, task.ref)
    best = task.rewards.flatten(1).argmax(1)
    whole.view(2, -1)[torch.arange(2), best] = float("-inf")
    ref = optima.conditionals_of(task, whole)
    policy = div.f_optimum(task, ref, task.rewards, BETA, divergence)
    mass = exact.answer_logps(task, policy).exp().flatten(1)
    assert (mass[torch.arange(2), best] == 0).all()
    torch.testing.assert_close(mass.sum(1), torch.ones(2).double())
    assert (div.f_divergence(task, policy, ref, divergence) > 0.01).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match="0 < alpha < 1"):
        div.alpha_divergence(alpha)
