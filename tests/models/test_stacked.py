"""Stacked tables give each row what its own run's table gives, and each run its own gradient."""

import pytest
import torch

from rlpref.data.stacked import move_prompts
from rlpref.models.heads import scalar_model
from rlpref.models.stacked import StackedHead, StackedLM, Unstacked, member
from rlpref.models.tabular import TabularLM
from rlpref.rollout.sampler import sample
from rlpref.types import Prompts, Sequences, cat

VOCAB, HORIZON, PROMPTS, RUNS = 3, 3, 2, 4


@pytest.fixture
def tables():
    generator = torch.Generator().manual_seed(0)
    made = [TabularLM(VOCAB, HORIZON, PROMPTS) for _ in range(RUNS)]
    for table in made:
        torch.nn.init.normal_(table.model.rows.weight, generator=generator)
    return made


def answers(seed: int) -> Sequences:
    """Both prompts, padded on either side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (6, 5), generator=generator)
    attention = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]] * 3).bool()
    start = torch.tensor([1, 0] * 3)
    ids[torch.arange(6), start] = VOCAB + torch.tensor([0, 1, 1, 0, 1, 0])
    mask = attention & (torch.arange(5) > start[:, None])
    return Sequences(ids, attention, mask)


def stacked_answers(tree) -> Sequences:
    return cat([move_prompts(answers(seed), seed, tree) for seed in range(RUNS)])


def test_logits_and_gradients_are_those_of_the_runs_own_tables(tables):
    stack = StackedLM(tables)
    batch = stacked_answers(tables[0].model.tree)
    found = stack(batch.ids, batch.attention_mask.long()).logits.view(RUNS, 6, 5, VOCAB)
    for run, table in enumerate(tables):
        own = answers(run)
        expected = table(own.ids, own.attention_mask.long()).logits
        torch.testing.assert_close(found[run][own.attention_mask], expected[own.attention_mask], rtol=0, atol=0)
    found[2][answers(2).mask].square().sum().backward()
    touched = [table.model.rows.weight.grad.abs().sum() > 0 for table in tables]
    assert touched == [False, False, True, False]


@pytest.mark.parametrize("order", ["blocks", "shuffled", "uneven"])
def test_heads_are_those_of_the_rows_own_runs(tables, order):
    heads = [scalar_model(table, None, torch.Generator().manual_seed(i)) for i, table in enumerate(tables)]
    for head in heads:
        torch.nn.init.normal_(head.head.bias, generator=torch.Generator().manual_seed(9))
    batch = stacked_answers(tables[0].model.tree)
    rows = {"blocks": torch.arange(24), "shuffled": torch.randperm(24), "uneven": torch.randperm(24)[:13]}[order]
    shuffled = batch[rows]
    found = StackedHead(heads)(shuffled.ids, shuffled.attention_mask.long(), shuffled.position_ids)
    for at, row in enumerate(rows.tolist()):
        own = answers(row // 6)[torch.tensor([row % 6])]
        expected = heads[row // 6](own.ids, own.attention_mask.long(), own.position_ids)
        torch.testing.assert_close(found[at][own.attention_mask[0]], expected[0][own.attention_mask[0]])


def test_samples_are_those_that_each_run_draws_alone(tables):
    prompts = Prompts(torch.tensor([[VOCAB], [VOCAB + 1]]), torch.ones(2, 1, dtype=torch.bool))
    together = cat([move_prompts(prompts, run, tables[0].model.tree) for run in range(RUNS)])
    generators = [torch.Generator().manual_seed(run) for run in range(RUNS)]
    found = sample(StackedLM(tables), together, 5, HORIZON, 1.0, 0, generators, batch_size=7)
    for run, table in enumerate(tables):
        own = sample(table, prompts, 5, HORIZON, 1.0, 0, [torch.Generator().manual_seed(run)])
        rows = move_prompts(found[slice(run * 10, run * 10 + 10)].sequences, -run, table.model.tree)
        width = own.sequences.ids.shape[1]
        assert torch.equal(rows.ids[:, :width], own.sequences.ids)
        assert torch.equal(rows.mask[:, :width], own.sequences.mask)
        assert torch.equal(found.logps[run * 10 : run * 10 + 10, :width], own.logps)


def test_scorers_read_the_prompts_of_their_own_task(tables):
    tree = tables[0].model.tree
    scorer = Unstacked(lambda sequences: sequences.ids.amax(1), tree)
    assert scorer(stacked_answers(tree)).tolist() == [VOCAB + x for x in (0, 1, 1, 0, 1, 0)] * RUNS


def test_a_member_is_the_runs_own_module(tables):
    stack = StackedLM(tables)
    assert member(stack, 2) is tables[2]
    assert member(tables[0], 0) is tables[0]
