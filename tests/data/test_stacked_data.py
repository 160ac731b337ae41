from dataclasses import replace

import pytest
import torch

from rlpref.data.stacked import move_prompts, stack_data
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


@pytest.mark.parametrize("part", ["train", "test", "prompts", "test_prompts"])
def test_runs_of_different_sizes_are_refused(task, testbed_models, testbed_data, part):
    data = testbed_data(task, testbed_models(task))
    with pytest.raises(Unstackable, match="different numbers"):
        stack_data([data, replace(data, **{part: getattr(data, part)[:1]})], task.tree)
