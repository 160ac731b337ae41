"""The one log-prob path: what every loss, sampler check and evaluator reads is computed here.

A model whose attention is `packed` reads its rows without padding and its head is never multiplied out; any other one
makes the logits of every column that holds a completion token. Both give the same numbers to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rlpref.ops import head, scores
from rlpref.ops.head import Readout
from rlpref.ops.packing import decode, is_packed, pack, scattered
from rlpref.ops.twin import running
from rlpref.ops.virtual import ahead
from rlpref.types import Sequences, TensorBatch


@dataclass
class Read:
    """What a model says of the completion tokens of a batch [B, T]."""

    says: Readout | Tensor  # of M tokens; or logits [B, W, V] of the last W columns
    targets: Tensor  # [M] or [B, W] the tokens; where nothing is scored, 0
    place: Callable[[Tensor], Tensor]  # values like `targets` -> [B, T], 0 where nothing is scored

    @property
    def kernel(self):
        """The module that scores such logits."""
        return head if isinstance(self.says, Readout) else scores


def read_completions(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> Read:
    """`temperature` divides the logits: the policy of rlpref is the tempered distribution, in training, sampling and
    evaluation alike."""
    model = running(model)
    if is_packed(model):
        return _read_packed(model, sequences, temperature)
    logits, first = completion_logits(model, sequences, temperature)
    mask = sequences.mask[:, first:]
    # What is not scored becomes 0: it may hold any id, even one that the model reads but never writes.
    targets = torch.where(mask, sequences.ids[:, first:], 0)
    return Read(logits, targets, partial(_placed, mask=mask, first=first))


def _read_packed(model: nn.Module, sequences: Sequences, temperature: float) -> Read:
    shape = sequences.ids.shape
    model, sequences, before = ahead(model, sequences)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model  # under a peft adapter
    packed = pack(sequences)
    hidden = decode(causal.base_model, packed)[packed.read]
    out = causal.get_output_embeddings()
    readout = Readout(hidden, out.weight, getattr(out, "bias", None), temperature)
    targets = sequences.ids[packed.row, packed.column]
    packed = replace(packed, column=packed.column - before)
    return Read(readout, targets, partial(scattered, packed, shape=shape))


def completion_logits(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, int]:
    """Next-token logits for the columns that hold completion tokens.

    Returns (logits [B, T - first, V] in fp32 (fp64 for an fp64 model), first): row j of the second dimension
    scores token `ids[:, first + j]`.
    """
    model, sequences, before = ahead(model, sequences)
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
    return logits if temperature == 1 else logits / temperature, first - before


def token_logps(
    model: nn.Module, sequences: Sequences, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the completion tokens, and on demand the entropy of each next-token distribution.

    Both are [B, T] in nats, aligned with `sequences.ids` and 0 outside `sequences.mask`.
    """
    read = read_completions(model, sequences, temperature)
    found = read.kernel.score(read.says, read.targets, entropy=entropy)
    return read.place(found.logps), read.place(found.entropy) if entropy else None


@dataclass
class Comparison(TensorBatch):
    """Two policies on the same answers; all [B, T] in nats and 0 outside the completions."""

    logps: Tensor
    ref_logps: Tensor
    kl: Tensor  # exact KL(policy || ref) of the next-token distribution at each token
    entropy: Tensor  # of the policy's next-token distribution


def compare(read: Read, ref: Read) -> Comparison:
    """Policy and reference on the same sequences, without gradient.

    Summed over the tokens of the policy's own samples, `kl` is an unbiased estimate of the sequence KL with
    less variance than the log-ratio: the chain rule of the KL with the inner expectation done exactly.
    """
    return Comparison(*map(read.place, read.kernel.compare(read.says, ref.says, read.targets)))


def token_confidence(model: nn.Module, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens, and without gradient log p(token) - log sum over the vocabulary of p^2: how
    sure the model is of the token, against how sure it is of anything. Zhou et al. 2024 (2406.11827), eq. 2.

    Both are [B, T] in nats, aligned with `sequences.ids` and 0 outside `sequences.mask`.
    """
    read = read_completions(model, sequences, temperature)
    found = read.kernel.score(read.says, read.targets, p2=True)
    return read.place(found.logps), read.place((found.logps - found.log_p2).detach())


def token_forward_kl(read: Read, ref: Read) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens and KL(ref || policy) of the next-token distribution at each, [B, T] in nats
    and 0 outside the completions. The gradient is the policy's alone."""
    logps, kl = read.kernel.forward_kl(read.says, ref.says, read.targets)
    return read.place(logps), read.place(kl)


def _placed(values: Tensor, mask: Tensor, first: int) -> Tensor:
    """Back into [B, T]: zeros before `first` and wherever nothing is scored."""
    values = torch.where(mask, values, torch.zeros_like(values))
    return nn.functional.pad(values, (first, 0))


def decayed_sum(logps: Tensor, mask: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """[B] sum of [B, T] log-probs where `mask` holds, the tokens after the first `shared` [B] of each row weighted with
    `alpha`. LD-DPO: Liu et al. 2024 (2409.06411), with the shorter answer's length as `shared`."""
    beyond = mask.cumsum(1) > shared[:, None]
    return torch.where(mask, torch.where(beyond, alpha * logps, logps), 0.0).sum(1)
