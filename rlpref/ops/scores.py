"""What losses and the evaluator read off next-token logits: the definitions, on logits that are there.

`rlpref.ops.head` computes the same from hidden states and the head's weight without ever holding the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Scores:
    """Of each next-token distribution, one value per scored token, in nats."""

    logps: Tensor  # log-prob of the token that came
    entropy: Tensor | None = None
    log_p2: Tensor | None = None  # log of the sum over the vocabulary of p^2


def score(logits: Tensor, targets: Tensor, entropy: bool = False, p2: bool = False) -> Scores:
    """Scores [...] of logits [..., V] and tokens [...]; what is not asked for is None."""
    logps = logits.log_softmax(-1)
    return Scores(
        _at(targets, logps),
        -(logps.exp() * logps).sum(-1) if entropy else None,
        (2 * logps).logsumexp(-1) if p2 else None,
    )


def compare(logits: Tensor, ref_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logps, ref_logps, KL(policy || ref), entropy of the policy), each [...], of logits [..., V] and tokens [...]."""
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    p = logps.exp()
    kl = (p * (logps - ref_logps)).sum(-1)
    return _at(targets, logps), _at(targets, ref_logps), kl, -(p * logps).sum(-1)


def forward_kl(logits: Tensor, ref_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(logps, KL(ref || policy)), each [...], of logits [..., V] and tokens [...]."""
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return _at(targets, logps), (ref_logps.exp() * (ref_logps - logps)).sum(-1)


def _at(targets: Tensor, values: Tensor) -> Tensor:
    """[...] of values [..., V] those of the tokens [...]."""
    return values.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
