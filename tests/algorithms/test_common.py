import math

import pytest
import torch

from rlpref.algorithms import on_pairs
from rlpref.algorithms.algorithm import Costs, Round, StartError
from rlpref.algorithms.common import (
    choose_prompts,
    require_equal,
    sample_answers,
    score,
)
from rlpref.algorithms.objective import objective_loss, with_reference
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import make_objective
from rlpref.types import Pairs, Prompts


def objective(name, **hyperparameters):
    return make_objective({"name": name} | hyperparameters, (PairLogps,))


def prompts(n):
    return Prompts(torch.arange(n)[:, None], torch.ones(n, 1, dtype=torch.bool))


def test_all_prompts_come_once_before_any_comes_twice():
    generator = torch.Generator().manual_seed(0)
    for n in (3, 5, 12):
        chosen = choose_prompts(prompts(5), n, [generator]).ids[:, 0].tolist()
        assert len(chosen) == n
        for start in range(0, n, 5):
            block = chosen[start : start + 5]
            assert len(set(block)) == len(block)


def test_prompts_are_chosen_in_another_order_each_time():
    generator = torch.Generator().manual_seed(0)
    first, second = (choose_prompts(prompts(20), 20, [generator]).ids[:, 0].tolist() for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_the_implicit_reward_is_scaled_by_what_the_loss_calls_its_strength():
    assert objective("dpo", beta=0.3).scale == 0.3
    assert objective("ipo", tau=0.2).scale == 0.2
    assert objective("simpo").scale == 2.0
    assert objective("simper").scale == 1.0


def test_metrics_of_pairs_are_the_scaled_log_ratios(task, random_policy, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models)
    models.policy.set_conditionals(random_policy(task, 1))
    dpo = objective("dpo", beta=0.3)
    pairs = with_reference(models, dpo, data.train)
    lp = on_pairs.logps(models, dpo, pairs)
    found = objective_loss(models, dpo, dpo.scale, pairs)
    ratios = 0.3 * (lp.chosen - pairs.ref_chosen), 0.3 * (lp.rejected - pairs.ref_rejected)
    torch.testing.assert_close(found.metrics["rewards/chosen"], ratios[0].detach())
    torch.testing.assert_close(found.metrics["rewards/margins"], (ratios[0] - ratios[1]).detach())
    right = (ratios[0] > ratios[1]).float()
    tied = (pairs.chosen.ids == pairs.rejected.ids).all(1)
    assert tied.any()  # both answers of a pair may be the same: neither right nor wrong
    assert torch.equal(found.metrics["rewards/accuracies"][~tied], right[~tied])
    assert (found.metrics["rewards/accuracies"][tied] == 0.5).all()
    assert found.value[tied].tolist() == pytest.approx([math.log(2)] * int(tied.sum()), abs=1e-5)
    assert found.value.requires_grad
    assert not any(metric.requires_grad for metric in found.metrics.values())


def test_a_pair_with_weight_counts_by_it(task, testbed_models, testbed_data):
    models = testbed_models(task)
    dpo = objective("dpo", beta=0.3)
    pairs = with_reference(models, dpo, testbed_data(task, models).train)
    pairs.weight = torch.linspace(0, 1, len(pairs))
    assert torch.equal(objective_loss(models, dpo, dpo.scale, pairs).weight, pairs.weight)


def test_a_swap_of_chosen_and_rejected_flips_every_sign(task, random_policy, testbed_models, testbed_data):
    models = testbed_models(task)
    models.policy.set_conditionals(random_policy(task, 1))
    dpo = objective("dpo", beta=0.3)
    pairs = with_reference(models, dpo, testbed_data(task, models).train)
    other = Pairs(pairs.rejected, pairs.chosen, pairs.ref_rejected, pairs.ref_chosen)
    right, swapped = (objective_loss(models, dpo, 0.3, each).metrics for each in (pairs, other))
    torch.testing.assert_close(right["rewards/margins"], -swapped["rewards/margins"])
    torch.testing.assert_close(right["rewards/accuracies"], 1 - swapped["rewards/accuracies"])
    torch.testing.assert_close(right["rewards/chosen"], swapped["rewards/rejected"])


def test_samples_labels_and_tokens_are_counted(task, testbed_models, testbed_data):
    models = testbed_models(task)
    round = Round(0, [torch.Generator().manual_seed(0)], [Costs()])
    samples = sample_answers(models, testbed_data(task, models).prompts, 3, round)
    score(models, samples.sequences, round)
    assert round.costs[0].samples == round.costs[0].labels == 3 * task.tree.prompts
    assert round.costs[0].tokens == int(samples.sequences.attention_mask.sum())


@pytest.mark.parametrize("found", [1.2, 0.8, float("nan")])
def test_a_start_that_is_off_is_named(found):
    require_equal("the loss", 1.05, 1.0, 0.1)
    with pytest.raises(StartError, match="the loss should be 1 but is"):
        require_equal("the loss", found, 1.0, 0.1)
