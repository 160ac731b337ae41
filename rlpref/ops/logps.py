"""The one log-prob path: what every loss, sampler check and evaluator reads is computed here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlpref.types import Sequences, TensorBatch


def completion_logits(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, int]:
    """Next-token logits for the columns that hold completion tokens.

    Returns (logits [B, T - first, V] in fp32 (fp64 for an fp64 model), first): row j of the second dimension
    scores token `ids[:, first + j]`. `temperature` divides the logits: the policy of rlpref is the tempered
    distribution, in training, sampling and evaluation alike.
    """
    used = sequences.mask.sum(0).nonzero()  # a third of the time of any(0)
    width = sequences.ids.shape[1]
    first = max(int(used[0]), 1) if len(used) else width - 1
    read = slice(0, width - 1)  # the last token is scored, but nothing is scored by it
    output = model(
        input_ids=sequences.ids[:, read],
        attention_mask=sequences.attention_mask[:, read].long(),
        position_ids=sequences.position_ids[:, read],
        use_cache=False,
        logits_to_keep=width - first,
    )
    logits = output.logits if output.logits.dtype == torch.float64 else output.logits.float()
    return logits if temperature == 1 else logits / temperature, first


def token_logps(
    model: nn.Module, sequences: Sequences, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the completion tokens, and on demand the entropy of each next-token distribution.

    Both are [B, T] in nats, aligned with `sequences.ids` and 0 outside `sequences.mask`.
    """
    logits, first = completion_logits(model, sequences, temperature)
    targets, mask = _targets(sequences, first)
    log_z = logits.logsumexp(-1)
    logps = _placed(_at(targets, logits) - log_z, mask, first)
    if not entropy:
        return logps, None
    expected_logit = (logits.softmax(-1) * logits).sum(-1)
    return logps, _placed(log_z - expected_logit, mask, first)


@dataclass
class Comparison(TensorBatch):
    """Two policies on the same answers; all [B, T] in nats and 0 outside the completions."""

    logps: Tensor
    ref_logps: Tensor
    kl: Tensor  # exact KL(policy || ref) of the next-token distribution at each token
    entropy: Tensor  # of the policy's next-token distribution


def compare(logits: Tensor, ref_logits: Tensor, first: int, sequences: Sequences) -> Comparison:
    """Both arguments as `completion_logits` gives them for these sequences.

    Summed over the tokens of the policy's own samples, `kl` is an unbiased estimate of the sequence KL with
    less variance than the log-ratio: the chain rule of the KL with the inner expectation done exactly.
    """
    targets, mask = _targets(sequences, first)
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    p = logps.exp()
    columns = (
        _at(targets, logps),
        _at(targets, ref_logps),
        (p * (logps - ref_logps)).sum(-1),
        -(p * logps).sum(-1),
    )
    return Comparison(*(_placed(column, mask, first) for column in columns))


def _targets(sequences: Sequences, first: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask from column `first` on. What is not scored becomes 0: it may hold any id, even one that
    the model reads but never writes."""
    mask = sequences.mask[:, first:]
    return torch.where(mask, sequences.ids[:, first:], 0), mask


def _at(targets: Tensor, values: Tensor) -> Tensor:
    """[B, T] of values [B, T, V] those of the tokens [B, T]."""
    return values.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _placed(values: Tensor, mask: Tensor, first: int) -> Tensor:
    """Back into [B, T]: zeros before `first` and wherever nothing is scored."""
    values = torch.where(mask, values, torch.zeros_like(values))
    return nn.functional.pad(values, (first, 0))


def token_confidence(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens, and without gradient log p(token) - log sum over the vocabulary of p^2: how
    sure the model is of the token, against how sure it is of anything. Zhou et al. 2024 (2406.11827), eq. 2.

    Both are [B, T] in nats, aligned with `sequences.ids` and 0 outside `sequences.mask`.
    """
    logits, first = completion_logits(model, sequences, temperature)
    targets, mask = _targets(sequences, first)
    logps = logits.log_softmax(-1)
    chosen = _at(targets, logps)
    confidence = chosen.detach() - (2 * logps.detach()).logsumexp(-1)
    return _placed(chosen, mask, first), _placed(confidence, mask, first)


def token_forward_kl(logits: Tensor, ref_logits: Tensor, first: int, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens and KL(ref || policy) of the next-token distribution at each, [B, T] in nats
    and 0 outside the completions. Arguments as `completion_logits` gives them; the gradient is the policy's alone."""
    targets, mask = _targets(sequences, first)
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    chosen = _at(targets, logps)
    kl = (ref_logps.exp() * (ref_logps - logps)).sum(-1)
    return _placed(chosen, mask, first), _placed(kl, mask, first)


def decayed_sum(logps: Tensor, mask: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """[B] sum of [B, T] log-probs where `mask` holds, the tokens after the first `shared` [B] of each row weighted with
    `alpha`. LD-DPO: Liu et al. 2024 (2409.06411), with the shorter answer's length as `shared`."""
    beyond = mask.cumsum(1) > shared[:, None]
    return torch.where(mask, torch.where(beyond, alpha * logps, logps), 0.0).sum(1)
