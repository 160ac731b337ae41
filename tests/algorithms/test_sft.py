import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.ops.logps import token_logps


def test_the_loss_is_the_token_mean_nll_of_the_chosen_answers(task, random_policy, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models)
    models.policy.set_conditionals(random_policy(task, 1))
    algorithm = make_algorithm("sft", {"epochs": 1, "batch_size": 16}, "sft")
    batch = algorithm.collect(models, data, Round(0, [torch.Generator()], [Costs()]))
    assert torch.equal(batch.sequences.ids, data.train.chosen.ids)
    loss = algorithm.loss(models, batch)
    lengths = batch.sequences.lengths
    assert lengths.unique().numel() > 1
    expected = -token_logps(models.policy, batch.sequences)[0].sum() / lengths.sum()
    torch.testing.assert_close((loss.weight * loss.value).sum() / loss.weight.sum(), expected)


def test_a_row_with_weight_counts_by_it(task, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models)
    data.train.weight = torch.linspace(0.5, 2, len(data.train))
    algorithm = make_algorithm("sft", {"epochs": 1, "batch_size": 16}, "sft")
    batch = algorithm.collect(models, data, Round(0, [torch.Generator()], [Costs()]))
    weight = algorithm.loss(models, batch).weight
    torch.testing.assert_close(weight, data.train.chosen.lengths * data.train.weight)
