"""Search for a likely answer on the testbed. Policies are conditionals [prompts, inner, vocab]."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.testbed.task import Testbed


def beam_search(task: Testbed, policy: Tensor, width: int) -> Tensor:
    """[prompts] the place, in a flattened [inner, vocab] table, of the likeliest answer that a beam of `width` finds.

    After every token the `width` likeliest of all answers so far stay, finished ones among them. 1 is the greedy
    answer; as many as there are answers finds the likeliest of all. For pi* the log-prob is (r - V_0)/beta + log ref,
    so that this is a search for r + beta log ref: Rafailov et al. 2024 (2404.12358).

    Raises ValueError for a width below 1.
    """
    if width < 1:
        raise ValueError(f"a beam holds at least one answer; got a width of {width}.")
    vocab, prompts = task.tree.vocab, len(policy)
    nothing = policy.new_full((prompts, task.tree.inner), float("-inf"))
    live, finished = nothing.clone(), nothing.repeat_interleave(vocab, 1)
    live[:, 0] = 0.0
    for depth in range(task.tree.horizon):
        here = task.depth == depth
        grown = torch.where(here[:, None], live[:, :, None] + policy, float("-inf"))
        finished = finished.maximum(grown.masked_fill(~task.ends, float("-inf")).flatten(1))
        both = torch.cat([finished, grown.masked_fill(task.ends, float("-inf")).flatten(1)], 1)
        bar = both.topk(min(width, both.shape[1]), 1).values[:, -1:]
        finished, growing = both.masked_fill(both < bar, float("-inf")).chunk(2, 1)
        live = nothing.clone()
        if depth < task.tree.horizon - 1:
            children = here.nonzero() * (vocab - 1) + torch.arange(1, vocab)
            live[:, children] = growing.view_as(policy)[:, here, 1:]
    return finished.argmax(1)
