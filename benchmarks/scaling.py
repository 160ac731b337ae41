"""What a DPO step of rlpref costs as pairs get longer and batches larger: tokens per second should stay the same.

    python benchmarks/scaling.py
    python benchmarks/scaling.py model.compile=true    # settings of the runs

Pairs of random tokens and of exact length: half of it prompt, a quarter each answer. Each shape has a process of its
own, one after another, because its peak memory is asked for, too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from dpo_step import dpo_trainer, timed_step
from production import FAST, fixed_batches, with_pairs
from turns import Side, Turn, by_turns, interval, table
from work import Work, options, work_of

from rlpref.data.tokenise import pad_sequences
from rlpref.types import Pairs


@dataclass
class Shape:
    """A step of `pairs` pairs; `length` counts a prompt and both its answers."""

    pairs: int
    length: int


LENGTHS = [Shape(32, 128), Shape(8, 512), Shape(2, 2048)]  # as many tokens in each
BATCHES = [Shape(4, 128), Shape(16, 128), Shape(64, 128)]


def random_pairs(shape: Shape, vocab: int) -> Pairs:
    """The first tokens of a vocabulary are special ones: they are left out."""
    generator = torch.Generator().manual_seed(0)

    def rows(length: int) -> list[list[int]]:
        return torch.randint(vocab // 2, vocab, (shape.pairs, length), generator=generator).tolist()

    prompts = rows(shape.length // 2)
    return Pairs(*(pad_sequences(prompts, rows(shape.length // 4)) for _ in range(2)))


def steps(turn: Turn, work: Work, shape: Shape, overrides: list[str]) -> None:
    """The side: one step a turn."""
    trainer = dpo_trainer(work, [*FAST, *overrides])
    pairs = random_pairs(shape, trainer.models.policy.config.vocab_size)
    (batch,) = fixed_batches(with_pairs(trainer, pairs), shape.pairs)
    turn()
    while True:
        seconds, _ = timed_step(trainer, batch, work.device)
        turn({"seconds": seconds})


def measure(work: Work, shapes: list[Shape], repeats: int, overrides: list[str]) -> str:
    """A table; the last column is the rate relative to the first shape's."""
    rows, first = [], None
    for shape in shapes:
        settings = {"work": work, "shape": shape, "overrides": overrides}
        name = f"{shape.pairs} pairs of {shape.length} tokens"
        found = by_turns([Side(name, steps, settings)], repeats)[name][1:]
        rates = [shape.pairs * shape.length / one["seconds"] for one in found]
        first = first or statistics.median(rates)
        relative = statistics.median(rates) / first
        rows.append([name, interval(rates, 0), f"{found[-1]['peak_gb']:.1f}", f"{relative:.2f}"])
    return table(["a step", "tokens/s", "peak GB", "relative"], rows)


def main() -> None:
    parser = options(__doc__, max_length=2048)
    parser.add_argument("override", nargs="*", help="settings of the runs")
    given = parser.parse_args()
    work = work_of(given)
    for shapes in (LENGTHS, BATCHES):
        print(measure(work, shapes, given.repeats, given.override), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
