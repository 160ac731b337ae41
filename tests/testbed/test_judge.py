"""The fitted judge: a minimum of its own loss, right where it can be."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from rlpref.testbed.coverage import draw_pairs, reference
from rlpref.testbed.exact import expectation
from rlpref.testbed.judge import fit_linear, judge_scores
from rlpref.testbed.preferences import bradley_terry
from rlpref.testbed.rewards import ngram_worth, standardised
from rlpref.testbed.task import make_testbed


def test_the_fit_is_the_minimum_of_the_penalised_likelihood():
    """By the gradient through the scores of all answers, a way that the fit itself does not take."""
    task = make_testbed(4, 3, 2, seed=0, reward="order")
    generator = torch.Generator().manual_seed(0)
    prompt, answers = draw_pairs(task, reference(task, task.ref), 50, generator)
    weights = [w.requires_grad_() for w in fit_linear(task, prompt, *answers.T, 0.01)]
    scores = ngram_worth(task, *weights).flatten(1)
    margin = scores[prompt, answers[:, 0]] - scores[prompt, answers[:, 1]]
    loss = -logsigmoid(margin).mean() + 0.005 * sum((w**2).sum() for w in weights)
    gradients = torch.autograd.grad(loss, weights)
    for weight, gradient in zip(weights, gradients):
        # the fit has no weights for EOS, which is no part of an answer
        real = gradient[1 if len(gradient) == 4 else 0 :, 1:]
        assert real.abs().max() < 1e-8
        assert (weight[:, 0] == 0).all()


def agreement(reward, labels):
    """Mean correlation of the judge's scores with the gold reward under the reference."""
    task = make_testbed(4, 3, 2, seed=0, reward=reward)
    scores = judge_scores(task, bradley_terry(task), labels, torch.Generator().manual_seed(0), l2=1e-4)
    return expectation(task, task.ref, standardised(task, scores) * task.rewards).mean().item()


def test_more_labels_make_a_better_judge_and_only_a_linear_reward_a_right_one():
    few, many = agreement("ngram", 20), agreement("ngram", 20_000)
    assert few < 0.9
    assert many > 0.99
    assert agreement("order", 20_000) < 0.98


def test_the_seed_makes_the_judge():
    task = make_testbed(4, 3, 2, seed=0, reward="ngram")
    same, again, other = (
        judge_scores(task, bradley_terry(task), 40, torch.Generator().manual_seed(s), 1e-3) for s in (0, 0, 1)
    )
    assert torch.equal(same, again)
    assert not torch.allclose(same, other)
    assert same[0, 0, 0].item() == pytest.approx(0)  # the empty answer has no tokens
