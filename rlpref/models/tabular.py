"""TabularLM: a language model with one free logit per (prompt, prefix, next token).

It takes the seat of a HF causal LM: the same call, the same outputs, a cache that can be repeated and
selected from. Everything above the models runs on it unchanged. Vocabulary: 0 is EOS, 1..vocab-1 are the
other answer tokens, vocab + x is the one token of prompt x. Answers end with EOS or at the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn


@dataclass
class TabularCache:
    """Where each row stands in its tree: what a key-value cache is to a transformer."""

    state: Tensor  # [B]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.state = self.state.repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state = self.state[indices]


class AnswerTree(nn.Module):
    """Numbers the prefixes of all answers. Per prompt: `inner` prefixes without EOS and shorter than the
    horizon (a heap with `vocab - 1` children: token a > 0 leads from n to n (vocab - 1) + a), then
    `inner * vocab` finished answers. State 0 is "before the prompt"."""

    def __init__(self, vocab: int, horizon: int, prompts: int):
        super().__init__()
        self.vocab, self.horizon, self.prompts = vocab, horizon, prompts
        self.inner = sum((vocab - 1) ** t for t in range(horizon))
        self.per_prompt = self.inner * (vocab + 1)
        self.states = 1 + prompts * self.per_prompt
        self.register_buffer("after", self._after(), persistent=False)

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """[B] the state after reading one answer token [B]; finished answers stay where they are."""
        place = (state - 1) % self.per_prompt
        return state - place + self.after.take(place * self.vocab + token)

    def read(self, ids: Tensor, attention_mask: Tensor, state: Tensor) -> Tensor:
        """[B, L] the state after each column; padding leaves the state alone."""
        prompt = ids >= self.vocab
        answer = torch.where(prompt, 0, ids)
        opened = 1 + (ids - self.vocab) * self.per_prompt
        states = []
        for t, opens in enumerate(prompt.any(0).tolist()):
            after = self.step(state, answer[:, t])
            if opens:
                after = torch.where(prompt[:, t], opened[:, t], after)
            state = torch.where(attention_mask[:, t].bool(), after, state)
            states.append(state)
        return torch.stack(states, 1)

    def _after(self) -> Tensor:
        """[per_prompt * vocab] the place after each place and answer token, within a prompt's share of the states."""
        place = torch.arange(self.per_prompt)[:, None]
        token = torch.arange(self.vocab)
        child = place * (self.vocab - 1) + token
        ends = (token == 0) | (child >= self.inner)
        after = torch.where(ends, self.inner + place * self.vocab + token, child)
        return torch.where(place >= self.inner, place, after).flatten()


class TabularBackbone(nn.Module):
    """The table itself as a decoder: tokens to one free vector per state."""

    def __init__(self, tree: AnswerTree, width: int):
        super().__init__()
        self.tree = tree
        self.rows = nn.Embedding(tree.states, width)
        nn.init.zeros_(self.rows.weight)

    def forward(self, input_ids, attention_mask=None, past_key_values=None, **_) -> SimpleNamespace:
        """As a HF decoder: `.last_hidden_state` [B, L, width] and `.past_key_values`. Positions follow from
        the mask, so `position_ids` is accepted and not needed."""
        return look_up(self.tree, self.rows.weight, input_ids, attention_mask, past_key_values)


def look_up(tree: AnswerTree, rows: Tensor, input_ids, attention_mask, past_key_values) -> SimpleNamespace:
    """What a decoder returns, with the rows [states, width] of a table as hidden states."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if past_key_values is None:
        past_key_values = TabularCache(input_ids.new_zeros(len(input_ids)))
    new_columns = attention_mask[:, -input_ids.shape[1] :]
    states = tree.read(input_ids, new_columns, past_key_values.state)
    # The gradient of index_select adds up rows eight times as fast as that of an embedding.
    hidden = rows.index_select(0, states.flatten()).unflatten(0, states.shape)
    return SimpleNamespace(last_hidden_state=hidden, past_key_values=TabularCache(states[:, -1]))


class TabularLM(nn.Module):
    """The table with its vectors read as next-token logits [.., vocab]."""

    def __init__(self, vocab: int, horizon: int, prompts: int):
        super().__init__()
        self.model = TabularBackbone(AnswerTree(vocab, horizon, prompts), width=vocab)
        self.config = SimpleNamespace(hidden_size=vocab, model_type="tabular")

    def forward(self, input_ids, attention_mask=None, logits_to_keep: int = 0, **kwargs) -> SimpleNamespace:
        """As a HF causal LM; `logits_to_keep` keeps the last columns only (0: all)."""
        return as_logits(self.model(input_ids, attention_mask, **kwargs), logits_to_keep)

    def set_conditionals(self, logps: Tensor) -> TabularLM:
        """Writes next-token log-probs [prompts, inner, vocab] into the table."""
        tree = self.model.tree
        with torch.no_grad():
            table = self.model.rows.weight[1:].view(tree.prompts, tree.per_prompt, tree.vocab)
            table[:, : tree.inner] = logps.to(table)
        return self


def as_logits(read: SimpleNamespace, logits_to_keep: int) -> SimpleNamespace:
    """What a causal LM returns: the last columns of the hidden states (0: all) are the logits."""
    return SimpleNamespace(logits=read.last_hidden_state[:, -logits_to_keep:], past_key_values=read.past_key_values)
