import torch

from rlpref.ops.kl import controlled, k1, k2, k3


def enumerated(seed, spread=1.0):
    """Two random categoricals p, q: (p, log p - log q, KL(p || q)), every outcome listed."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (spread * torch.randn(2, 9, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return p.exp(), p - q, torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)


def test_k1_and_k3_have_the_kl_as_their_mean_and_k3_is_never_negative():
    for seed in range(5):
        p, log_ratio, kl = enumerated(seed)
        torch.testing.assert_close((p * k1(log_ratio)).sum(), kl)
        torch.testing.assert_close((p * k3(log_ratio)).sum(), kl)
        assert (k1(log_ratio) < 0).any()
        assert (k3(log_ratio) >= 0).all()


def test_k2_is_biased_but_agrees_to_second_order():
    p, log_ratio, kl = enumerated(0)
    assert abs((p * k2(log_ratio)).sum() - kl) > 1e-2
    for spread, error in [(1e-1, 1e-1), (1e-3, 1e-3)]:
        p, log_ratio, kl = enumerated(0, spread)
        assert abs((p * k2(log_ratio)).sum() / kl - 1) < error


def test_all_are_zero_where_the_two_agree():
    zero = torch.zeros(3)
    assert all((estimator(zero) == 0).all() for estimator in (k1, k2, k3))


def test_the_weight_of_the_kl_moves_by_its_relative_error_held_within_a_fifth():
    coef, kl = torch.tensor([0.5, 0.5, 0.5, 0.0]), torch.tensor([6.6, 60.0, 0.1, 60.0])
    found = controlled(coef, kl, target=6.0, gain=0.1)
    torch.testing.assert_close(found, torch.tensor([0.5 * 1.01, 0.5 * 1.02, 0.5 * 0.98, 0.0]))
    assert controlled(torch.tensor(0.5), torch.tensor(6.0), 6.0, 0.1).item() == 0.5
