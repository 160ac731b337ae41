"""The one sampler: for PPO, iterative methods, data collection and evaluation alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlpref.ops.blocks import uniform
from rlpref.ops.masked import last_masked
from rlpref.types import Prompts, Samples, Sequences, cat

RANDOMNESS = "one uniform number for each prompt, answer and token"  # what decides the answers: part of cache keys


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Prompts,
    k: int,
    max_new_tokens: int,
    temperature: float,
    eos_token_id: int,
    generators: list[torch.Generator],
    batch_size: int = 64,
) -> Samples:
    """k answers to each prompt, drawn from softmax(logits / temperature), at most `batch_size` rows at once.

    Returns Samples of len(prompts) * k rows, the answers to one prompt next to each other. `logps` are those
    of the sampled tokens under the tempered distribution (nothing is truncated, so it is a proper policy).
    An answer ends with EOS or after `max_new_tokens`. Prompts are read once: their cache serves all k answers.
    Each of the `generators` draws for an equal block of prompts; one number for each token that an answer may have,
    before the first is sampled, so that answers depend neither on `batch_size` nor on when others end.
    """
    if temperature <= 0:
        raise ValueError(f"sampling needs temperature > 0, got {temperature}")
    noise = uniform(generators, len(prompts) * k, max_new_tokens)
    at_once = max(1, batch_size // k)
    parts = []
    for start in range(0, len(prompts), at_once):
        rows = slice(start * k, (start + at_once) * k)
        part = _sample(model, prompts[start : start + at_once], noise[rows], temperature, eos_token_id)
        part.prompt += start
        parts.append(part)
    return cat(parts)


def _sample(model: nn.Module, prompts: Prompts, noise: Tensor, temperature: float, eos_token_id: int) -> Samples:
    """One answer for each row of `noise` [len(prompts) * k, max_new_tokens]."""
    k, max_new_tokens = len(noise) // len(prompts), noise.shape[1]
    ids, attention_mask = prompts.ids, prompts.attention_mask
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=ids,
        attention_mask=attention_mask.long(),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    cache, logits = output.past_key_values, output.logits[:, -1]
    cache.batch_repeat_interleave(k)
    logits = logits.repeat_interleave(k, 0)
    seen = attention_mask.repeat_interleave(k, 0)
    position = positions[:, -1].repeat_interleave(k) + 1

    rows = torch.arange(len(logits), device=ids.device)  # rows still unfinished, in the order of the cache
    tokens = ids.new_zeros(len(rows), max_new_tokens)
    logps = torch.zeros(len(rows), max_new_tokens, device=ids.device)
    lengths = ids.new_full((len(rows),), max_new_tokens)
    for t in range(max_new_tokens):
        step_logps = (logits.float() / temperature).log_softmax(-1)
        token = _draw(step_logps.exp(), noise[rows, t])
        tokens[rows, t] = token[:, 0]
        logps[rows, t] = step_logps.gather(1, token)[:, 0]
        alive = token[:, 0] != eos_token_id
        lengths[rows[~alive]] = t + 1
        if t + 1 == max_new_tokens or not alive.any():
            break
        if not alive.all():
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, token, seen, position = rows[kept], token[kept], seen[kept], position[kept]
        seen = torch.nn.functional.pad(seen, (0, 1), value=True)
        output = model(
            input_ids=token,
            attention_mask=seen.long(),
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = output.past_key_values, output.logits[:, -1]
        position = position + 1
    return _packed(prompts, k, tokens, logps, lengths)


def _draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """[B, 1] one token per row by inverting the distribution function at `noise` [B]: one random number a row, where
    `torch.multinomial` draws one per row and token, a third of a decoding step at a vocabulary of 50,000."""
    cdf = probabilities.cumsum(-1)
    token = torch.searchsorted(cdf, noise[:, None] * cdf[:, -1:], right=True)
    # Rounding can put a uniform number at the very top, past every token: the likeliest one takes it.
    return torch.where(token < cdf.shape[1], token, probabilities.argmax(-1, keepdim=True))


def _packed(prompts: Prompts, k: int, tokens: Tensor, logps: Tensor, lengths: Tensor) -> Samples:
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
