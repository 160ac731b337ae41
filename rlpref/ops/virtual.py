"""Prompt tuning: trained vectors that stand before every prompt. Lester et al. 2021 (2104.08691).

They are read as tokens whose ids come after the vocabulary's, so that packed rows, shared prefixes and caches hold them
as they hold every other token of a prompt. Nobody outside of this file and of those that call `ahead` sees these ids.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rlpref.types import Prompts, Sequences


class VirtualTokens(nn.Module):
    """An embedding that knows `virtual`'s vectors by the ids after its own, in the dtype of its own."""

    def __init__(self, base_layer: nn.Embedding, virtual: nn.Module):
        super().__init__()
        self.base_layer, self.virtual = base_layer, virtual

    def forward(self, ids: Tensor) -> Tensor:
        """[.., width] of ids [..]."""
        place = ids - self.num_embeddings
        words = self.base_layer(torch.where(place < 0, ids, 0))
        own = self.virtual(place.clamp(min=0)).to(words.dtype)
        return torch.where((place < 0)[..., None], words, own)

    @property
    def num_embeddings(self) -> int:
        """Of the vocabulary."""
        return self.base_layer.num_embeddings

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def ids(self) -> Tensor:
        """[n] of the virtual tokens."""
        table = self.virtual.embedding.weight
        return self.num_embeddings + torch.arange(len(table), device=table.device)


def ahead(model: nn.Module, batch: Sequences | Prompts) -> tuple[nn.Module, Sequences | Prompts, int]:
    """What reads `batch` in the place of `model`, the rows with the model's virtual tokens before them, and how many
    columns these are. Of a model that has none, or whose adapter is switched off, all as it was and 0."""
    ids = virtual_ids(model)
    if ids is None:
        return model, batch, 0
    columns = {"ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
    columns["mask"] = ~columns["attention_mask"]
    rows = {name: torch.cat([columns[name].expand(len(batch), -1), tensor], 1) for name, tensor in batch.items()}
    reads = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft would put them there itself
    return reads, replace(batch, **rows), len(ids)


def virtual_ids(model: nn.Module) -> Tensor | None:
    """[n] ids of the virtual tokens that a decoder, a causal LM or one under a peft adapter puts before its rows."""
    if getattr(model, "_adapters_disabled", False) or not hasattr(model, "get_input_embeddings"):
        return None
    embedding = model.get_input_embeddings()
    return embedding.ids if isinstance(embedding, VirtualTokens) else None
