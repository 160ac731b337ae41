"""The natural gradient against the Fisher matrix written out, and a step that keeps its bound."""

import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.natural import check_size, conjugate_gradients, fisher_product, next_logps
from rlpref.binding import ConfigError
from rlpref.models.heads import scalar_model
from rlpref.ops.blocks import Unstackable
from rlpref.update import Passes, backward, parameters

SETTINGS = {
    "beta": 0.3,
    "rounds": 3,
    "prompts_per_round": 4,
    "k": 8,
    "delta": 0.01,
    "damping": 1e-3,
    "cg_iterations": 40,
    "backtracks": 10,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "eos_rule": "none",
    "eos_penalty": None,
    "vf_coef": 0.5,
    "critic_init": "policy",
    "critic_lr_scale": 1.0,
}


def trpo(**changes):
    return make_algorithm("trpo", SETTINGS | changes, "trpo")


@pytest.fixture
def laboratory(laboratory):
    models, data = laboratory
    models.critic = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    models.policy.double(), models.critic.double()
    return models, data


def gradients_of(algorithm, models, data):
    """A round, whose gradients are on the policy; one update's worth."""
    batch = algorithm.collect(models, data, Round(0, [torch.Generator().manual_seed(0)], [Costs()]))
    trained = {"policy": models.policy, "critic": models.critic}
    backward(algorithm, models, batch, Passes(64), [parameters(trained)])
    return batch


def weights(models):
    return models.policy.model.rows.weight


def explicit_fisher(models, batch):
    """[n, n] mean over the tokens of E_p[grad log p (grad log p)'], from the derivative of every log-prob."""
    model, table = models.policy, weights(models)
    sequences = batch.sequences

    def logps(rows):
        out = torch.func.functional_call(
            model,
            {"model.rows.weight": rows},
            kwargs={
                "input_ids": sequences.ids[:, :-1],
                "attention_mask": sequences.attention_mask[:, :-1].long(),
                "logits_to_keep": sequences.ids.shape[1] - 1,
            },
        )
        return out.logits[sequences.mask[:, 1:]].log_softmax(-1)

    derivative = torch.func.jacrev(logps)(table.detach()).flatten(2)  # [tokens, vocab, n]
    chance = logps(table.detach()).exp()
    return torch.einsum("tv,tvi,tvj->ij", chance, derivative, derivative) / len(chance)


def test_conjugate_gradients_solve_the_fisher_matrix_written_out(laboratory):
    models, data = laboratory
    batch = gradients_of(trpo(), models, data)
    fisher = explicit_fisher(models, batch)
    damped = fisher + 1e-3 * torch.eye(len(fisher), dtype=fisher.dtype)
    product = fisher_product(next_logps(models, batch.sequences), [weights(models)], damping=1e-3)
    for seed in range(3):
        v = torch.randn(len(fisher), generator=torch.Generator().manual_seed(seed), dtype=fisher.dtype)
        torch.testing.assert_close(product(v), damped @ v)
    gradient = weights(models).grad.flatten()
    found = conjugate_gradients(product, gradient, iterations=len(fisher))
    torch.testing.assert_close(found, torch.linalg.solve(damped, gradient), rtol=1e-4, atol=1e-4)
    assert gradient.norm() > 1e-2


def test_the_step_goes_along_the_natural_gradient_and_not_along_the_gradient(laboratory):
    models, data = laboratory
    algorithm = trpo(delta=1e-4)
    batch = gradients_of(algorithm, models, data)
    fisher = explicit_fisher(models, batch) + 1e-3 * torch.eye(weights(models).numel(), dtype=torch.float64)
    before, gradient = weights(models).detach().clone(), weights(models).grad.flatten().clone()
    algorithm.before_step(models, batch, 0)
    moved = (weights(models).detach() - before).flatten()
    natural = -torch.linalg.solve(fisher, gradient)
    assert torch.cosine_similarity(moved, natural, 0) > 1 - 1e-6
    assert torch.cosine_similarity(moved, -gradient, 0) < 0.99


@pytest.mark.parametrize("delta", [1e-4, 1e-2, 0.3, 5.0])
def test_no_step_leaves_the_bound_on_the_kl(laboratory, delta):
    models, data = laboratory
    algorithm = trpo(delta=delta)
    batch = gradients_of(algorithm, models, data)
    old = next_logps(models, batch.sequences).detach()
    found = algorithm.before_step(models, batch, 0)
    new = next_logps(models, batch.sequences).detach()
    kl = (old.exp() * (old - new)).sum(-1).mean()
    assert 0 < kl <= delta
    assert found["trpo/kl"].item() == pytest.approx(kl.item())
    assert found["trpo/improvement"] > 0
    if delta <= 1e-2:  # where the quadratic holds, the bound is nearly met at once
        assert kl > 0.5 * delta
        assert found["trpo/halvings"] <= 1
    assert weights(models).grad is None  # the optimizer leaves the policy alone
    assert models.critic.head.weight.grad.abs().sum() > 0


def test_where_nothing_improves_no_step_is_taken(laboratory):
    models, data = laboratory
    algorithm = trpo()
    batch = gradients_of(algorithm, models, data)
    weights(models).grad.neg_()
    before = weights(models).detach().clone()
    found = algorithm.before_step(models, batch, 0)
    assert torch.equal(weights(models), before)
    assert found["trpo/kl"] == found["trpo/improvement"] == 0


def test_the_optimizer_has_no_rate_for_the_policy():
    assert trpo().trains == {"policy": 0.0, "critic": 1.0}


def test_several_runs_are_refused_side_by_side(laboratory):
    models, data = laboratory
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with pytest.raises(Unstackable, match="line search of a natural gradient"):
        trpo().collect(models, data, Round(0, generators, [Costs(), Costs()]))


def test_a_large_model_is_refused_by_name():
    large = torch.nn.Linear(1000, 1001)
    with pytest.raises(ConfigError, match="'trpo' solves for all 1,002,001 parameters of Linear at once"):
        check_size(trpo(), large)
    check_size(trpo(), torch.nn.Linear(10, 10))
    check_size(make_algorithm("sft", {"epochs": 1, "batch_size": 4}, "sft"), large)


@pytest.mark.parametrize("key", ["delta", "damping", "cg_iterations", "backtracks"])
def test_sizes_that_are_none_are_refused(key):
    with pytest.raises(ConfigError, match=f"algorithm.{key} must be above 0, not 0"):
        trpo(**{key: 0})
