"""Prompts of about equal length side by side, and the answers that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHORTEST = 0.5  # of a group's longest prompt: more groups cost as much in calls as they save in padding


@dataclass
class Group:
    """The queries of all answers to a prompt, and of all heads that share a key head, stand under each other in one
    matrix: [prompts, kv heads, answers to a prompt * heads per kv head, d]. Where prompts have unequally many answers
    left, `slot` says where each answer stands, and the places between are empty."""

    keys: list[Tensor]  # of each layer, [prompts, kv heads, longest prompt, d]
    values: list[Tensor]
    padding: Tensor  # [prompts, 1, 1, longest prompt] 0 where a token stands, else -inf
    prompt: Tensor  # [answers] the prompt of each, ascending
    most: int  # answers to one prompt
    slot: Tensor | None  # [answers] place among prompts * most; None: every prompt has `most` answers

    def attend(self, layer: int, query: Tensor, own: Tensor, own_values: Tensor) -> Tensor:
        """[answers, kv heads, heads per kv head, d] from scaled queries of that shape, their products with the answers'
        own keys [answers, kv heads, heads per kv head, read] and the answers' own values."""
        keys, values = self.keys[layer], self.values[layer]
        before = self._apart(self._together(query) @ keys.mT + self.padding)
        weights = torch.cat([before, own], -1)
        weights = weights.softmax(-1, dtype=torch.promote_types(weights.dtype, torch.float32)).to(weights.dtype)
        longest = keys.shape[2]
        read = self._apart(self._together(weights[..., :longest]) @ values)
        return read + weights[..., longest:] @ own_values

    def of(self, kept: Tensor) -> Group:
        """The same with these answers alone; prompts that none of them reads are dropped."""
        prompts, prompt = self.prompt[kept].unique_consecutive(return_inverse=True)
        group = self
        if len(prompts) < len(self.padding):
            keys, values = ([tensor[prompts] for tensor in tensors] for tensors in (self.keys, self.values))
            group = replace(self, keys=keys, values=values, padding=self.padding[prompts])
        return replace(group, prompt=prompt, **_slots(prompt))

    def _together(self, tensor: Tensor) -> Tensor:
        """[answers, kv heads, heads, x] to [prompts, kv heads, answers to a prompt * heads, x]."""
        if self.slot is not None:
            empty = tensor.new_zeros(len(self.padding) * self.most, *tensor.shape[1:])
            tensor = empty.index_copy(0, self.slot, tensor)
        return tensor.unflatten(0, (-1, self.most)).transpose(1, 2).flatten(2, 3)

    def _apart(self, tensor: Tensor) -> Tensor:
        """The reverse of `_together`."""
        tensor = tensor.unflatten(2, (self.most, -1)).transpose(1, 2).flatten(0, 1)
        return tensor if self.slot is None else tensor[self.slot]


def group_prompts(keys: list[Tensor], values: list[Tensor], lengths: list[int], prompt: Tensor) -> list[Group]:
    """Groups of the prompts whose keys and values [kv heads, tokens, d] follow each other in each layer, with ascending
    `lengths`; `prompt` [answers] is the prompt of each answer, ascending."""
    groups, last = [], len(lengths)
    while last:
        first = next(i for i, length in enumerate(lengths) if length >= SHORTEST * lengths[last - 1])
        own = prompt[(prompt >= first) & (prompt < last)] - first
        groups.append(_group(keys, values, sum(lengths[:first]), lengths[first:last], own))
        last = first
    return groups[::-1]


def _group(keys: list[Tensor], values: list[Tensor], start: int, lengths: list[int], prompt: Tensor) -> Group:
    like = keys[0]
    length = torch.tensor(lengths, device=like.device)[:, None]
    column = torch.arange(lengths[-1], device=like.device)
    token = start + length.cumsum(0) - length + torch.minimum(column, length - 1)  # what pads is masked
    padding = torch.zeros(token.shape, dtype=like.dtype, device=like.device).masked_fill(column >= length, -torch.inf)
    kept = [[tensor[:, token].transpose(0, 1).contiguous() for tensor in tensors] for tensors in (keys, values)]
    return Group(*kept, padding[:, None, None], prompt, **_slots(prompt))


def _slots(prompt: Tensor) -> dict:
    counts = torch.bincount(prompt)
    most = int(counts.max())
    if bool((counts == most).all()):
        return {"most": most, "slot": None}
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(prompt), device=prompt.device) - first[prompt]
    return {"most": most, "slot": prompt * most + rank}
