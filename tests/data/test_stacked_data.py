from dataclasses import replace

import pytest
import torch

from rlpref.data.stacked import move_prompts, own_rows, stack_data
from rlpref.ops.blocks import Unstackable, blocks


def test_rows_of_all_runs_stand_in_blocks_with_prompts_of_their_own(task, testbed_models, testbed_data):
    data, tree = testbed_data(task, testbed_models(task)), task.tree
    stacked = stack_data([data, data, data], tree)
    for run, ids in enumerate(blocks(stacked.train.chosen.ids, 3)):
        prompts, answers = ids[:, 0] - tree.vocab, ids[:, 1:]
        assert torch.equal(prompts, data.train.chosen.ids[:, 0] - tree.vocab + run * tree.prompts)
        assert torch.equal(answers, data.train.chosen.ids[:, 1:])
    assert stacked.prompts.ids.flatten().tolist() == list(range(tree.vocab, tree.vocab + 3 * tree.prompts))
    back = move_prompts(move_prompts(data.train, 2, tree), -2, tree)
    assert torch.equal(back.rejected.ids, data.train.rejected.ids)


KINDS = {"kwise": ["answers"], "unpaired": ["sequences", "mismatched"]}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_rows_stand_in_blocks_too(task, testbed_models, testbed_data, kind):
    models, tree = testbed_models(task), task.tree
    settings = {"kind": kind, "k": 3 if kind == "kwise" else None}
    own = [testbed_data(task, models, seed=seed, **settings) for seed in (0, 1)]
    stacked = stack_data(own, tree).train
    for run, data in enumerate(own):
        block = own_rows(stacked, run, 2, tree)
        for name in KINDS[kind]:
            found, expected = getattr(block, name), getattr(data.train, name)
            width = expected.ids.shape[-1]
            assert torch.equal(found.ids[..., :width], expected.ids)
            assert torch.equal(found.mask[..., :width], expected.mask)
    sequences = stacked.flat() if kind == "kwise" else stacked.mismatched
    prompts = sequences.ids[:, 0] - tree.vocab
    assert torch.equal(prompts // tree.prompts, torch.arange(2).repeat_interleave(len(prompts) // 2))


def test_runs_of_which_some_lack_a_column_are_refused(task, testbed_models, testbed_data):
    data = testbed_data(task, testbed_models(task))
    without = replace(data, train=replace(data.train, soft_label=None))
    with pytest.raises(Unstackable, match="lack columns"):
        stack_data([data, without], task.tree)


@pytest.mark.parametrize("part", ["train", "test", "prompts", "test_prompts"])
def test_runs_of_different_sizes_are_refused(task, testbed_models, testbed_data, part):
    data = testbed_data(task, testbed_models(task))
    with pytest.raises(Unstackable, match="different numbers"):
        stack_data([data, replace(data, **{part: getattr(data, part)[:1]})], task.tree)
