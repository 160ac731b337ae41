"""Decoding with the cache that the model itself keeps: any HF causal LM, TabularLM, StackedLM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlpref.types import Prompts


class PaddedDecoder:
    """Prompts padded on the left and read once; their cache is repeated for the k answers (rlpref.rollout.sampler)."""

    def __init__(self, model: nn.Module, prompts: Prompts, k: int):
        self.model, self.prompts, self.k = model, prompts, k

    def start(self) -> tuple[Tensor, Tensor]:
        mask = self.prompts.attention_mask
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        output = self.model(
            input_ids=self.prompts.ids,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        self.cache.batch_repeat_interleave(self.k)
        self.seen = mask.repeat_interleave(self.k, 0)
        self.position = positions[:, -1].repeat_interleave(self.k)
        logits = output.logits[:, -1].repeat_interleave(self.k, 0)
        return logits, torch.arange(len(logits), device=logits.device)

    def keep(self, kept: Tensor) -> None:
        self.cache.batch_select_indices(kept)
        self.seen, self.position = self.seen[kept], self.position[kept]

    def step(self, tokens: Tensor) -> Tensor:
        self.seen = nn.functional.pad(self.seen, (0, 1), value=True)
        self.position = self.position + 1
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.seen.long(),
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        return output.logits[:, -1]
