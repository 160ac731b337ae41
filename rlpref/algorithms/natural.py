"""A step along the natural gradient, as long as a bound on the KL lets it be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlpref.algorithms.algorithm import Loss
from rlpref.binding import ConfigError
from rlpref.models.bundle import Models
from rlpref.ops.logps import completion_logits
from rlpref.types import Rollouts, Sequences

LARGEST = 1_000_000  # parameters: each product with the Fisher matrix reads the whole round at once


@dataclass(frozen=True)
class NaturalStep:
    """Schulman et al. 2015 (1502.05477), appendix C: `cg_iterations` of conjugate gradients solve (F + `damping`) x =
    g. F is the Fisher matrix of the next tokens on the answers of the round, g the gradient of the surrogate. The step
    goes along x as far as half x (F + damping) x says that the KL is `delta`, and is halved, at most `backtracks`
    times, until the mean KL(old || new) of the next token is within `delta` and the surrogate has improved; else none
    is taken, and `trpo/halvings` is one more than these."""

    delta: float
    damping: float
    cg_iterations: int
    backtracks: int

    def __post_init__(self):
        for key in ("delta", "damping", "cg_iterations", "backtracks"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"algorithm.{key} must be above 0, not {getattr(self, key)}.")

    def __call__(self, models: Models, batch: Rollouts, loss: Callable[[], Loss]) -> dict[str, Tensor]:
        """Moves the policy, whose gradients are those of the loss; of this the part `loss/policy` is the surrogate.
        Returns what became of it, each [1]."""
        parameters = [p for p in models.policy.parameters() if p.requires_grad]
        start = nn.utils.parameters_to_vector(parameters).detach()
        gradient = nn.utils.parameters_to_vector([p.grad for p in parameters])
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            old = next_logps(models, batch.sequences)
            product = fisher_product(old, parameters, self.damping)
            direction = conjugate_gradients(product, -gradient, self.cg_iterations)
            reach = (2 * self.delta / (direction @ product(direction)).clamp(min=1e-30)).sqrt()
        old, before = old.detach(), surrogate(loss)
        for halvings in range(self.backtracks + 1):
            nn.utils.vector_to_parameters(start + 0.5**halvings * reach * direction, parameters)
            with torch.no_grad():
                kl = (old.exp() * (old - next_logps(models, batch.sequences))).sum(-1).mean()
            gain = before - surrogate(loss)
            if kl <= self.delta and gain > 0:
                break
        else:
            nn.utils.vector_to_parameters(start, parameters)
            kl, gain, halvings = torch.zeros_like(kl), torch.zeros_like(gain), self.backtracks + 1
        found = {"trpo/kl": kl, "trpo/improvement": gain, "trpo/halvings": torch.as_tensor(float(halvings))}
        return {name: value.view(1) for name, value in (found | {"trpo/gradient_norm": gradient.norm()}).items()}


@torch.no_grad()
def surrogate(loss: Callable[[], Loss]) -> Tensor:
    """What the policy is to lower: its part of the loss, as the trainer would average it."""
    found = loss()
    return (found.weight * found.metrics["loss/policy"]).sum() / found.weight.sum()


def next_logps(models: Models, sequences: Sequences) -> Tensor:
    """[tokens, vocab] log-probs of every next token at each completion token, with gradient."""
    logits, first = completion_logits(models.policy, sequences, models.temperature)
    return logits[sequences.mask[:, first:]].log_softmax(-1)


def fisher_product(logps: Tensor, parameters: list[Tensor], damping: float) -> Callable[[Tensor], Tensor]:
    """v -> (F + damping) v for v [n]: F is the Hessian, at the policy itself, of the mean KL(policy || .) over the rows
    of next-token log-probs [tokens, vocab]."""
    fixed = logps.detach()
    kl = (fixed.exp() * (fixed - logps)).sum(-1).mean()
    slope = flat(torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        again = torch.autograd.grad(slope @ v, parameters, retain_graph=True, materialize_grads=True)
        return flat(again) + damping * v

    return product


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x [n] with A x = b for a positive A given as v -> A v; ends sooner where nothing is left. Hestenes & Stiefel
    1952."""
    x, residual, towards = torch.zeros_like(b), b.clone(), b.clone()
    left = enough = residual @ residual
    for _ in range(iterations):
        if not left > 1e-10 * enough:
            break
        image = product(towards)
        step = left / (towards @ image)
        x, residual = x + step * towards, residual - step * image
        left, last = residual @ residual, left
        towards = residual + left / last * towards
    return x


def check_size(algorithm: object, policy: nn.Module) -> None:
    """Raises ConfigError where the algorithm takes natural steps and the policy is too large for them."""
    size = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    if getattr(algorithm, "natural", None) and size > LARGEST:
        raise ConfigError(
            f"algorithm 'trpo' solves for all {size:,} parameters of {type(policy).__name__} at once; it takes at most "
            f"{LARGEST:,}. Set algorithm=ppo, which bounds its ratios instead."
        )
