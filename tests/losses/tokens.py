"""What the tests of policy-gradient losses share: one small minibatch, and a loop over its tokens."""

import torch

from rlpref.losses import LOSSES, make_loss, reduced
from rlpref.losses.inputs import RolloutLogps

LENGTHS = (5, 2, 1, 4)


def rollouts(seed=0, spread=0.4, lengths=LENGTHS, whole_answers=True) -> RolloutLogps:
    """fp64; the log-ratios have a deviation of `spread`, advantages of both signs, one for each answer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    noise = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    old = -0.2 - 2 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    logps, ref = (old + spread * noise[0]).clamp(max=-0.01), old + spread * noise[1]
    advantages = noise[2, :, :1].expand(shape) if whole_answers else noise[2]
    signs = torch.tensor([1.0, -1.0] * len(lengths), dtype=torch.float64)[: len(lengths), None]
    return RolloutLogps(*(torch.where(mask, x, 0.0) for x in (logps, old, advantages.abs() * signs)), mask, ref * mask)


def value_and_gradient(name: str, rl: RolloutLogps, **settings):
    """What the trainer minimises over all answers of the minibatch, and its gradient by the log-probs."""
    leaf = rl.logps.clone().requires_grad_()
    per_token = make_loss(name, **settings)(RolloutLogps(leaf, rl.old_logps, rl.advantages, rl.mask, rl.ref_logps))
    value, weight = reduced(per_token, rl.mask, LOSSES[name].reduce)
    value = (weight * value).sum() / weight.sum()
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assert_same(one, other, **tolerance):
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, **tolerance)


def tokens_of(rl: RolloutLogps):
    """(answer, column, log pi, log old, advantage, log ref) of every token that counts."""
    for i, t in rl.mask.nonzero().tolist():
        yield i, t, *(float(x[i, t]) for x in (rl.logps, rl.old_logps, rl.advantages, rl.ref_logps))
