import torch
from torch import nn

from rlpref.models.hashing import weights_hash


def linear(dtype=torch.float32) -> nn.Module:
    layer = nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).view(2, 3))
        layer.bias.zero_()
    return layer


def test_equal_weights_have_equal_hashes_of_16_hex_digits():
    assert weights_hash(linear()) == weights_hash(linear())
    assert len(weights_hash(linear())) == 16
    assert int(weights_hash(linear()), 16) >= 0


def test_one_changed_weight_changes_the_hash_in_either_precision():
    for dtype in (torch.float32, torch.bfloat16):
        before, changed = linear(dtype), linear(dtype)
        with torch.no_grad():
            changed.weight[1, 2] = torch.nextafter(changed.weight[1, 2], torch.tensor(9.0, dtype=dtype))
        assert weights_hash(before) != weights_hash(changed)


def test_dtype_shape_and_name_are_part_of_the_hash():
    zeros = [nn.Linear(4, 1, bias=False), nn.Linear(2, 2, bias=False)]
    for layer in zeros:
        nn.init.zeros_(layer.weight)
    renamed = nn.Sequential(zeros[0])
    hashes = {weights_hash(model) for model in [*zeros, renamed]}
    assert len(hashes) == 3
    assert weights_hash(linear()) != weights_hash(linear(torch.bfloat16))


def test_values_that_lie_apart_in_memory_hash_as_their_copy():
    strided, copied = nn.Module(), nn.Module()
    values = torch.arange(6.0).view(2, 3).T
    strided.register_buffer("x", values)
    copied.register_buffer("x", values.contiguous())
    assert weights_hash(strided) == weights_hash(copied)
