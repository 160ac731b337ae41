"""One token for each row, by inverting its distribution function at one given uniform number."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # tokens; about the root of a vocabulary of 50,000, which makes the two sums below equally short
ROWS = 16  # of a vocabulary of 50,000 at once: what they hold stays in the processor's cache between operations


def draw(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probs [B] in fp32 under softmax(logits [B, V] / temperature), at `noise` [B] in [0, 1):
    one random number a row, where `torch.multinomial` draws one per row and token. At temperature 0 the likeliest
    tokens, of log-prob 0: all the mass is on them."""
    if temperature == 0:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)
    rows = max(ROWS, ROWS * 50_000 // max(logits.shape[1], BLOCK)) if logits.device.type == "cpu" else len(logits)
    parts = [_draw(*part, temperature) for part in zip(logits.split(rows), noise.split(rows))]
    return torch.cat([token for token, _ in parts]), torch.cat([logp for _, logp in parts])


def _draw(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    probabilities = (logits if temperature == 1 else logits / temperature).softmax(-1)
    token = invert(probabilities, noise)
    return token, probabilities.gather(1, token[:, None])[:, 0].log()


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """[B] the first token at which the running sum of `weights` [B, V] passes `noise` [B] times their total; never one
    of weight 0. Sums up blocks of tokens, then the tokens of one block: a running sum over a vocabulary is slow."""
    lacking = -weights.shape[1] % BLOCK
    if lacking:
        weights = torch.nn.functional.pad(weights, (0, lacking))
    blocks = weights.unflatten(1, (-1, BLOCK))
    ends = blocks.sum(-1).cumsum(-1)
    total = ends[:, -1:]
    # Rounding can put a number below 1 at the very top, past every token.
    target = torch.minimum(noise[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(ends, target, right=True)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(block), device=block.device), block[:, 0]]
    place = torch.searchsorted(inside.cumsum(-1), target - before, right=True)
    # The block's own sum may have been rounded to less than its share: its likeliest token takes the rest.
    place = torch.where(place < BLOCK, place, inside.argmax(-1, keepdim=True))
    return (block * BLOCK + place)[:, 0]
