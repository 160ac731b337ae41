"""What the machine's matrix products reach on a model's shapes: the roof that a training step is measured against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoConfig
from turns import Turn, timed
from work import Work, layer_shapes

ROWS = (2048, 4096)  # tokens of a step on a few pairs
SCORED = 1024  # answer tokens that the head reads at once
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def peak(turn: Turn, work: Work) -> None:
    """The side that only multiplies. A report has FLOP/s for each precision and each part of the model."""
    torch.set_num_threads(work.threads)
    config = AutoConfig.from_pretrained(work.model)
    head = [(config.hidden_size, config.vocab_size)]
    turn()
    while True:
        found = {}
        for name, dtype in DTYPES.items():
            layers = [rate(layer_shapes(work.model), rows, dtype, work.device) for rows in ROWS]
            found[name] = {"layers": max(layers), "head": rate(head, SCORED, dtype, work.device)}
        turn({"flops_per_second": found})


def rate(shapes: list[tuple[int, int]], rows: int, dtype: torch.dtype, device: str, repeats: int = 3) -> float:
    """FLOP/s of the three products that training makes with each matrix: forward and both gradients."""
    flops, seconds = 0.0, 0.0
    for inputs, outputs in shapes:
        x, weight, gradient = (
            torch.randn(size, dtype=dtype, device=device)
            for size in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        _products(x, weight, gradient)
        found: dict[str, float] = {}
        with timed(found, "products", device):
            for _ in range(repeats):
                _products(x, weight, gradient)
        seconds += found["products"]
        flops += repeats * 3 * 2.0 * rows * inputs * outputs
    return flops / seconds


def _products(x: Tensor, weight: Tensor, gradient: Tensor) -> None:
    linear(x, weight)
    gradient @ weight
    gradient.T @ x


def floor_seconds(flops: dict[str, float], reached: dict[str, float]) -> float:
    """Seconds below which no step can come: each part at its own measured rate, attention at that of the layers."""
    return sum(count / reached["head" if part == "head" else "layers"] for part, count in flops.items())
