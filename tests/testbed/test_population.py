"""rlpref.testbed.population: exact expected losses against enumeration, and their minima against closed forms."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from rlpref.losses import make_loss
from rlpref.losses.inputs import PairLogps
from rlpref.models.tabular import AnswerTree
from rlpref.testbed import duels, exact, optima, population, preferences
from rlpref.testbed.task import answer_places, make_testbed

BETA, FLIPS = 0.4, 0.2


@pytest.fixture(params=[1, 2])
def each_task(request):
    """Trees of 4 and of 13 answers per prompt."""
    return make_testbed(vocab=4, horizon=request.param, prompts=2, seed=3, reward="ngram")


def truth(task):
    return preferences.bradley_terry(task)


def intransitive(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = len(answer_places(task))
    noise = torch.randn(task.tree.prompts, n, n, generator=generator, dtype=torch.float64)
    return preferences.tabulated(task, (noise - noise.mT).sigmoid())


def robust(lp, beta, rate):
    """[(1 - e) l(D) - e l(-D)]/(1 - 2e): the estimator of DPO's clean loss from labels flipped at rate e.
    Chowdhury et al. 2024 (2403.00409)."""
    logits = beta * ((lp.chosen - lp.ref_chosen) - (lp.rejected - lp.ref_rejected))
    return (-(1 - rate) * logsigmoid(logits) + rate * logsigmoid(-logits)) / (1 - 2 * rate)


def make_alone(task, x):
    """The task with the one prompt x."""
    tree = AnswerTree(task.tree.vocab, task.tree.horizon, 1)
    return replace(task, tree=tree, ref=task.ref[x : x + 1], rewards=task.rewards[x : x + 1])


def one_by_one(task, loss, policy, ref, mu, preference, scores):
    """The expectation as its definition reads: prompts, first answer, second answer, label."""
    tables = [exact.answer_logps(task, table).flatten(1) for table in (policy, ref)]
    mass, places = exact.answer_logps(task, mu).exp().flatten(1), answer_places(task)
    beats = duels.crossed(task, preference, places, places)
    size = (task.depth[:, None] + 1.0).double().expand_as(task.ends).flatten()
    total = 0.0
    for x in range(task.tree.prompts):
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                for chance, won, lost in ((beats[x, i, j], a, b), (1 - beats[x, i, j], b, a)):
                    at = [table[x, place] for table in tables for place in (won, lost)]
                    at += [table[place] for table in (size, scores[x].flatten()) for place in (won, lost)]
                    pair = PairLogps(*(value.reshape(1) for value in at))
                    total += float(mass[x, a] * mass[x, b] * chance * loss(pair)) / task.tree.prompts
    return total


LOSSES = {
    "dpo": make_loss("dpo", beta=BETA),
    "cdpo": make_loss("dpo", beta=BETA, label_smoothing=FLIPS),
    "ipo": make_loss("ipo", tau=0.2, normalize="sum"),
    "ipo per token": make_loss("ipo", tau=0.2, normalize="mean"),
    "of scores": lambda lp: lp.chosen * (lp.chosen_score - 2 * lp.rejected_score),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_population_loss_is_the_sum_over_prompts_pairs_and_labels(random_policy, name):
    task = make_testbed(vocab=3, horizon=2, prompts=2, seed=3, reward="ngram")
    policy, ref, mu = (random_policy(task, seed) for seed in range(3))
    arguments = (task, LOSSES[name], policy, ref, mu, intransitive(task), task.rewards)
    assert population.population_loss(*arguments).item() == pytest.approx(one_by_one(*arguments), rel=1e-12)


def test_an_annotator_who_favours_the_answer_shown_first_is_allowed_for(random_policy):
    """P(a beats b) is then asked in both orders, and the two do not add up to 1."""
    task = make_testbed(vocab=3, horizon=2, prompts=2, seed=3, reward="ngram")
    fair = truth(task)
    arguments = (task, LOSSES["dpo"], random_policy(task, 0), task.ref, random_policy(task, 2))

    biased = preferences.Preference(lambda *pair: 0.7 + 0.3 * fair(*pair))

    found = population.population_loss(*arguments, biased).item()
    assert found == pytest.approx(one_by_one(*arguments, biased, task.rewards), rel=1e-12)
    assert found != pytest.approx(population.population_loss(*arguments, fair).item(), rel=1e-3)


def test_of_a_constant_loss_the_expectation_is_the_constant(task, random_policy):
    loss = population.population_loss(
        task, lambda lp: torch.full_like(lp.chosen, 3.0), task.ref, task.ref, random_policy(task, 0), truth(task)
    )
    assert loss.item() == pytest.approx(3.0)


def test_chunks_change_neither_the_loss_nor_its_gradient(task, random_policy, monkeypatch):
    def value_and_gradient():
        policy = random_policy(task, 0).requires_grad_()
        loss = population.population_loss(task, LOSSES["dpo"], policy, task.ref, random_policy(task, 1), truth(task))
        return loss.detach(), *torch.autograd.grad(loss, policy)

    whole = value_and_gradient()
    monkeypatch.setattr(population, "PAIRS_AT_ONCE", 70)  # two rows of 15 answers and 2 prompts
    torch.testing.assert_close(value_and_gradient(), whole)


def test_the_gradient_is_that_of_finite_differences(random_policy):
    task = make_testbed(vocab=3, horizon=2, prompts=1, seed=3, reward="ngram")

    def loss(logits):
        return population.population_loss(
            task, LOSSES["dpo"], logits.log_softmax(-1), task.ref, task.ref, intransitive(task)
        )

    torch.autograd.gradcheck(loss, random_policy(task, 0).requires_grad_())


def test_answers_that_are_never_drawn_do_not_count(task, random_policy):
    """`mu` without answers that open with token 1: what the policy says about those is not read."""
    whole = exact.answer_logps(task, task.ref)
    opens_with_1 = (task.prefixes[:, 0] == 1)[:, None] & torch.ones(3, dtype=torch.bool)
    mu = optima.conditionals_of(task, whole.masked_fill(opens_with_1, float("-inf")))
    policy = random_policy(task, 0).requires_grad_()
    loss = population.population_loss(task, LOSSES["dpo"], policy, task.ref, mu, truth(task))
    (gradient,) = torch.autograd.grad(loss, policy)
    below = task.prefixes[:, 0] == 1
    assert (gradient[:, below] == 0).all()
    assert gradient[:, ~below].abs().sum() > 0.01


def test_each_prompt_may_have_answers_of_its_own(task, random_policy):
    """Prompt 0 never opens with token 1 and prompt 1 never with 2, neither in the pairs nor in the reference."""
    whole = exact.answer_logps(task, task.ref).clone()
    for x, token in ((0, 1), (1, 2)):
        whole[x, task.prefixes[:, 0] == token] = float("-inf")
    mu = optima.conditionals_of(task, whole)
    policy = random_policy(task, 0).requires_grad_()
    loss = population.population_loss(task, LOSSES["dpo"], policy, mu, mu, truth(task))
    (gradient,) = torch.autograd.grad(loss, policy)
    assert torch.isfinite(gradient).all()
    alone = [make_alone(task, x) for x in (0, 1)]
    each = [
        population.population_loss(one, LOSSES["dpo"], policy[x : x + 1], mu[x : x + 1], mu[x : x + 1], truth(one))
        for x, one in enumerate(alone)
    ]
    assert loss.item() == pytest.approx(sum(each).item() / 2)


def test_the_minimum_of_dpo_is_the_optimum_of_the_objective(each_task):
    """Any distribution of pairs with full support gives the same minimum, if labels are Bradley-Terry."""
    task = each_task
    best = optima.optimum(task, task.ref, task.rewards, BETA).policy
    assert exact.sequence_kl(task, task.ref, best).min() > 0.1
    for mu in (task.ref, 0.5 * task.ref - 0.5 * torch.linspace(0, 1, 4).double()):
        found = population.population_argmin(task, LOSSES["dpo"], task.ref, mu.log_softmax(-1), truth(task))
        assert exact.sequence_kl(task, best, found.policy).max() < 1e-8
        assert exact.sequence_kl(task, found.policy, best).max() < 1e-8
        assert found.gradient < 1e-6


def test_two_rounds_of_dpo_with_a_rolling_reference_end_at_half_of_beta(each_task):
    """The second round draws its pairs from the first one's policy, and takes it as the reference or does not."""
    task = each_task
    first = population.population_argmin(task, LOSSES["dpo"], task.ref, task.ref, truth(task)).policy
    for ref, beta in ((first, BETA / 2), (task.ref, BETA)):
        second = population.population_argmin(task, LOSSES["dpo"], ref, first, truth(task)).policy
        assert exact.sequence_kl(task, second, optima.optimum(task, task.ref, task.rewards, beta).policy).max() < 1e-8


def test_the_minimum_of_ipo_is_its_own_optimum(each_task, random_policy):
    """For a preference that no reward expresses, and pairs from another policy than the reference."""
    task, mu, preference = each_task, random_policy(each_task, 1, spread=0.5), intransitive(each_task)
    own = duels.ipo_optimum(task, task.ref, mu, preference, tau=0.2)
    found = population.population_argmin(task, LOSSES["ipo"], task.ref, mu, preference)
    assert exact.sequence_kl(task, found.policy, own).max() < 1e-8
    assert exact.sequence_kl(task, own, task.ref).min() > 0.01


def test_the_end_does_not_depend_on_the_start(each_task, random_policy):
    task = each_task
    ends = [
        population.population_argmin(task, LOSSES["dpo"], task.ref, task.ref, intransitive(task), start=start).policy
        for start in (None, random_policy(task, 5, spread=0.5))
    ]
    assert exact.sequence_kl(task, *ends).max() < 1e-8


def test_the_robust_loss_under_flips_has_the_clean_optimum_and_dpo_has_not(each_task):
    task = each_task
    clean = optima.optimum(task, task.ref, task.rewards, BETA).policy
    noisy = preferences.flips(task, FLIPS)

    def minimum(loss, preference):
        return population.population_argmin(task, loss, task.ref, task.ref, preference).policy

    found = minimum(lambda lp: robust(lp, BETA, FLIPS), noisy)
    assert exact.sequence_kl(task, found, clean).max() < 1e-8
    shrunken = minimum(LOSSES["dpo"], noisy)
    assert exact.sequence_kl(task, clean, shrunken).min() > 0.01
    distances = [exact.sequence_kl(task, policy, task.ref) for policy in (shrunken, clean)]
    assert (distances[0] < distances[1]).all()


def test_conservative_dpo_on_clean_labels_is_dpo_on_flipped_ones(each_task, random_policy):
    """The two losses are one function; so its minimum is not pi* either."""
    task, policy = each_task, random_policy(each_task, 0)
    arguments = (policy, task.ref, task.ref)
    smoothed = population.population_loss(task, LOSSES["cdpo"], *arguments, truth(task))
    flipped = population.population_loss(task, LOSSES["dpo"], *arguments, preferences.flips(task, FLIPS))
    torch.testing.assert_close(smoothed, flipped)
    clean = optima.optimum(task, task.ref, task.rewards, BETA).policy
    found = population.population_argmin(task, LOSSES["cdpo"], task.ref, task.ref, truth(task)).policy
    assert exact.sequence_kl(task, found, clean).min() > 0.01


def test_a_few_thousand_answers_fit():
    task = make_testbed(vocab=8, horizon=4, prompts=1, seed=0, reward="ngram")  # 2,801 answers, 7.8 million pairs
    policy = task.ref.clone().requires_grad_()
    loss = population.population_loss(task, LOSSES["dpo"], policy, task.ref, task.ref, truth(task))
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    (gradient,) = torch.autograd.grad(loss, policy)
    assert torch.isfinite(gradient).all()
