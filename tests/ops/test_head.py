"""Scores without logits against their definitions on logits, in values, gradients, precision and memory."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlpref.ops import head, scores
from rlpref.ops.tiles import Readout, Tile

VOCAB = 13
TILES = [Tile(3, 4), Tile(1, 1), Tile(64, 64), Tile(3, VOCAB), Tile(7, 5)]


def parts(rows=7, vocab=VOCAB, width=5, dtype=torch.float64, seed=0, bias=True, spread=1.0):
    """(hidden, weight, bias or None, targets) of a head; the targets hold the first and the last column."""
    draw = torch.Generator().manual_seed(seed)
    hidden, weight, b = (
        (spread * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in ((rows, width), (vocab, width), (vocab,))
    )
    targets = torch.randint(vocab, (rows,), generator=draw)
    targets[:2] = torch.tensor([0, vocab - 1])[: len(targets[:2])]
    return hidden, weight, b if bias else None, targets


def reference(rows=7, vocab=VOCAB, dtype=torch.float64, temperature=1.0):
    """A readout of another width that knows no gradient."""
    hidden, weight, _, _ = parts(rows, vocab, width=3, dtype=dtype, seed=1)
    return Readout(hidden.detach(), weight.detach(), None, temperature)


def columns(found):
    return found.logps, found.entropy, found.log_p2


def everything(readout, ref, targets, tile):
    """Every output of every function that has a gradient."""
    found = head.score(readout, targets, entropy=True, p2=True, tile=tile)
    return *columns(found), *head.forward_kl(readout, ref, targets, tile=tile)


def everything_made(readout, ref, targets):
    logits = readout.logits()
    return *columns(scores.score(logits, targets, True, True)), *scores.forward_kl(logits, ref.logits(), targets)


def gradients(outputs, inputs):
    weights = torch.linspace(-1, 2, sum(len(output) for output in outputs), dtype=outputs[0].dtype)
    return torch.autograd.grad((torch.cat(outputs) * weights).sum(), inputs)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(tile, temperature, bias):
    *tensors, targets = parts(bias=bias)
    ref = reference(temperature=temperature)

    def outputs(*tensors):
        return everything(Readout(*tensors, *[None] * (3 - len(tensors)), temperature), ref, targets, tile)

    assert gradcheck(outputs, tuple(tensor for tensor in tensors if tensor is not None))


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("tile", [*TILES, None], ids=str)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_made_logits(rows, tile, dtype, close):
    *tensors, targets = parts(rows, dtype=dtype)
    readout, ref = Readout(*tensors, 0.7), reference(rows, dtype=dtype, temperature=0.7)
    found, expected = everything(readout, ref, targets, tile), everything_made(readout, ref, targets)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, atol=close, rtol=close)
    for ours, theirs in zip(
        head.compare(readout, ref, targets, tile=tile), scores.compare(*made(readout, ref), targets)
    ):
        torch.testing.assert_close(ours, theirs, atol=close, rtol=close)
        assert not ours.requires_grad
    for ours, theirs in zip(gradients(found, tensors), gradients(expected, tensors)):
        torch.testing.assert_close(ours, theirs, atol=10 * close, rtol=10 * close)


def made(*readouts):
    return [readout.logits() for readout in readouts]


def test_gradients_of_a_wide_head_point_the_same_way_in_fp32_and_bf16():
    *exact, targets = parts(rows=300, vocab=5000, width=64, bias=False, spread=0.5)
    expected = gradients([scores.score(Readout(*exact).logits(), targets).logps], exact[:2])
    for dtype, cosine in ((torch.float32, 0.999999), (torch.bfloat16, 0.9999)):
        tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in exact[:2]]
        found = gradients([head.score(Readout(*tensors), targets, tile=Tile(128, 700)).logps], tensors)
        for ours, theirs in zip(found, expected):
            assert ours.dtype == dtype
            assert torch.cosine_similarity(ours.double().flatten(), theirs.flatten(), 0) > cosine


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_bf16_is_off_by_no_more_than_the_rounding_of_its_logits(spread):
    """Against fp64 on the same rounded inputs only the logits differ, each by at most 2^-8 of itself: once rounded to
    8 bits (2^-9) and slack for sums in fp32. Moving logits by e moves a log-prob by at most 2 e."""
    hidden, weight, _, targets = parts(200, 3000, 64, torch.bfloat16, spread=spread)
    exact = Readout(hidden.double(), weight.double()).logits()
    found = head.score(Readout(hidden, weight), targets).logps
    off = (found.double() - scores.score(exact, targets).logps).abs()
    assert found.dtype == torch.float32
    assert (off <= 2 * 2**-8 * exact.abs().amax(1)).all()
    assert off.mean() <= 2**-8 * exact.abs().mean()


def test_a_weight_of_higher_precision_gets_its_gradient_in_it():
    hidden, weight, bias, targets = parts(50, 200, dtype=torch.float32)
    low = hidden.detach().bfloat16().requires_grad_()
    found = head.score(Readout(low, weight, bias), targets, tile=Tile(16, 64)).logps
    rounded = [low, *(tensor.detach().bfloat16().requires_grad_() for tensor in (weight, bias))]
    expected = head.score(Readout(*rounded), targets, tile=Tile(16, 64)).logps
    assert torch.equal(found, expected)
    ours, theirs = gradients([found], [low, weight, bias]), gradients([expected], rounded)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(ours, theirs):
        assert torch.equal(a.to(b.dtype), b)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(size):
    hidden = torch.tensor([[size], [0.0], [size]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0], [0.5], [1.0]], requires_grad=True)
    targets = torch.tensor([0, 1, 2])
    ref = Readout(hidden.detach(), weight.detach())
    found = everything(Readout(hidden, weight), ref, targets, Tile(2, 2))
    assert all(output.isfinite().all() for output in found)
    assert all(gradient.isfinite().all() for gradient in gradients(found, [hidden, weight]))
    assert (found[1] >= 0).all()
    assert all(column.isfinite().all() for column in head.compare(Readout(hidden, weight), ref, targets))


def test_equal_distributions_diverge_by_nothing():
    *tensors, targets = parts(dtype=torch.float32, spread=4.0)
    readout = Readout(*tensors)
    assert (head.compare(readout, readout, targets, tile=Tile(3, 4))[2] == 0).all()
    assert (head.forward_kl(readout, readout, targets, tile=Tile(3, 4))[1] == 0).all()


class Tensors(TorchDispatchMode):
    """Sees every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *(tensor.untyped_storage().nbytes() for tensor in made)])
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return result


def largest(rows, vocab, frozen=True, dtype=torch.float32):
    """Bytes of the largest tensor that a forward and backward pass with everything makes, beside its inputs."""
    hidden, targets = torch.randn(rows, 4, dtype=dtype, requires_grad=True), torch.zeros(rows, dtype=torch.long)
    weight = torch.randn(vocab, 4, dtype=dtype, requires_grad=not frozen)
    tile = Tile(32, 512)
    with Tensors() as seen:
        found = head.score(Readout(hidden, weight), targets, entropy=True, p2=True, tile=tile)
        sum(column.sum() for column in columns(found)).backward()
    # Slices of the weight show its storage.
    return seen.largest, weight.untyped_storage().nbytes(), 32 * 512 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1024, 49_152, 262_144])
def test_memory_grows_neither_with_rows_nor_with_the_vocabulary(vocab, dtype):
    for rows in (48, 96):
        for frozen in (True, False):
            found, weight, tile = largest(rows, vocab, frozen, dtype)
            assert found <= max(weight, tile)
    assert rows * vocab * 2 > 1.4 * max(weight, tile), "all logits would have been seen"


@pytest.mark.parametrize(
    ("needed", "products"),
    [((True, True, True), 3), ((True, False, False), 2), ((False, True, False), 2), ((False, False, True), 1)],
)
def test_what_needs_no_gradient_gets_none_and_costs_no_product(needed, products):
    *tensors, targets = parts()
    tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needed)]
    found = head.score(Readout(*tensors), targets, tile=Tile(7, VOCAB)).logps.sum()
    with Tensors() as seen:
        found.backward()
    assert tuple(tensor.grad is not None for tensor in tensors) == needed
    assert seen.products == products


def test_nothing_is_saved_without_gradients():
    *tensors, targets = parts()
    with torch.no_grad():
        found = head.score(Readout(*tensors), targets, entropy=True)
    assert found.logps.grad_fn is None
    assert found.log_p2 is None


def test_an_output_that_is_not_used_changes_no_gradient():
    *tensors, targets = parts()
    alone = gradients([head.score(Readout(*tensors), targets).logps], tensors)
    beside = gradients([head.score(Readout(*tensors), targets, entropy=True, p2=True).logps], tensors)
    for a, b in zip(alone, beside):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


def test_second_derivatives_are_refused():
    *tensors, targets = parts()
    for output in everything(Readout(*tensors), reference(), targets, None):
        (first,) = torch.autograd.grad(output.sum(), tensors[:1], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


def test_hidden_states_may_lie_anyhow_in_memory():
    hidden, weight, bias, targets = parts()
    other = hidden.detach().t().contiguous().t().requires_grad_()
    strided = torch.stack([hidden.detach(), hidden.detach()], 1)[:, 1].requires_grad_()
    expected = everything(Readout(hidden, weight, bias), reference(), targets, Tile(3, 4))
    for laid in (other, strided):
        found = everything(Readout(laid, weight, bias), reference(), targets, Tile(3, 4))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(gradients(found, [laid]), gradients(expected, [hidden]), atol=1e-11, rtol=0)


def test_deterministic_algorithms_suffice_and_repeat_exactly():
    *tensors, targets = parts(dtype=torch.float32)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [everything(Readout(*tensors), reference(dtype=torch.float32), targets, Tile(3, 4)) for _ in range(2)]
        found = [gradients(run, tensors) for run in runs]
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(runs[0] + found[0], runs[1] + found[1]))


def test_autocast_changes_nothing():
    *tensors, targets = parts(dtype=torch.float32)
    expected = everything(Readout(*tensors), reference(dtype=torch.float32), targets, Tile(3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = everything(Readout(*tensors), reference(dtype=torch.float32), targets, Tile(3, 4))
        by = gradients(found, tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert all(torch.equal(a, b) for a, b in zip(by, gradients(expected, tensors)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="products of bf16 in fp32 need CUDA")
def test_on_cuda_products_of_bf16_are_not_rounded():
    hidden, weight, bias, targets = (tensor.detach().cuda() for tensor in parts(200, 3000, 64, torch.bfloat16))
    exact = Readout(hidden.double(), weight.double(), bias.double()).logits()
    found = head.score(Readout(hidden, weight, bias), targets).logps
    torch.testing.assert_close(found.double(), scores.score(exact, targets).logps, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, ValueError, "hidden"),
        ({"weight": torch.zeros(9, 3)}, ValueError, "weight"),
        ({"bias": torch.zeros(8)}, ValueError, "bias"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, ValueError, "targets"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, ValueError, "int64"),
        ({"targets": torch.tensor([0, 9])}, IndexError, "vocabulary of 9"),
        ({"targets": torch.tensor([-1, 0])}, IndexError, "vocabulary of 9"),
        ({"ref": torch.zeros(8, 4)}, ValueError, "same vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(changed, error, said):
    given = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(9, 4), "bias": None, "temperature": 1.0}
    given |= {"targets": torch.zeros(2, dtype=torch.long), "ref": torch.zeros(9, 4)} | changed
    targets, ref = given.pop("targets"), given.pop("ref")
    with pytest.raises(error, match=said):
        head.compare(Readout(**given), Readout(torch.zeros(2, 4), ref), targets)
