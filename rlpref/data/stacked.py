"""The data of several runs under each other, prompts numbered as the stacked models read them (models.stacked)."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlpref.data.preferences import PreferenceData
from rlpref.models.tabular import AnswerTree
from rlpref.ops.blocks import Unstackable
from rlpref.types import Prompts, Sequences, TensorBatch, cat


def stack_data(runs: list[PreferenceData], tree: AnswerTree) -> PreferenceData:
    """Training rows and prompts of all runs, a block for each; the rest is the first run's. Raises Unstackable where
    the runs have different numbers of them, or not the same columns."""
    sizes = {tuple(map(len, (data.train, data.prompts, data.test or (), data.test_prompts))) for data in runs}
    if len(sizes) > 1:
        raise Unstackable("the runs have different numbers of rows")
    if len({tuple(name for name, value in data.train.items() if value is None) for data in runs}) > 1:
        raise Unstackable("the data of some runs lack columns that others have")
    train, prompts = (stack_rows([getattr(data, name) for data in runs], tree) for name in ("train", "prompts"))
    return replace(runs[0], train=train, prompts=prompts)


def stack_rows(own: list[TensorBatch], tree: AnswerTree | None) -> TensorBatch:
    """The rows of all runs under each other, as the stack of their models reads them; those of one run as they are,
    whatever its model. `tree` is that of one run."""
    return cat([move_prompts(batch, i, tree) if i else batch for i, batch in enumerate(own)])


def own_rows(batch: TensorBatch, run: int, runs: int, tree: AnswerTree | None) -> TensorBatch:
    """The block of one run, as the run itself would have it: takes back `stack_rows`."""
    each = len(batch) // runs
    block = batch[run * each : (run + 1) * each]
    return move_prompts(block, -run, tree) if run else block


def move_prompts(batch: TensorBatch, by: int, tree: AnswerTree) -> TensorBatch:
    """The batch with its prompt tokens moved by the prompts of so many runs (backwards where negative)."""
    if isinstance(batch, Sequences | Prompts):
        moved = torch.where(batch.ids >= tree.vocab, batch.ids + by * tree.prompts, batch.ids)
        return replace(batch, ids=moved)
    nested = {name: value for name, value in batch.items() if isinstance(value, TensorBatch)}
    return replace(batch, **{name: move_prompts(value, by, tree) for name, value in nested.items()})
