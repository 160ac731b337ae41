"""The one sampler: for PPO, iterative methods, data collection and evaluation alike."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from rlpref.ops.blocks import uniform
from rlpref.ops.masked import last_masked
from rlpref.ops.packing import is_packed
from rlpref.ops.twin import running
from rlpref.ops.virtual import ahead
from rlpref.rollout.draw import draw
from rlpref.rollout.padded import PaddedDecoder
from rlpref.rollout.shared import SharedDecoder
from rlpref.types import Prompts, Samples, Sequences

# Rows are dropped once an eighth have ended: it means to copy what all others have read, too much for each single one.
KEPT = 7 / 8
RANDOMNESS = "one uniform number for each prompt, answer and token"  # what decides the answers: part of cache keys


class Decoder(Protocol):
    """A model that reads one more token of each of many answers at a time."""

    def start(self) -> tuple[Tensor, Tensor]:
        """Logits [rows, V] of each answer's first token, and the answer [rows] that each row is of."""
        ...

    def keep(self, kept: Tensor) -> None:
        """Goes on with these rows alone, in their order."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [rows, V] of the tokens after `tokens` [rows]."""
        ...


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Prompts,
    k: int,
    max_new_tokens: int,
    temperature: float,
    eos_token_id: int,
    generators: list[torch.Generator],
    batch_size: int = 256,
) -> Samples:
    """k answers to each prompt, drawn from softmax(logits / temperature), at most `batch_size` rows at once.

    Returns Samples of len(prompts) * k rows, the answers to one prompt next to each other. `logps` are those
    of the sampled tokens under the tempered distribution (nothing is truncated, so it is a proper policy; at
    temperature 0 the greedy one).
    An answer ends with EOS or after `max_new_tokens`. Prompts are read once: their cache serves all k answers.
    Each of the `generators` draws for an equal block of prompts; one number for each token that an answer may have,
    before the first is sampled, so that answers depend neither on `batch_size` nor on when others end.
    """
    if temperature < 0:
        raise ValueError(f"sampling needs temperature >= 0, got {temperature}")
    model = running(model)
    noise = uniform(generators, len(prompts) * k, max_new_tokens)
    at_once = max(1, batch_size // k)
    order = prompts.attention_mask.sum(1).argsort(stable=True)  # prompts of about equal length need little padding
    parts = []
    for chosen in order.split(at_once):
        decoder = _decoder(model, prompts[chosen], k)
        parts.append(_answers(decoder, noise[_answers_to(chosen, k)], temperature, eos_token_id))
    back = _answers_to(order.argsort(), k)
    return packed(prompts, k, *(torch.cat(column)[back] for column in zip(*parts)))


def _answers_to(prompts: Tensor, k: int) -> Tensor:
    """Rows of the k answers to each of these prompts [n]."""
    return (prompts[:, None] * k + torch.arange(k, device=prompts.device)).flatten()


def _decoder(model: nn.Module, prompts: Prompts, k: int) -> Decoder:
    longest = int(prompts.attention_mask.sum(1).max())
    model, prompts, _ = ahead(model, prompts.map(lambda tensor: tensor[:, -longest:]))
    if is_packed(model):
        return SharedDecoder(model, prompts, k)
    return PaddedDecoder(model, prompts, k)


def _answers(decoder: Decoder, noise: Tensor, temperature: float, eos_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and their log-probs [rows, max_new_tokens], one answer for each row of `noise` of that shape, and the
    lengths [rows]; what stands after an answer's end is not its own."""
    tokens = torch.zeros(noise.shape, dtype=torch.long, device=noise.device)
    logps = torch.zeros(noise.shape, device=noise.device)
    lengths = tokens.new_full((len(noise),), noise.shape[1])
    logits, rows = decoder.start()
    alive = torch.ones_like(rows, dtype=torch.bool)
    for t in range(noise.shape[1]):
        token, logp = draw(logits, noise[rows, t], temperature)
        tokens[rows, t], logps[rows, t] = token, logp
        ended = alive & (token == eos_token_id)
        lengths[rows[ended]] = t + 1
        alive = alive & ~ended
        left = int(alive.sum())
        if left == 0 or t + 1 == noise.shape[1]:
            break
        if left <= KEPT * len(alive):
            kept = alive.nonzero()[:, 0]
            decoder.keep(kept)
            rows, token, alive = rows[kept], token[kept], alive[kept]
        logits = decoder.step(token)
    return tokens, logps, lengths


def packed(prompts: Prompts, k: int, tokens: Tensor, logps: Tensor, lengths: Tensor) -> Samples:
    """Prompt and answer moved to the left edge, padding on the right."""
    device = tokens.device
    prompt_row = torch.arange(len(prompts), device=device).repeat_interleave(k)
    in_prompt = prompts.attention_mask[prompt_row]
    in_answer = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
    real = torch.cat([in_prompt, in_answer], 1)
    order = (~real).long().argsort(dim=1, stable=True)  # real columns first, in their order
    answer_columns = torch.cat([torch.zeros_like(in_prompt), in_answer], 1)
    padded_logps = torch.nn.functional.pad(logps, (in_prompt.shape[1], 0))
    width = int(real.sum(1).max())

    def moved(columns: Tensor) -> Tensor:
        return columns.gather(1, order)[:, :width]

    attention_mask, mask = moved(real), moved(answer_columns)
    ids = torch.where(attention_mask, moved(torch.cat([prompts.ids[prompt_row], tokens], 1)), 0)
    sequences = Sequences(ids=ids, attention_mask=attention_mask, mask=mask)
    return Samples(sequences, logps=torch.where(mask, moved(padded_logps), 0.0), prompt=prompt_row)


def ends_with_eos(sequences: Sequences, eos_token_id: int) -> Tensor:
    """[B] bool: whether the answer ended by itself rather than at the length limit."""
    last = last_masked(sequences.mask)
    return sequences.ids.gather(1, last[:, None])[:, 0] == eos_token_id
