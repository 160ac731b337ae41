"""A twin computes in bfloat16 what its master holds in float32."""

import copy

import pytest
import torch

from rlpref.models.reference import freeze, weights_hash
from rlpref.ops.logps import token_logps
from rlpref.ops.twin import compute_in, running
from rlpref.types import Sequences
from rlpref.update import make_optimizer


@pytest.fixture
def policy(random_llama):
    return compute_in(random_llama(dtype=torch.float32, attn_implementation="packed"), torch.bfloat16)


def batch(rows=4, width=10, prompt=3, seed=0):
    ids = torch.randint(1, 12, (rows, width), generator=torch.Generator().manual_seed(seed))
    real = torch.ones_like(ids, dtype=torch.bool)
    return Sequences(ids, real, real & (torch.arange(width) >= prompt))


def test_what_runs_is_the_master_rounded_and_nothing_of_it_is_saved(policy):
    names = [name for name, _ in policy.named_parameters()]
    twin = running(policy)
    assert [name for name, _ in policy.named_parameters()] == names
    for own, master in zip(twin.parameters(), policy.parameters(), strict=True):
        assert (own.dtype, master.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(own, master.bfloat16())
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, policy.get_buffer(name)), name
    assert running(policy) is twin


def test_gradients_of_all_passes_add_up_in_the_masters_in_float32(policy):
    passes = [batch(seed=seed) for seed in range(3)]
    for one in passes:
        token_logps(policy, one)[0].sum().backward()
    found = [p.grad.clone() for p in policy.parameters()]
    assert all(p.grad is None for p in running(policy).parameters())
    alone = []
    for one in passes:
        policy.zero_grad()
        token_logps(policy, one)[0].sum().backward()
        assert all(torch.equal(p.grad, p.grad.bfloat16().float()) for p in policy.parameters())
        alone.append([p.grad.clone() for p in policy.parameters()])
    for total, parts in zip(found, zip(*alone)):
        torch.testing.assert_close(total, parts[0] + parts[1] + parts[2], atol=0, rtol=1e-6)


def test_updates_too_small_for_bfloat16_are_not_lost(policy):
    before = [p.detach().clone() for p in policy.parameters()]
    optimizer = make_optimizer([{"policy": list(policy.parameters())}], [1e-5], {"policy": 1.0}, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        token_logps(policy, batch())[0].sum().backward()
        optimizer.step()
    moved = torch.cat([(p - b).abs().flatten() for p, b in zip(policy.parameters(), before)])
    assert moved.mean() > 2e-4
    for own, master in zip(running(policy).parameters(), policy.parameters()):
        assert torch.equal(own, master.bfloat16())
    assert not torch.equal(running(policy).lm_head.weight, before[-1].bfloat16())


def test_weights_written_in_place_are_seen(policy):
    running(policy)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    assert not running(policy).lm_head.weight.any()


def test_copies_have_twins_of_their_own(policy):
    running(policy)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert not running(other).lm_head.weight.any()
    assert running(policy).lm_head.weight.any()


def test_a_fixed_reference_is_the_twin_frozen(policy):
    reference = freeze(policy)
    assert next(reference.model.parameters()).dtype == torch.bfloat16
    assert reference.hash == weights_hash(running(policy))
    with torch.no_grad():
        ours, theirs = token_logps(policy, batch())[0], token_logps(reference.model, batch())[0]
    assert torch.equal(ours, theirs)


def test_the_error_of_bfloat16_is_bounded(random_llama):
    """Against float64: a rounding of 2^-9 per operation, so a few hundredths of a nat a token for a model of two layers
    whose log-probs reach -10; and the gradient points where the exact one does."""
    exact = random_llama()
    rounded = compute_in(random_llama(dtype=torch.float32, attn_implementation="packed"), torch.bfloat16)
    flat = []
    for model in (exact, rounded):
        logps, _ = token_logps(model, batch(16))
        logps.sum().backward()
        flat.append((logps.detach().double(), torch.cat([p.grad.double().flatten() for p in model.parameters()])))
    errors = (flat[0][0] - flat[1][0]).abs()
    assert errors.max() < 0.15
    assert errors.mean() < 0.02
    assert torch.cosine_similarity(flat[0][1], flat[1][1], 0) > 0.998
