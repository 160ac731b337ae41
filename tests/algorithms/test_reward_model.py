import math

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.models.heads import scalar_model


def test_it_learns_the_order_of_the_pairs_and_leaves_the_policy(task, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models, pairs=200)
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    algorithm = make_algorithm("reward_model", {"epochs": 1, "batch_size": 200}, "reward_model")
    pairs = algorithm.collect(models, data, Round(0, [torch.Generator()], [Costs()]))
    before = {name: p.clone() for name, p in models.policy.named_parameters()}
    optimizer = torch.optim.Adam(models.reward_model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = algorithm.loss(models, pairs)
        loss.value.mean().backward()
        optimizer.step()
        losses.append(loss.value.mean().item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.2)
    assert losses[-1] < 0.6
    agrees = (loss.metrics["rewards/margins"] > 0).float()
    untied = (pairs.chosen.ids != pairs.rejected.ids).any(1)
    assert loss.metrics["rewards/accuracies"][untied].mean().item() == pytest.approx(agrees[untied].mean().item())
    assert (loss.metrics["rewards/accuracies"][~untied] == 0.5).all()
    assert all(torch.equal(p, before[name]) for name, p in models.policy.named_parameters())
    assert all(p.grad is None for p in models.policy.parameters())
