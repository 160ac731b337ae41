import math

import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.ops.logps import token_logps


def test_one_round_over_the_given_pairs_with_the_references_log_probs(task, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models)
    settings = {"loss": {"name": "dpo", "beta": 0.5}, "epochs": 2, "batch_size": 16}
    algorithm = make_algorithm("offline", settings, "dpo")
    round = Round(0, [torch.Generator()], [Costs()])
    pairs = algorithm.collect(models, data, round)
    assert (algorithm.rounds, algorithm.epochs, algorithm.examples(data, 0)) == (1, 2, len(pairs))
    assert torch.equal(pairs.chosen.ids, data.train.chosen.ids)
    torch.testing.assert_close(pairs.ref_chosen, token_logps(models.initial.model, pairs.chosen)[0].sum(1))
    torch.testing.assert_close(pairs.ref_rejected, token_logps(models.initial.model, pairs.rejected)[0].sum(1))
    assert (round.costs[0].labels, round.costs[0].samples) == (len(pairs), 0)
    loss = algorithm.loss(models, pairs)
    torch.testing.assert_close(loss.value, torch.full_like(loss.value, math.log(2)))
