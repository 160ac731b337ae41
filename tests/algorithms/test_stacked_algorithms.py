import pytest
import torch

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.stacked import stack_algorithms
from rlpref.losses import make_loss
from rlpref.losses.inputs import PairLogps
from rlpref.ops.blocks import Unstackable, blocks

DEVICE = torch.device("cpu")


def offline(**loss):
    return make_algorithm("offline", {"epochs": 1, "batch_size": 4, "loss": loss, "modifiers": {}}, "offline")


def pairs(rows: int) -> PairLogps:
    generator = torch.Generator().manual_seed(0)
    logps = [torch.randn(rows, generator=generator) for _ in range(4)]
    return PairLogps(*logps, chosen_len=torch.ones(rows), rejected_len=torch.ones(rows))


@pytest.mark.parametrize(("name", "key"), [("dpo", "beta"), ("ipo", "tau")])
def test_each_block_has_the_loss_of_its_run(name, key):
    more = {"normalize": "sum"} if name == "ipo" else {}
    stacked = stack_algorithms([offline(name=name, **{key: value}, **more) for value in (0.1, 0.5)], DEVICE)
    lp = pairs(6)
    found = blocks(stacked.objective(lp), 2)
    for run, value in enumerate((0.1, 0.5)):
        expected = make_loss(name, **{key: value}, **more)(lp)
        torch.testing.assert_close(found[run], blocks(expected, 2)[run])
    assert stacked.scale.tolist() == pytest.approx([0.1, 0.5])


def test_equal_algorithms_stay_what_they_are():
    stacked = stack_algorithms([offline(name="dpo", beta=0.1)] * 2, DEVICE)
    assert stacked.scale == 0.1
    assert stacked.objective.loss.keywords == {"beta": 0.1}


def test_what_has_no_replica_axis_is_named():
    with pytest.raises(Unstackable, match="different losses"):
        stack_algorithms([offline(name="dpo", beta=0.1), offline(name="ipo", tau=0.1, normalize="sum")], DEVICE)
    settings = {"epochs": 1, "batch_size": 4, "loss": {"name": "dpo", "beta": 0.1}, "modifiers": {}}
    longer = make_algorithm("offline", settings | {"epochs": 2}, "offline")
    with pytest.raises(Unstackable, match="'epochs'"):
        stack_algorithms([offline(name="dpo", beta=0.1), longer], DEVICE)
