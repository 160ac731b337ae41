"""The exactly solvable task: a small answer space, a known reference and a known gold reward.

Per prompt the answers form a tree (`AnswerTree`). Everything about a policy on it is one tensor of next-token
log-probs, `[prompts, inner, vocab]`, called its conditionals; a function of finished answers has the same
shape and is read where `ends` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlpref.binding import ConfigError
from rlpref.models.tabular import AnswerTree
from rlpref.types import Sequences

LARGEST_TREE = 2_000_000  # table entries: above it enumeration stops being a matter of seconds


@dataclass
class Testbed:
    """A task and its truth. Prompts are equally likely. fp64 throughout."""

    __test__ = False  # not a test class, whatever its name suggests to pytest

    tree: AnswerTree
    seed: int
    reward: str
    prefixes: Tensor  # [inner, horizon] tokens of each prefix, -1 beyond its end
    depth: Tensor  # [inner]
    ends: Tensor  # [inner, vocab] bool: this token finishes the answer
    ref: Tensor  # [prompts, inner, vocab] conditionals of the reference n-gram model
    rewards: Tensor  # [prompts, inner, vocab] gold reward of the answer that this token finishes
    costs: Tensor | None = None  # [prompts, inner, vocab] likewise; None: nothing costs anything

    @property
    def eos_token_id(self) -> int:
        return 0


def make_testbed(
    vocab: int,
    horizon: int,
    prompts: int,
    seed: int,
    reward: str,
    options: Mapping[str, Any] | None = None,
    cost: str | None = None,
    cost_options: Mapping[str, Any] | None = None,
    reference_spread: float = 0.5,
) -> Testbed:
    """The task of that seed. Gold rewards have mean 0 and variance 1 per prompt under the reference, unless
    their family says otherwise. `options` are the settings of the reward's family; null: it has none. So it is with
    `cost` and `cost_options`; null: no cost. A cost changes neither reference nor reward. `reference_spread` is the
    standard deviation of the reference's next-token logits; 0: it is uniform.

    Raises ConfigError for sizes that make no task or cannot be enumerated, for an unknown reward or cost, and
    for an option that its family does not use.
    """
    from rlpref.testbed.rewards import cost_family, gold_rewards, reward_family  # they are functions of a Testbed

    family = reward_family(reward, options)
    costly = cost_family(cost, cost_options)
    if vocab < 2 or horizon < 1 or prompts < 1:
        raise ConfigError(f"testbed needs vocab >= 2, horizon >= 1, prompts >= 1; got {vocab}, {horizon}, {prompts}.")
    entries = prompts * vocab * sum((vocab - 1) ** t for t in range(horizon))
    if reference_spread < 0:
        raise ConfigError(f"testbed.reference_spread must not be below 0, but is {reference_spread}.")
    if entries > LARGEST_TREE:
        raise ConfigError(
            f"testbed with vocab {vocab}, horizon {horizon}, prompts {prompts} has {entries:,} table entries; "
            f"at most {LARGEST_TREE:,} are enumerated. Make one of the three smaller."
        )
    tree = AnswerTree(vocab, horizon, prompts)
    prefixes, depth = _prefixes(tree)
    ends = torch.zeros(tree.inner, vocab, dtype=torch.bool)
    ends[:, 0] = True
    ends[depth == horizon - 1] = True
    generator = torch.Generator().manual_seed(seed)
    previous = prefixes.gather(1, (depth - 1).clamp(min=0)[:, None])[:, 0]  # -1 (the last row) at the start
    # At a spread of 0.5 every answer stays likely enough that pairs from the reference can tell its reward.
    bigram = reference_spread * torch.randn(prompts, vocab + 1, vocab, generator=generator, dtype=torch.float64)
    ref = bigram[:, previous].log_softmax(-1)
    task = Testbed(tree, seed, reward, prefixes, depth, ends, ref, torch.zeros_like(ref))
    task.rewards = gold_rewards(task, family, generator)
    task.costs = costly(task, generator) if costly else None
    return task


def _prefixes(tree: AnswerTree) -> tuple[Tensor, Tensor]:
    """([inner, horizon], [inner]) tokens and depths in the tree's own order: level by level, children in a row."""
    level, rows, depths = torch.empty(1, 0, dtype=torch.long), [], []
    for depth in range(tree.horizon):
        rows.append(nn.functional.pad(level, (0, tree.horizon - depth), value=-1))
        depths.append(torch.full((len(level),), depth))
        token = torch.arange(1, tree.vocab).repeat(len(level))
        level = torch.cat([level.repeat_interleave(tree.vocab - 1, 0), token[:, None]], 1)
    return torch.cat(rows), torch.cat(depths)


def answer_tokens(task: Testbed) -> Tensor:
    """[inner, vocab, horizon] the tokens of each answer: its prefix, the token that ends it (EOS is 0), then -1."""
    tokens = task.prefixes[:, None].repeat(1, task.tree.vocab, 1)
    last = torch.arange(task.tree.vocab).expand(task.tree.inner, -1)[:, :, None]
    return tokens.scatter_(2, task.depth[:, None, None].expand_as(last), last)


def answer_places(task: Testbed) -> Tensor:
    """[answers] the place of each finished answer in a flattened [inner, vocab] table."""
    return task.ends.flatten().nonzero()[:, 0]


def answer_lengths(task: Testbed) -> Tensor:
    """[inner, vocab] the number of tokens of each answer in fp64, EOS not counted."""
    return (answer_tokens(task) > 0).sum(-1).double()


@dataclass
class TestbedScorer:
    """The gold reward as a scorer of token sequences."""

    __test__ = False

    task: Testbed
    name: str = "testbed"

    def __call__(self, sequences: Sequences) -> Tensor:
        """[B] gold reward in fp32. Raises ValueError for a sequence that is no finished answer."""
        prompt, leaf = places(self.task.tree, sequences)
        return self.task.rewards.to(leaf.device).flatten(1)[prompt, leaf].float()


def places(tree: AnswerTree, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """[B] the prompt of each sequence and the place of its answer in a flattened [inner, vocab] table.
    Raises ValueError for a sequence that is no finished answer."""
    start = sequences.ids.new_zeros(len(sequences))
    state = tree.read(sequences.ids, sequences.attention_mask, start)[:, -1] - 1
    prompt, leaf = state // tree.per_prompt, state % tree.per_prompt - tree.inner
    unfinished = (leaf < 0) | (state < 0)  # below 0: no prompt was read
    if unfinished.any():
        raise ValueError(f"row {int(unfinished.nonzero()[0])} is not a finished answer of the testbed")
    return prompt, leaf


def conditionals(task: Testbed, model: nn.Module, temperature: float = 1.0, batch_size: int = 4096) -> Tensor:
    """Next-token log-probs [prompts, inner, vocab] of any model with a causal LM's call, differentiable.

    Each prefix is read once, as one more token on the cache of the prefix before it; answers that have ended
    are no prefixes. At most `batch_size` rows go through the model in one call: where a prompt has more longest
    prefixes, its tree is cut into subtrees, whose roots are read whole.
    """
    tree = task.tree
    width = [(tree.vocab - 1) ** depth for depth in range(tree.horizon)]  # prefixes of each length
    root = next(depth for depth in range(tree.horizon) if width[-1 - depth] <= batch_size)
    prefixes = task.prefixes[task.depth == root, :root].repeat(tree.prompts, 1)
    prompts = (torch.arange(tree.prompts) + tree.vocab).repeat_interleave(width[root])
    ids = torch.cat([prompts[:, None], prefixes], dim=1).to(next(model.parameters()).device)
    parts = [_subtrees(model, chunk, tree) for chunk in ids.split(batch_size // width[-1 - root])]
    levels = [torch.cat(level).view(tree.prompts, -1, tree.vocab) for level in zip(*parts)]
    # Prefixes above the roots were read with each of the roots below them: the first of these is enough.
    levels[:root] = [levels[depth][:, :: width[root - depth]] for depth in range(root)]
    return (torch.cat(levels, dim=1).double() / temperature).log_softmax(-1)


def _subtrees(model: nn.Module, roots: Tensor, tree: AnswerTree) -> list[Tensor]:
    """Next-token logits [rows, vocab] of each depth, for prompt and prefix [B, 1 + depth] and all below them.
    Rows stand in the order of the prefixes; at the depths above the roots there is one for each root."""
    ids, seen, cache, levels = roots, torch.ones_like(roots), None, []
    tokens = torch.arange(1, tree.vocab, device=roots.device)
    while True:
        positions = torch.arange(seen.shape[1] - ids.shape[1], seen.shape[1], device=ids.device)
        output = model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions.expand(len(ids), -1),
            past_key_values=cache,
            use_cache=True,
        )
        levels += output.logits.unbind(1)
        if len(levels) == tree.horizon:
            return levels
        cache = output.past_key_values
        cache.batch_repeat_interleave(len(tokens))
        ids = tokens.repeat(len(ids))[:, None]
        seen = seen.new_ones(len(ids), seen.shape[1] + 1)
