import torch

from rlpref.ops.blocks import blocks, chosen_rows, spread, uniform


def test_rows_of_each_run_are_one_block():
    assert blocks(torch.arange(6), 3).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert chosen_rows([torch.tensor([1, 0]), torch.tensor([0, 2])], 6).tolist() == [1, 0, 3, 5]
    assert spread(torch.tensor([0.1, 0.2]), 4).tolist() == torch.tensor([0.1, 0.1, 0.2, 0.2]).tolist()
    assert spread(0.3, 4) == 0.3


def test_each_block_is_drawn_as_its_run_draws_alone():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    together = blocks(uniform(generators(), 12, 2), 3)
    for run, generator in enumerate(generators()):
        assert torch.equal(together[run], uniform([generator], 4, 2))
    assert together.unique().numel() > 20
