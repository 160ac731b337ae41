"""The enumeration on the cache against reading the longest prefixes whole, in values, gradients and cost."""

import runpy
from pathlib import Path

import pytest
import torch

from rlpref.models.tabular import TabularLM
from rlpref.models.tiny import tiny_llama
from rlpref.testbed.task import conditionals, make_testbed

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "enumeration.py"))
longest_prefixes = BENCHMARK["longest_prefixes"]


def uneven_llama(task, layers=2):
    tree = task.tree
    model = tiny_llama(tree.vocab, tree.horizon, tree.prompts, hidden_size=16, layers=layers, heads=2, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 12
    return model


SHAPES = [(4, 4, 3), (2, 5, 2), (5, 1, 2), (3, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 5, 40, 4096])
def test_it_gives_what_reading_whole_prefixes_gives(shape, batch_size):
    """However the trees are cut into batches."""
    task = make_testbed(*shape, seed=0, reward="ngram")
    for model in (uneven_llama(task), TabularLM(*shape).set_conditionals(task.ref)):
        with torch.no_grad():
            found, expected = conditionals(task, model, batch_size=batch_size), longest_prefixes(task, model)
        assert found.shape == task.ref.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_its_gradient_is_that_of_reading_whole_prefixes():
    task = make_testbed(4, 4, 2, seed=0, reward="ngram")
    model = uneven_llama(task).double()
    gradients = []
    for table in (conditionals(task, model), conditionals(task, model, batch_size=10), longest_prefixes(task, model)):
        loss = (task.ref.exp() * (task.ref - table)).sum(-1).mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for found in gradients[:2]:
        for part, expected in zip(found, gradients[2], strict=True):
            torch.testing.assert_close(part, expected, atol=1e-6, rtol=0)  # a Llama's norms are fp32 in any case
    assert max(part.abs().max() for part in gradients[2]) > 1e-3


@pytest.mark.parametrize("batch_size", [9, 4096])
def test_each_unfinished_prefix_is_read_once_and_no_finished_answer(batch_size):
    """Token positions that go through the model; only the roots of cut trees are read with all before them."""
    task = make_testbed(4, 4, 2, seed=0, reward="ngram")
    model, read = uneven_llama(task, layers=1), []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        conditionals(task, model, batch_size=batch_size)
    inner = task.tree.inner
    assert inner == 1 + 3 + 9 + 27
    once = 2 * inner if batch_size == 4096 else 2 * (inner - 1 - 3) + 2 * 3 * 2
    assert sum(rows * width for rows, width in read) == once
    assert max(rows for rows, _ in read) <= batch_size


def test_the_benchmark_compares_ways_that_agree():
    rows = BENCHMARK["compare"](vocab=4, horizon=3, prompts=2, hidden_size=16, layers=2, repeats=1)
    assert [row["way"] for row in rows] == ["longest prefixes", "tree mask", "cache"]
    assert all(row["difference"] < 1e-5 for row in rows)
    assert len(BENCHMARK["table"](rows).splitlines()) == 4
