"""Where registered pair losses go: the registry's claims and closed forms against minima of the expected loss."""

import pytest
import torch

from rlpref.losses import LOSSES, make_loss
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import make_modifiers, make_objective
from rlpref.testbed import coverage, divergences, duels, exact, optima, population, preferences, stationary
from rlpref.testbed.task import answer_places, answer_tokens, make_testbed

pytestmark = pytest.mark.slow

BETA, FLIPS = 0.4, 0.2
PAIRS = [entry for entry in LOSSES.values() if entry.takes is PairLogps]
EXPECTED = [entry for entry in PAIRS if not entry.coupled]


@pytest.fixture(scope="module")
def task():
    """Two prompts of 7 answers of one or two tokens."""
    return make_testbed(vocab=3, horizon=2, prompts=2, seed=5, reward="ngram")


@pytest.fixture
def mu(task, random_policy):
    return random_policy(task, 1, spread=0.5)


def defaults(entry):
    return {entry.regularisation: BETA} if entry.regularisation else {}


def expected(task, loss, mu, preference=None):
    preference = preference or preferences.bradley_terry(task)
    return population.expected_loss(task, loss, task.ref, mu, preference, task.rewards)


def end(task, loss, mu, preference=None, start=None):
    found = stationary.rest(expected(task, loss, mu, preference), task.ref if start is None else start)
    return found.argmin.policy


def apart(task, one, other):
    """The larger of the KLs of any prompt, both ways round."""
    return float(torch.stack([exact.sequence_kl(task, *pair) for pair in ((one, other), (other, one))]).max())


def best_of(task, beta=BETA):
    return optima.optimum(task, task.ref, task.rewards, beta).policy


# What the population fills in


def test_the_kl_of_an_answer_is_the_sum_over_its_tokens(task, random_policy):
    policy, found = random_policy(task, 0), exact.forward_kls(task, random_policy(task, 0), task.ref)
    node = {tuple(prefix[prefix >= 0].tolist()): i for i, prefix in enumerate(task.prefixes)}
    tokens = answer_tokens(task).flatten(0, 1)
    for place in answer_places(task):
        answer = [t for t in tokens[place].tolist() if t >= 0]
        for x in range(2):
            at = [node[tuple(answer[:t])] for t in range(len(answer))]
            kls = (task.ref[x, at].exp() * (task.ref[x, at] - policy[x, at])).sum()
            assert found.flatten(1)[x, place].item() == pytest.approx(kls.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_the_sums_of_kls_carry_the_gradient(task, mu, random_policy, name):
    """Not the same as without: numerically for tdpo1, which has no stop-gradient."""
    loss = expected(task, make_loss(name, beta=BETA), mu)
    policy = random_policy(task, 0).requires_grad_()
    plain = expected(task, make_loss("dpo", beta=BETA), mu)
    (gradient,), (without,) = (torch.autograd.grad(f(policy.log_softmax(-1)), policy) for f in (loss, plain))
    assert (gradient - without).norm() > 1e-3
    if name == "tdpo1":
        torch.autograd.gradcheck(lambda logits: loss(logits.log_softmax(-1)), policy)


def test_the_soft_label_is_the_preference(task, mu):
    """Its mean over labelled pairs is E[P^2 + (1 - P)^2] over drawn ones."""
    truth = preferences.bradley_terry(task)
    p, mass = preferences.matrix(task, truth), exact.answer_logps(task, mu)[:, task.ends].exp()
    both = torch.einsum("xa,xb,xab->", mass, mass, p**2 + (1 - p) ** 2) / 2
    found = population.population_loss(task, lambda lp: lp.soft_label, task.ref, task.ref, mu, truth)
    assert found.item() == pytest.approx(both.item(), rel=1e-12)


@pytest.mark.parametrize("entry", [e for e in PAIRS if e.coupled], ids=lambda e: e.name)
def test_a_loss_that_takes_its_minibatch_as_a_whole_is_refused_by_name(task, entry):
    bare = make_loss(entry.name, **defaults(entry))
    modified = make_objective({"name": entry.name, **defaults(entry)}, (PairLogps,))
    for loss in (bare, modified):
        with pytest.raises(ValueError, match=f"'{entry.name}' takes its minibatch as a whole"):
            expected(task, loss, task.ref)


def test_columns_that_are_not_there_are_named(task):
    truth = preferences.bradley_terry(task)
    with pytest.raises(ValueError, match="chosen_score"):
        population.expected_loss(task, make_loss("rebel", beta=BETA), task.ref, task.ref, truth)
    confident = make_objective({"name": "dpo", "beta": BETA}, (PairLogps,), make_modifiers({"wpo": True}))
    with pytest.raises(ValueError, match="chosen_confidence"):
        expected(task, confident, task.ref)


# The registry's claims


@pytest.mark.parametrize("entry", EXPECTED, ids=lambda e: e.name)
def test_the_optimum_is_at_rest_under_the_losses_that_claim_it_and_no_other(task, mu, entry):
    logits = best_of(task).clone().requires_grad_()
    loss = expected(task, make_loss(entry.name, **defaults(entry)), mu)
    (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1)), logits)
    assert gradient.norm() < 1e-10 if entry.kl_optimal else gradient.norm() > 1e-6


@pytest.mark.parametrize("entry", [e for e in EXPECTED if e.kl_optimal], ids=lambda e: e.name)
def test_a_loss_that_claims_the_optimum_goes_there(task, mu, entry):
    assert apart(task, end(task, make_loss(entry.name, **defaults(entry)), mu), best_of(task)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in EXPECTED if not e.kl_optimal], ids=lambda e: e.name)
def test_a_loss_that_does_not_claim_the_optimum_goes_elsewhere(task, entry):
    """r_dpo's default charges a hundredth of a nat for a token: it is the nearest of them."""
    found = end(task, make_loss(entry.name, **defaults(entry)), task.ref)
    distance = float(exact.sequence_kl(task, found, best_of(task)).mean())
    assert distance > (1e-5 if entry.name == "r_dpo" else 1e-3)


# Closed forms. Of answers of length L, with reward r and win rate p against mu; c makes probabilities sum to 1.


def normalised(task, logps):
    """Conditionals of the policy with answer log-probs `logps(c)`, rising in c [prompts, 1, 1]: c by bisection."""
    low, high = (torch.full((task.tree.prompts, 1, 1), side * 60.0, dtype=torch.float64) for side in (-1, 1))
    for _ in range(200):
        middle = (low + high) / 2
        total = logps(middle).masked_fill(~task.ends, -torch.inf).flatten(1).logsumexp(1)[:, None, None]
        low, high = torch.where(total > 0, low, middle), torch.where(total > 0, middle, high)
    return optima.conditionals_of(task, logps(low).masked_fill(~task.ends, -torch.inf))


FORMS = {
    "gpo exponential": ({"beta": BETA, "f": "exponential"}, lambda ref, r, p, L, c: ref + (r / 2 + c) / BETA),
    "gpo savage": ({"beta": BETA, "f": "savage"}, lambda ref, r, p, L, c: ref + (r + c) / BETA),
    "gpo logistic": ({"beta": BETA, "f": "logistic"}, lambda ref, r, p, L, c: ref + (r + c) / BETA),
    "gpo square": ({"beta": BETA, "f": "square"}, lambda ref, r, p, L, c: ref + (2 * p + c) / BETA),
    "ipo sum": ({"tau": BETA}, lambda ref, r, p, L, c: ref + (p + c) / BETA),
    "ipo mean": ({"tau": BETA, "normalize": "mean"}, lambda ref, r, p, L, c: ref + L * (p + c) / BETA),
    "dpo_norm": ({"beta": BETA}, lambda ref, r, p, L, c: ref + L * (r + c) / BETA),
    "r_dpo": ({"beta": BETA, "alpha": 0.3}, lambda ref, r, p, L, c: ref + (r - 0.3 * L + c) / BETA),
    "simpo": ({"beta": 1.5, "gamma": 0.0}, lambda ref, r, p, L, c: L * (r + c) / 1.5),
    "alphapo": (
        {"beta": 1.5, "gamma": 0.0, "alpha": 0.25},
        lambda ref, r, p, L, c: -L * torch.log((1 - 0.25 * (r + c) / 1.5).clamp(min=1e-30)) / 0.25,
    ),
    "rebel": ({"beta": BETA}, lambda ref, r, p, L, c: ref + (r + c) / BETA),
    "soft_dpo": ({"beta": BETA, "eta": 2.0}, lambda ref, r, p, L, c: ref + (2 * r + c) / BETA),
    "rpo_sq": ({"beta": BETA, "eta": 0.5}, lambda ref, r, p, L, c: ref + (r / 2 + c) / BETA),
}


@pytest.mark.parametrize("name", FORMS)
def test_closed_forms(task, mu, name):
    """Whatever the distribution of the pairs: where the best margin of each pair is a difference of two numbers."""
    settings, form = FORMS[name]
    wins = duels.win_probability(task, mu, preferences.bradley_terry(task))
    known = (exact.answer_logps(task, task.ref), task.rewards, wins, exact.lengths(task))
    own = normalised(task, lambda c: form(*known, c))
    assert apart(task, end(task, make_loss(name.split()[0], **settings), mu), own) < 1e-8


def test_the_penalty_of_r_dpo_is_reward_per_token(task, mu):
    own = optima.length_penalised(task, task.ref, task.rewards, BETA, alpha=0.3).policy
    assert apart(task, end(task, make_loss("r_dpo", beta=BETA, alpha=0.3), mu), own) < 1e-8


def test_ipo_on_pairs_is_the_optimum_of_its_objective(task, mu):
    own = duels.ipo_optimum(task, task.ref, mu, preferences.bradley_terry(task), BETA)
    assert apart(task, end(task, make_loss("ipo", tau=BETA), mu), own) < 1e-8
    assert apart(task, end(task, make_loss("gpo", beta=2 * BETA, f="square"), mu), own) < 1e-8


@pytest.mark.parametrize(
    ("name", "settings", "divergence"),
    [
        ("f_dpo", {"divergence": "forward_kl"}, divergences.FORWARD_KL),
        ("f_dpo", {"divergence": "js"}, divergences.JENSEN_SHANNON),
        ("f_dpo", {"divergence": "alpha", "alpha": 0.5}, divergences.alpha_divergence(0.5)),
        ("chi_po", {"clip": 10.0}, divergences.CHI_SQUARED_KL),
        ("chi_po", {"clip": 1.2}, divergences.CHI_SQUARED_KL),
    ],
    ids=["forward KL", "Jensen-Shannon", "alpha", "chi", "chi, clipped"],
)
def test_links_lead_to_the_optimum_under_their_divergence(task, mu, name, settings, divergence):
    """With the clip, too: pairs of rewards within 2 R of each other tie all answers of this task together, and no
    other pair wants anything else than to stay clipped."""
    own = divergences.f_optimum(task, task.ref, task.rewards, BETA, divergence)
    assert apart(task, own, best_of(task)) > 1e-2
    assert apart(task, end(task, make_loss(name, beta=BETA, **settings), mu), own) < 1e-8


def test_tdpo_goes_to_one_step_of_improvement_on_the_reference(task, mu):
    """ref exp(Q/beta)/Z token by token with Q the reference's own value of the reward: sum log pi/ref + KL(ref || pi)
    along an answer is then sum (Q - V)/beta = (r - V_0)/beta. Zeng et al. 2024 (2404.11999), section 4."""
    q = torch.where(task.ends, task.rewards, 0.0)
    below = (task.ref[:, 1:].exp() * q[:, 1:]).sum(-1)  # of the prefixes of one token
    q[:, 0, 1:] = below
    own = (task.ref + q / BETA).log_softmax(-1)
    assert apart(task, own, best_of(task)) > 1e-2
    assert apart(task, end(task, make_loss("tdpo1", beta=BETA), mu), own) < 1e-8


def test_dpop_at_its_default_does_not_leave_the_reference(task, random_policy):
    """lam = 50 charges more for any answer below the reference, as some must be, than any other can win."""
    for start in (task.ref, random_policy(task, 3)):
        assert apart(task, end(task, make_loss("dpop", beta=BETA), task.ref, start=start), task.ref) < 1e-8
    assert apart(task, end(task, make_loss("dpop", beta=BETA, lam=0.5), task.ref), task.ref) > 1e-2


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_sppo_goes_to_its_target_as_near_as_probabilities_allow(task, labels):
    """Least squares around h0 = (p - 1/2)/beta under sum ref e^h = 1: h - h0 = -k e^h, with k the multiplier; hard and
    soft labels alike. The paper takes sum ref e^h0 for 1, which it exceeds."""
    wins = duels.win_probability(task, task.ref, preferences.bradley_terry(task))
    whole, target = exact.answer_logps(task, task.ref), (wins - 0.5) / BETA
    root = divergences.CHI_SQUARED_KL.log_ratio  # of v: the w with e^w + w = v + 1
    own = normalised(task, lambda c: whole + root(target - c - 1) + c)
    assert apart(task, end(task, make_loss("sppo", beta=BETA, labels=labels), task.ref), own) < 1e-8


def test_nca_at_beta_1_imitates_the_winners(task):
    """2 p l(h) + l(-h) is smallest at e^h = 2 p, which sums to 1 under the reference."""
    own = duels.chosen_policy(task, task.ref, preferences.bradley_terry(task))
    assert apart(task, end(task, make_loss("nca", beta=1.0), task.ref), own) < 1e-8


def test_a_mean_likelihood_divides_the_winners_by_their_length(task, mu):
    """-log pi(w)/|w| alone: not imitation of the winners, but of the shorter ones."""
    won = duels.chosen_policy(task, mu, preferences.bradley_terry(task))
    own = optima.conditionals_of(task, exact.answer_logps(task, won) - exact.lengths(task).log())
    assert apart(task, end(task, make_loss("unlikelihood", alpha=0.0), mu), own) < 1e-8


# Noise


def test_the_robust_loss_undoes_flips_at_their_rate_and_the_conservative_one_does_not(task, mu):
    noisy = preferences.flips(task, FLIPS)
    undone = end(task, make_loss("robust", beta=BETA, label_smoothing=FLIPS), mu, noisy)
    assert apart(task, undone, best_of(task)) < 1e-8
    biased = end(task, make_loss("dpo", beta=BETA, label_smoothing=FLIPS), mu, noisy)
    plain = end(task, make_loss("dpo", beta=BETA), mu, noisy)
    distances = [apart(task, policy, task.ref) for policy in (biased, plain, best_of(task))]
    assert distances[0] < distances[1] - 0.01 < distances[2] - 0.02


def test_soft_labels_over_dpo_have_the_same_optimum(task, mu):
    soft = make_objective({"name": "dpo", "beta": BETA}, (PairLogps,), make_modifiers({"soft_labels": True}))
    assert apart(task, end(task, soft, mu), best_of(task)) < 1e-8


# What the pairs never show


@pytest.fixture
def hollow(task):
    """Pairs without the answers in which 1 is followed by 2, and the answers that there are."""
    table = coverage.holes(task, task.ref, (1, 2))
    return optima.conditionals_of(task, table, elsewhere=task.ref), table > -torch.inf


def outside(task, policy, support):
    return (exact.answer_logps(task, policy).exp() * ~support).sum((1, 2))


def test_a_loss_of_margins_leaves_the_mass_outside_the_support_to_the_start(task, hollow, random_policy):
    mu, support = hollow
    loss = make_loss("dpo", beta=BETA)
    ends = [end(task, loss, mu, start=start) for start in (task.ref, random_policy(task, 3, spread=2.0))]
    values = [float(expected(task, loss, mu)(policy)) for policy in ends]
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    among = [(exact.answer_logps(task, p).masked_fill(~support, -torch.inf)).flatten(1).log_softmax(1) for p in ends]
    torch.testing.assert_close(among[0], among[1], rtol=0, atol=1e-4)
    assert (outside(task, ends[0], support) - outside(task, ends[1], support)).abs().max() > 0.01


def test_a_loss_that_holds_each_log_ratio_says_how_much_mass_is_left_for_the_rest(task, hollow, random_policy):
    """SPPO: the targets of the answers that the pairs show are met one by one, as they leave room for the others."""
    mu, support = hollow
    wins = duels.win_probability(task, mu, preferences.bradley_terry(task))
    wanted = exact.answer_logps(task, task.ref) + (wins - 0.5) / 4.0
    left = 1 - (wanted.exp() * support).sum((1, 2))
    assert (left > 0.01).all()
    for start in (task.ref, random_policy(task, 3)):
        found = end(task, make_loss("sppo", beta=4.0), mu, start=start)
        torch.testing.assert_close(outside(task, found, support), left, rtol=0, atol=1e-6)
