"""The data of several runs under each other, prompts numbered as the stacked models read them (models.stacked)."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlpref.data.preferences import PreferenceData
from rlpref.models.tabular import AnswerTree
from rlpref.ops.blocks import Unstackable
from rlpref.types import Prompts, Sequences, TensorBatch, cat


def stack_data(runs: list[PreferenceData], tree: AnswerTree) -> PreferenceData:
    """Train pairs and prompts of all runs, a block for each; the rest is the first run's. Raises Unstackable where
    the runs have different numbers of them."""
    sizes = {tuple(map(len, (data.train, data.prompts, data.test, data.test_prompts))) for data in runs}
    if len(sizes) > 1:
        raise Unstackable("the runs have different numbers of pairs")
    train, prompts = (
        cat([move_prompts(getattr(data, name), i, tree) for i, data in enumerate(runs)])
        for name in ("train", "prompts")
    )
    return replace(runs[0], train=train, prompts=prompts)


def move_prompts(batch: TensorBatch, by: int, tree: AnswerTree) -> TensorBatch:
    """The batch with its prompt tokens moved by the prompts of so many runs (backwards where negative)."""
    if isinstance(batch, Sequences | Prompts):
        moved = torch.where(batch.ids >= tree.vocab, batch.ids + by * tree.prompts, batch.ids)
        return replace(batch, ids=moved)
    nested = {name: value for name, value in batch.items() if isinstance(value, TensorBatch)}
    return replace(batch, **{name: move_prompts(value, by, tree) for name, value in nested.items()})
