"""Where the reference stands after each step and round, by rule."""

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.models.hashing import base_hash, weights_hash
from rlpref.models.lm import apply_lora
from rlpref.models.reference import freeze
from rlpref.models.reference_rule import reference_rule
from rlpref.models.tabular import TabularLM
from rlpref.models.tiny import tiny_llama

STEPS = 7


def table():
    return TabularLM(4, 2, 4)


def adapted():
    torch.manual_seed(0)
    base = tiny_llama(vocab=4, horizon=2, prompts=4, hidden_size=16, layers=1, heads=2, seed=0)
    return apply_lora(base, {"r": 2, "alpha": 4, "dropout": 0, "target_modules": "all-linear"})


def step(policy, index) -> None:
    """An update that differs from step to step."""
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def weights(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def path(policy, rule):
    """Weights of the policy after 0, 1, ... steps, those of the reference then, and the steps at which it moved."""
    reference = rule.start(policy, freeze(policy))
    policies, references, moved = [weights(policy)], [weights(reference.model)], []
    for index in range(1, STEPS + 1):
        step(policy, index)
        if rule.after_step(index, policy, reference):
            moved.append(index)
        policies.append(weights(policy))
        references.append(weights(reference.model))
    return policies, references, moved


@pytest.mark.parametrize("build", [table, adapted])
@pytest.mark.parametrize("every", [1, 3])
def test_sync_is_the_policy_of_the_last_multiple_of_every(build, every):
    policies, references, moved = path(build(), reference_rule("sync", every=every))
    assert moved == list(range(every, STEPS + 1, every))
    for at, found in enumerate(references):
        assert all(map(torch.equal, found, policies[at - at % every]))


@pytest.mark.parametrize("build", [table, adapted])
@pytest.mark.parametrize(("rate", "every"), [(0.3, 1), (0.6, 2), (1.0, 2)])
def test_ema_is_the_geometric_mean_of_weights_over_past_policies(build, rate, every):
    """rate * sum_j (1 - rate)^j policy_(n - j) + (1 - rate)^n policy_0 after n moves."""
    policies, references, _ = path(build(), reference_rule("ema", rate=rate, every=every))
    for at, found in enumerate(references):
        seen = policies[: at + 1 : every]
        n = len(seen) - 1
        share = [(1 - rate) ** n] + [rate * (1 - rate) ** (n - j) for j in range(1, n + 1)]
        for i, parameter in enumerate(found):
            expected = sum(w * one[i].double() for w, one in zip(share, seen))
            torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [table, adapted])
def test_previous_is_the_policy_at_the_start_of_the_round(build):
    policy, rule = build(), reference_rule("previous")
    reference = rule.start(policy, freeze(policy))
    for index in range(3):
        moved = rule.before_round(index, policy, reference)
        assert moved == (index > 0)
        at_start = weights(policy)
        step(policy, index)
        assert not rule.after_step(index + 1, policy, reference)
        assert all(map(torch.equal, weights(reference.model), at_start))


@pytest.mark.parametrize("build", [table, adapted])
@pytest.mark.parametrize(
    ("kind", "settings"), [("previous", {}), ("sync", {"every": 1}), ("ema", {"rate": 0.5, "every": 1})]
)
def test_the_policy_before_training_stays_what_it_was(build, kind, settings):
    """What the evaluator measures KL from is never the weights that a rule writes into."""
    policy, rule = build(), reference_rule(kind, **settings)
    initial = freeze(policy)
    before, reference = initial.hash, rule.start(policy, initial)
    assert reference.hash == before
    step(policy, 0)
    rule.before_round(1, policy, reference)
    rule.after_step(1, policy, reference)
    assert reference.hash != before == initial.hash
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    step(policy, 1)
    assert reference.hash != weights_hash(policy)


def test_the_initial_reference_is_that_of_the_evaluator_and_never_moves():
    policy, rule = table(), reference_rule("initial")
    initial = freeze(policy)
    assert rule.start(policy, initial) is initial
    step(policy, 0)
    assert not rule.before_round(1, policy, initial)
    assert not rule.after_step(1, policy, initial)
    assert not all(map(torch.equal, weights(initial.model), weights(policy)))


def test_adapter_off_is_the_base_model_also_under_a_trained_adapter():
    policy, rule = adapted(), reference_rule("adapter_off")
    base, untrained = base_hash(policy), freeze(policy)
    assert rule.start(policy, untrained) is untrained
    ids = torch.tensor([[4, 1, 2]])
    untouched = policy(input_ids=ids).logits.detach()
    step(policy, 0)
    initial = freeze(policy)
    reference = rule.start(policy, initial)
    with reference.active() as model:
        assert torch.equal(model(input_ids=ids).logits, untouched)
    assert reference.model is policy
    assert reference.hash == base != initial.hash
    step(policy, 1)
    assert reference.hash == base
    assert not rule.after_step(1, policy, reference)


def test_none_has_no_reference():
    policy, rule = table(), reference_rule("none")
    assert rule.start(policy, freeze(policy)) is None
    assert not rule.before_round(1, policy, None)
    assert not rule.after_step(1, policy, None)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ema", {"rate": 0.0, "every": 1}, "reference.rate must be above 0 and at most 1, not 0.0"),
        ("ema", {"rate": 1.1, "every": 1}, "reference.rate must be above 0 and at most 1, not 1.1"),
        ("ema", {"rate": 0.5, "every": 0}, "reference.every must be at least 1, not 0"),
        ("sync", {"every": -1}, "reference.every must be at least 1, not -1"),
        ("sync", {"every": 2, "rate": 0.5}, "reference 'sync' does not use 'rate'"),
        ("sync", {}, "reference 'sync' needs a value for: every"),
        ("sinc", {"every": 2}, "reference.kind 'sinc' is not known. Did you mean 'sync'"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        reference_rule(kind, **settings)


def test_a_reference_that_the_run_would_never_see_move_is_refused():
    """After the last step nothing reads it."""
    reference_rule("sync", every=9).check_length(10)
    reference_rule("previous").check_length(1)
    for steps in (8, 9):
        with pytest.raises(ConfigError, match=f"reference.every is 9, but the run has {steps} steps"):
            reference_rule("sync", every=9).check_length(steps)
