"""Several runs' models read as one, so that one pass serves all of them: the replica axis.

Prompt x of run r is the token `vocab + r * prompts + x`: a token says whose row it stands in, wherever rows are
reordered, dropped or cut into chunks. Each run keeps its own parameters; the stack only looks them up together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlpref.models.bundle import Models
from rlpref.models.heads import ScalarHead, linear
from rlpref.models.reference import Reference
from rlpref.models.tabular import AnswerTree, TabularBackbone, TabularLM, as_logits, look_up
from rlpref.ops.blocks import Unstackable, blocks
from rlpref.types import Sequences


class StackedTable(nn.Module):
    """The tables of several runs as one decoder over the answers to all of their prompts."""

    def __init__(self, members: list[TabularBackbone]):
        super().__init__()
        tree = members[0].tree
        self.members = nn.ModuleList(members)
        self.tree = AnswerTree(tree.vocab, tree.horizon, tree.prompts * len(members)).to(tree.after.device)

    def forward(self, input_ids, attention_mask=None, past_key_values=None, **_):
        """As TabularBackbone; the row before any prompt is that of no run and holds zeros."""
        tables = torch.stack([member.rows.weight for member in self.members])[:, 1:].flatten(0, 1)
        rows = nn.functional.pad(tables, (0, 0, 1, 0))
        return look_up(self.tree, rows, input_ids, attention_mask, past_key_values)


class StackedLM(nn.Module):
    """The language models of several runs as one."""

    def __init__(self, members: list[TabularLM]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.model = StackedTable([member.model for member in members])

    def forward(self, input_ids, attention_mask=None, logits_to_keep: int = 0, **kwargs):
        """As TabularLM."""
        return as_logits(self.model(input_ids, attention_mask, **kwargs), logits_to_keep)


class StackedHead(nn.Module):
    """The scalar heads of several runs, each on its own table."""

    def __init__(self, members: list[ScalarHead]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.backbone = StackedTable([member.backbone for member in members])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """[B, T] the number after reading each token, by the head of the row's own run."""
        read = self.backbone(input_ids, attention_mask).last_hidden_state
        own, n = self.members[0].backbone.tree, len(self.members)
        run = (input_ids.amax(1) - own.vocab) // own.prompts
        weight = torch.cat([member.head.weight for member in self.members])
        bias = torch.cat([member.head.bias for member in self.members])
        order = run.argsort(stable=True)
        if (torch.bincount(run, minlength=n) * n != len(run)).any():
            return linear(read, weight[run][:, None], bias[run][:, None])
        # In blocks the gradients of a head are added up in the order of its own run alone.
        values = linear(blocks(read[order], n), weight[:, None, None], bias[:, None, None])
        return values.flatten(0, 1)[order.argsort()]


def stack_models(runs: list[Models]) -> Models:
    """The models of runs on one task as one; a scorer is the first run's, and must be the same for all. Raises
    Unstackable for models that are not tables."""
    first = runs[0]
    if any(models.rule != first.rule for models in runs):
        raise Unstackable("the runs differ in their reference")
    if any(getattr(m.reward, "normalised", None) != getattr(first.reward, "normalised", None) for m in runs):
        raise Unstackable("the runs normalise their reward on different answers")
    if not all(isinstance(models.policy, TabularLM) for models in runs):
        raise Unstackable(f"{type(first.policy).__name__} has no replica axis")
    tree = first.policy.model.tree

    def reference(name: str) -> Reference | None:
        members = [getattr(models, name) for models in runs]
        return members[0] and replace(members[0], model=StackedLM([member.model for member in members]).eval())

    def heads(name: str) -> StackedHead | None:
        members = [getattr(models, name) for models in runs]
        return None if members[0] is None else StackedHead(members).eval()

    initial = reference("initial")
    gold = first.gold and Unstacked(first.gold, tree)
    return replace(
        first,
        policy=StackedLM([models.policy for models in runs]).eval(),
        ref=initial if first.ref is first.initial else reference("ref"),
        initial=initial,
        chunk=first.chunk * len(runs),
        engine=replace(first.engine, rows=first.engine.rows * len(runs)),
        reward=first.reward and (gold if first.reward is first.gold else Unstacked(first.reward, tree)),
        gold=gold,
        cost=first.cost and Unstacked(first.cost, tree),
        preference=first.preference and Unstacked(first.preference, tree),
        critic=heads("critic"),
        reward_model=heads("reward_model"),
    )


def tree_of(policy: nn.Module) -> AnswerTree | None:
    """That of one run of a stack; None for the policy of a run alone, whose rows nobody moves."""
    return policy.members[0].model.tree if isinstance(policy, StackedLM) else None


def member(module: nn.Module, run: int) -> nn.Module:
    """The module of one run: of a stack its own, else the module itself."""
    return module.members[run] if isinstance(module, StackedLM | StackedHead) else module


@dataclass
class Unstacked:
    """A scorer or a preference of the runs' common task that reads stacked prompts."""

    scorer: object
    tree: AnswerTree

    def __call__(self, *answers: Sequences) -> Tensor:
        return self.scorer(*map(self._own, answers))

    @property
    def disagreement(self) -> Callable[[Sequences], Tensor] | None:
        """That of an ensemble."""
        found = getattr(self.scorer, "disagreement", None)
        return found and (lambda sequences: found(self._own(sequences)))

    def _own(self, sequences: Sequences) -> Sequences:
        vocab, prompts = self.tree.vocab, self.tree.prompts
        ids = sequences.ids
        return replace(sequences, ids=torch.where(ids >= vocab, vocab + (ids - vocab) % prompts, ids))
