import torch

from rlpref.ops.gae import gae, penalised_rewards


def uneven(seed=0):
    """Rewards, values and masks of answers that begin and end at different columns; junk outside."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    columns = torch.arange(9)
    first, last = torch.tensor([[0], [2], [3], [5]]), torch.tensor([[8], [6], [3], [7]])
    return rewards, values, (columns >= first) & (columns <= last)


def direct(rewards, values, mask, gamma, gae_lambda):
    """The definition: sum over l of (gamma lambda)^l delta_{t+l}, delta = r + gamma V(next) - V."""
    advantages = torch.zeros_like(values)
    for i, row in enumerate(mask):
        columns = row.nonzero()[:, 0].tolist()
        for t in columns:
            for u in [c for c in columns if c >= t]:
                after = values[i, u + 1] if u + 1 in columns else 0.0
                delta = rewards[i, u] + gamma * after - values[i, u]
                advantages[i, t] += (gamma * gae_lambda) ** (u - t) * delta
    return advantages


def test_it_is_the_definition():
    rewards, values, mask = uneven()
    for gamma, gae_lambda in [(1.0, 0.95), (0.9, 0.5), (0.97, 0.0), (0.9, 1.0)]:
        expected = direct(rewards, values, mask, gamma, gae_lambda)
        torch.testing.assert_close(gae(rewards, values, mask, gamma, gae_lambda), expected)


def test_at_lambda_one_it_is_the_discounted_return_minus_the_value():
    rewards, values, mask = uneven(1)
    found = gae(rewards, values, mask, 0.9, 1.0)
    for i, t in mask.nonzero().tolist():
        later = [u for u in range(t, 9) if mask[i, u]]
        value = sum(0.9 ** (u - t) * rewards[i, u] for u in later) - values[i, t]
        torch.testing.assert_close(found[i, t], value)


def test_padding_changes_nothing_and_gets_nothing():
    rewards, values, mask = uneven()
    base = gae(rewards, values, mask, 0.9, 0.8)
    assert (base[~mask] == 0).all()
    junk = torch.full((4, 3), 77.0, dtype=torch.float64)
    wide = [torch.cat([junk, tensor, junk], 1) for tensor in (rewards, values)]
    wide_mask = torch.nn.functional.pad(mask, (3, 3))
    assert torch.equal(gae(*wide, wide_mask, 0.9, 0.8)[:, 3:-3], base)
    other = torch.where(mask, rewards, torch.tensor(-5.0)), torch.where(mask, values, torch.tensor(9.0))
    assert torch.equal(gae(*other, mask, 0.9, 0.8), base)


def test_the_score_goes_to_the_last_real_token_and_the_kl_to_every_one():
    log_ratio, _, mask = uneven()
    log_ratio = torch.where(mask, log_ratio, 0.0)
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    rewards = penalised_rewards(scores, log_ratio, mask, beta=0.3)
    assert torch.allclose(rewards.sum(1), scores - 0.3 * log_ratio.sum(1))
    for i, last in enumerate([8, 6, 3, 7]):
        assert torch.isclose(rewards[i, last], scores[i] - 0.3 * log_ratio[i, last])
