"""The ordinary evaluator against truth: what it samples lies within 4 standard errors of what enumeration gives.

Policies near and far from the reference, answers that end early, prompts padded with junk, temperatures 1 and
0.7. The truth at a temperature is that of the tempered policy against the tempered reference: what is sampled.
"""

from dataclasses import replace

import pytest
import torch

from rlpref.evaluation.evaluator import Evaluator
from rlpref.evaluation.exact import make_exact
from rlpref.evaluation.measure import draw
from rlpref.models.reference import freeze
from rlpref.models.tiny import tiny_llama
from rlpref.ops.kl import k1, k2, k3
from rlpref.testbed import exact
from rlpref.testbed.task import conditionals, make_testbed
from rlpref.types import Prompts

VOCAB, HORIZON, PROMPTS = 4, 4, 20
ANSWERS = {"tabular": 1000, "llama": 500}  # to each prompt
CASES = [(kind, far, t) for kind in ANSWERS for far in (False, True) for t in (1.0, 0.7)]
NAMES = [f"{kind}-{'far' if far else 'near'}-{t}" for kind, far, t in CASES]


def eager_to_end(table):
    """A policy that ends many answers early."""
    table = table.clone()
    table[:, :, 0] += 0.7
    return table.log_softmax(-1)


def tabular_case(task, random_policy, testbed_models, far, temperature):
    policy = random_policy(task, 1) if far else task.ref + 0.2 * random_policy(task, 1)
    return testbed_models(task, eager_to_end(policy), temperature, chunk=4096)


def llama_case(task, testbed_models, far, temperature):
    """Reference and policy differ by a little in every weight, or by their seeds."""
    ref, other = (tiny_llama(VOCAB, HORIZON, PROMPTS, hidden_size=16, layers=2, heads=2, seed=s) for s in (0, 1))
    with torch.no_grad():
        for model in (ref, other):
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter *= 10
        if not far:
            for parameter, moved in zip(ref.parameters(), other.parameters()):
                moved.copy_(parameter + 0.1 * moved)
    models = testbed_models(task, temperature=temperature, chunk=4096)
    models.policy, models.ref = other, freeze(ref)
    models.initial = models.ref
    return models


def padded_prompts(uneven):
    """One token each behind padding that holds junk. `uneven`: every row has its token 1, 2 or 3 times, which
    is all the same to a table, and so rows differ in how much padding they have."""
    row, column = torch.arange(PROMPTS)[:, None], torch.arange(3)
    real = column >= 2 - row % 3 * uneven
    return Prompts(torch.where(real, row + VOCAB, 2), real)


@pytest.fixture
def case(request, random_policy, testbed_models, testbed_data):
    """(evaluator, task, exact conditionals of policy and reference at the temperature)."""
    kind, far, temperature = request.param
    task = make_testbed(VOCAB, HORIZON, PROMPTS, seed=0, reward="ngram")
    if kind == "tabular":
        models = tabular_case(task, random_policy, testbed_models, far, temperature)
    else:
        models = llama_case(task, testbed_models, far, temperature)
    data = testbed_data(task, models)
    data = replace(data, test_prompts=padded_prompts(uneven=kind == "tabular"))
    evaluator = Evaluator(models, data, make_exact(task, models, 0.5), ("policy",), 64, ANSWERS[kind], 10, 0, seed=0)
    with torch.no_grad():
        policy, ref = (conditionals(task, m, temperature) for m in (models.policy, models.initial.model))
    return evaluator, task, policy, ref


def exact_win_rate(task, policy, ref):
    """Probability that the policy's answer has a higher reward than the reference's, a tie counting one half.
    In fp32, as scores are: sums of equal weights in another order are ties there."""
    total = 0.0
    for x in range(PROMPTS):
        rewards = task.rewards[x][task.ends].float()
        p, q = (exact.answer_logps(task, table)[x].exp()[task.ends] for table in (policy, ref))
        difference = rewards[:, None] - rewards[None, :]
        total += float((p[:, None] * q[None, :] * ((difference > 0) + 0.5 * (difference == 0))).sum())
    return total / PROMPTS


def truth(task, policy, ref):
    tokens = (task.depth[:, None] + 1.0).double().expand(task.ends.shape)
    per_prompt = {
        "reward": exact.expectation(task, policy, task.rewards),
        "ref_reward": exact.expectation(task, ref, task.rewards),
        "kl": exact.sequence_kl(task, policy, ref),
        "kl_mc": exact.sequence_kl(task, policy, ref),
        "entropy": exact.entropy(task, policy),
        "length": exact.expectation(task, policy, tokens),
    }
    values = {name: float(value.mean()) for name, value in per_prompt.items()}
    return values | {"win_rate": exact_win_rate(task, policy, ref)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=NAMES, indirect=True)
def test_the_evaluator_samples_the_truth(case):
    evaluator, task, policy, ref = case
    row, _ = evaluator(0)
    expected = truth(task, policy, ref)
    for name, value in expected.items():
        assert 0 < row[f"eval/{name}_se"] < 0.05
        assert abs(row[f"eval/{name}"] - value) < 4 * row[f"eval/{name}_se"], name
    ended = float(exact.expectation(task, policy, (torch.arange(VOCAB) == 0).double().expand(task.ends.shape)).mean())
    n = PROMPTS * evaluator.k
    assert 0.1 < ended < 0.99
    assert abs(row["eval/eos_rate"] - ended) < 4 * (ended * (1 - ended) / n) ** 0.5
    for name in ("reward", "kl", "entropy", "length"):
        assert abs(row.get(f"exact/{name}", expected[name]) - expected[name]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c[1:] == (True, 0.7)], ids=list(ANSWERS), indirect=True)
def test_the_kl_of_another_distribution_is_told_apart(case):
    """The test above is sharp enough: the KL of the untempered policies lies outside its interval."""
    evaluator, task, _, _ = case
    row, _ = evaluator(0)
    with torch.no_grad():
        plain = [conditionals(task, m) for m in (evaluator.models.policy, evaluator.models.initial.model)]
    wrong = float(exact.sequence_kl(task, *plain).mean())
    for name in ("kl", "kl_mc"):
        assert abs(row[f"eval/{name}"] - wrong) > 8 * row[f"eval/{name}_se"]


def sampled_log_ratios(evaluator):
    """[answers, T] log policy/reference of sampled tokens, 0 outside the answers: production code only."""
    m = evaluator.models
    samples = draw(m.policy, m, evaluator.data.test_prompts, evaluator.k, [1])
    compared = m.compare_with_initial(samples.sequences)
    torch.testing.assert_close(compared.logps, samples.logps, atol=1e-4, rtol=0)
    return (compared.logps - compared.ref_logps).double()


def within(estimates, mean, variance):
    """Error in units of the exact standard error; prompts are fixed, answers are random. The sampled error would be too
    small for k3, whose rare large values are most of its variance. `mean` and `variance` are [prompts]."""
    error = (variance / (len(estimates) // PROMPTS)).sum().sqrt() / PROMPTS
    return float((estimates.mean() - mean.mean()) / error)


def moments(logps, values):
    """Exact mean and variance [prompts] of a number of each answer [prompts, answers]."""
    p = logps.exp()
    mean = (p * values).sum(1)
    return mean, (p * values**2).sum(1) - mean**2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=NAMES, indirect=True)
def test_the_kl_estimators_have_their_exact_means(case):
    """k1, k2, k3 of whole answers and summed over tokens. k1 and k3 mean the KL; k2 means what it means."""
    evaluator, task, policy, ref = case
    log_ratios = sampled_log_ratios(evaluator)
    kl = exact.sequence_kl(task, policy, ref)
    whole = [exact.answer_logps(task, table)[:, task.ends] for table in (policy, ref)]
    for estimator in (k1, k2, k3):
        of_answer = estimator(whole[0] - whole[1])
        summed = exact.answer_logps(task, estimator(policy - ref))[:, task.ends]  # its sum along the answer
        for values, sampled in ((of_answer, estimator(log_ratios.sum(1))), (summed, estimator(log_ratios).sum(1))):
            mean, variance = moments(whole[0], values)
            if estimator is not k2:
                torch.testing.assert_close(mean, kl)
            assert abs(within(sampled, mean, variance)) < 4


@pytest.mark.parametrize("case", [c for c in CASES if c[1:] == (True, 1.0)], ids=list(ANSWERS), indirect=True)
def test_far_from_the_reference_k2_is_not_the_kl(case):
    evaluator, task, policy, ref = case
    log_ratios = sampled_log_ratios(evaluator)
    kl = exact.sequence_kl(task, policy, ref)
    for sampled in (k2(log_ratios.sum(1)), k2(log_ratios).sum(1)):
        assert abs(within(sampled, kl, sampled.view(PROMPTS, -1).var(1))) > 4
