"""Log-probs of tokens from hidden states: all logits made, and a tile of them at a time, side by side in one run.

    python benchmarks/head.py
    python benchmarks/head.py --dtypes bfloat16 --vocabs 49152 --repeats 9

Both take the gradients of hidden states and weight. Every cell of the table is a process of its own with one thread, by
turns; times are those of its processor, which other processes disturb less than the clock's; memory is its largest
resident size beyond that before the first pass. The share is the product's work, 2 N d V in a forward
pass and 4 N d V (without the logits made again) in a backward pass, over the time and over the rate of a plain product
[1024, d] @ [d, 2048] in the same process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from rlpref.ops import head, scores
from rlpref.ops.tiles import Readout

WAYS = {
    "all logits": lambda readout, targets: scores.score(readout.logits(), targets).logps,
    "in tiles": lambda readout, targets: head.score(readout, targets).logps,
}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def peak(width: int, dtype: torch.dtype) -> float:
    """Operations per second of a product of the kernel's shapes: the best of ten."""
    left, right = torch.randn(1024, width).to(dtype), torch.randn(2048, width).to(dtype)
    return 2 * 1024 * 2048 * width / min(seconds(lambda: left @ right.t()) for _ in range(10))


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def measure(way: str, vocab: int, rows: int, width: int, dtype: torch.dtype, passes: int) -> dict[str, float]:
    """Medians over the passes of one process; the first is not counted."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(rows, width).to(dtype).requires_grad_()
    weight = torch.empty(vocab, width, dtype=dtype).normal_(std=0.05).requires_grad_()
    targets, factor = torch.randint(vocab, (rows,)), torch.randn(rows)
    before, times = megabytes(), []
    for _ in range(passes + 1):
        hidden.grad = weight.grad = None
        begun = time.process_time()
        logps = WAYS[way](Readout(hidden, weight), targets)
        middle = time.process_time()
        (logps * factor).sum().backward()
        times.append((middle - begun, time.process_time() - middle))
    memory = megabytes() - before
    forward, backward = (statistics.median(found) for found in zip(*times[1:]))
    best = peak(width, dtype) / (2 * rows * width * vocab)
    shares = {"forward share": 1 / (forward * best), "backward share": 2 / (backward * best)}
    return {"forward": forward, "backward": backward, "memory": memory, **shares}


def cell(way: str, vocab: int, dtype: str, options: argparse.Namespace) -> dict[str, float]:
    given = [way, str(vocab), str(options.rows), str(options.width), dtype, str(options.passes)]
    found = subprocess.run([sys.executable, __file__, "--cell", *given], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def row(dtype: str, vocab: int, way: str, found: list[dict[str, float]]) -> str:
    def middle(key: str, scale: float = 1.0) -> str:
        return f"{scale * statistics.median(values[key] for values in found):,.0f}"

    def spread(key: str) -> str:
        values = [1000 * each[key] for each in found]
        return f"{statistics.median(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"

    shares = f"{middle('forward share', 100)} / {middle('backward share', 100)}"
    return (
        f"| {dtype} | {vocab:,} | {way} | {spread('forward')} | {spread('backward')} | {shares} | {middle('memory')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabs", type=int, nargs="+", default=[1024, 49_152, 262_144])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--passes", type=int, default=1, help="counted passes of one process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each way, by turns")
    parser.add_argument("--cell", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        way, vocab, rows, width, dtype, passes = options.cell
        print(json.dumps(measure(way, int(vocab), int(rows), int(width), getattr(torch, dtype), int(passes))))
        return
    print("| dtype | vocabulary | way | forward, ms | backward, ms | share of the peak, % | memory, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for dtype in options.dtypes:
        for vocab in options.vocabs:
            found: dict = {way: [] for way in WAYS}
            for _ in range(options.repeats):
                for way in WAYS:
                    found[way].append(cell(way, vocab, dtype, options))
            for way in WAYS:
                print(row(dtype, vocab, way, found[way]), flush=True)


if __name__ == "__main__":
    main()
