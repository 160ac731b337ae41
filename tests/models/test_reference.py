import pytest
import torch

from rlpref.models.hashing import base_hash, weights_hash
from rlpref.models.lm import apply_lora
from rlpref.models.reference import freeze, snapshot
from rlpref.models.tabular import TabularLM
from rlpref.models.tiny import tiny_llama

LORA = {"r": 2, "alpha": 4, "dropout": 0, "target_modules": "all-linear"}
IDS = torch.tensor([[4, 1, 2], [5, 3, 0]])


def base():
    return tiny_llama(vocab=4, horizon=2, prompts=4, hidden_size=16, layers=2, heads=2, seed=0)


def adapted():
    torch.manual_seed(0)
    return apply_lora(base(), LORA)


def perturb(policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


def logits(model) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.detach()


@pytest.mark.parametrize("build", [base, adapted, lambda: TabularLM(4, 2, 4)])
def test_the_reference_stays_where_the_policy_began(build):
    policy = build()
    before = logits(policy)
    reference = freeze(policy)
    perturb(policy)
    moved = logits(policy)
    with reference.active() as model:
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(policy), moved)
    assert not torch.equal(moved, before)


def test_a_zero_adapter_shares_the_policy_and_switches_off():
    policy = adapted()
    reference = freeze(policy)
    assert reference.model is policy
    assert reference.adapter_off
    perturb(policy)
    with reference.active() as model:
        assert torch.equal(logits(model), logits(base()))
    assert any(p.requires_grad for p in policy.parameters())


def test_an_adapter_that_has_moved_is_copied():
    policy = adapted()
    perturb(policy)
    before = logits(policy)
    reference = freeze(policy)
    assert not reference.adapter_off
    perturb(policy)
    with reference.active() as model:
        assert torch.equal(logits(model), before)


def test_a_snapshot_is_the_policy_now_even_with_a_zero_adapter():
    policy = adapted()
    reference = snapshot(policy)
    assert reference.model is not policy
    assert not reference.adapter_off


@pytest.mark.parametrize("take", [freeze, snapshot])
def test_a_reference_has_no_gradients(take):
    policy = base()
    reference = take(policy)
    with reference.active() as model:
        assert not model(input_ids=IDS).logits.requires_grad
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert not reference.model.training
    assert all(p.requires_grad for p in policy.parameters())


def test_the_hash_names_the_reference_weights_with_and_without_an_adapter():
    assert freeze(base()).hash == freeze(adapted()).hash == weights_hash(base()) == base_hash(base())
    policy = base()
    perturb(policy)
    assert snapshot(policy).hash == weights_hash(policy) != weights_hash(base())


def test_the_adapter_comes_back_on_after_an_error():
    policy = adapted()
    reference = freeze(policy)
    perturb(policy)
    moved = logits(policy)
    with pytest.raises(RuntimeError, match="inside"), reference.active():
        raise RuntimeError("inside")
    assert torch.equal(logits(policy), moved)
