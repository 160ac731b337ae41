"""Decoding in which all answers to a prompt read one copy of its keys and values.

Each pass is one row of tokens without padding. Prompts are read once each, however many answers they get; the keys and
values of the answers are written in place. For models whose attention takes a layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlpref.ops.packing import with_layout
from rlpref.rollout.grouped import Group, group_prompts
from rlpref.types import Prompts

READ = 4096  # tokens of prompts, about, in one pass: more would be no faster and need more memory
BLOCK = 32  # tokens of each answer by which the buffers get longer


@dataclass
class Reading:
    """The layout of the pass over the prompts, one after the other: keeps what the answers will read."""

    lengths: list[int]
    keys: list[Tensor] = field(default_factory=list)  # of each layer, [kv heads, tokens, d]
    values: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if layer != len(self.keys):
            raise ValueError(f"layer {layer} came where layer {len(self.keys)} was expected")
        self.keys.append(key[0])
        self.values.append(value[0])
        prompts = zip(*(tensor.split(self.lengths, 2) for tensor in (query, key, value)))
        parts = [
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            for q, k, v in prompts
        ]
        return torch.cat(parts, 2).transpose(1, 2)


@dataclass
class Writing:
    """The layout of the passes in which each answer reads its last token."""

    groups: list[Group]  # their answers in the order of the rows
    keys: list[Tensor]  # of each layer, [answers, kv heads, room, d]; zeros where nothing has been written
    values: list[Tensor]
    read: int = 0  # tokens of each answer whose keys and values stand in the buffers

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.read], values[:, :, self.read] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        query = query[0].transpose(0, 1).unflatten(1, (keys.shape[1], -1)) * scaling  # [answers, kv heads, group, d]
        # Whole buffers, free room masked: a product with a part of them would copy that part in bfloat16 (oneDNN).
        own = query @ keys.mT + self.room
        parts, start = [], 0
        for group in self.groups:
            rows = slice(start, start + len(group.prompt))
            parts.append(group.attend(layer, query[rows], own[rows], values[rows]))
            start = rows.stop
        return torch.cat(parts).flatten(1, 2)[None]

    def make_room(self) -> None:
        """For one more token of each answer. Buffers get longer by a block, so that little of them is free."""
        if self.read % BLOCK == 0:
            self.keys = [nn.functional.pad(tensor, (0, 0, 0, BLOCK)) for tensor in self.keys]
            self.values = [nn.functional.pad(tensor, (0, 0, 0, BLOCK)) for tensor in self.values]
        place = torch.arange(self.keys[0].shape[2], device=self.keys[0].device)
        self.room = self.keys[0].new_zeros(place.shape).masked_fill(place > self.read, -torch.inf)

    def keep(self, kept: Tensor) -> None:
        self.keys = [tensor[kept] for tensor in self.keys]
        self.values = [tensor[kept] for tensor in self.values]
        start, groups = 0, []
        for group in self.groups:
            inside = kept[(kept >= start) & (kept < start + len(group.prompt))] - start
            start += len(group.prompt)
            if len(inside):
                groups.append(group.of(inside))
        self.groups = groups


class SharedDecoder:
    """Prompts read once each, whatever the number of answers (rlpref.rollout.sampler)."""

    def __init__(self, model: nn.Module, prompts: Prompts, k: int):
        self.model = model
        ids = torch.where(prompts.attention_mask, prompts.ids, -1)
        distinct, which = torch.unique(ids, dim=0, return_inverse=True)
        lengths = (distinct >= 0).sum(1)
        order = lengths.argsort(stable=True)
        self.ids, self.lengths = distinct[order], lengths[order]
        place = order.argsort()[which].repeat_interleave(k)  # of each answer, its prompt's among the sorted ones
        self.rows = place.argsort(stable=True)  # answers in the order of their prompts
        self.prompt = place[self.rows]

    def start(self) -> tuple[Tensor, Tensor]:
        sizes = torch.unique_consecutive((self.lengths.cumsum(0) - 1) // READ, return_counts=True)[1].tolist()
        parts = [self._read(*part) for part in zip(self.ids.split(sizes), self.lengths.split(sizes))]
        logits, keys, values = zip(*parts)
        keys, values = ([torch.cat(layer, 1) for layer in zip(*each)] for each in (keys, values))
        kv_heads, _, width = keys[0].shape
        buffers = [[keys[0].new_empty(len(self.rows), kv_heads, 0, width)] * len(keys) for _ in range(2)]
        groups = group_prompts(keys, values, self.lengths.tolist(), self.prompt)
        self.layout = Writing(groups, *buffers)
        self.position = self.lengths[self.prompt] - 1
        return torch.cat(logits)[self.prompt], self.rows

    def _read(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Of some prompts: logits [prompts, V] of an answer's first token, and keys and values of each layer."""
        real = ids >= 0
        reading = Reading(lengths.tolist())
        output = self.model(
            input_ids=ids[real][None],
            position_ids=(real.long().cumsum(1) - 1)[real][None],
            use_cache=False,
            logits_to_keep=lengths.cumsum(0) - 1,
            **with_layout(reading, ids.device),
        )
        layers = self.model.config.num_hidden_layers
        if len(reading.keys) != layers:
            raise ValueError(
                f"{len(reading.keys)} of the {layers} layers of {type(self.model).__name__} read the layout: it cannot "
                "be sampled from with packed attention. Set model.attn_implementation=sdpa."
            )
        return output.logits[0], reading.keys, reading.values

    def keep(self, kept: Tensor) -> None:
        self.layout.keep(kept)
        self.position = self.position[kept]

    def step(self, tokens: Tensor) -> Tensor:
        self.position = self.position + 1
        self.layout.make_room()
        output = self.model(
            input_ids=tokens[None],
            position_ids=self.position[None],
            use_cache=False,
            **with_layout(self.layout, tokens.device),
        )
        self.layout.read += 1
        return output.logits[0]
