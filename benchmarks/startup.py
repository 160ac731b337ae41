"""Seconds from the start of the process to the end of the first optimizer step, and per run in the testbed tier.

    python benchmarks/startup.py                       # DPO on model=tabular, as in the demo
    python benchmarks/startup.py --runs 32 algorithm=ppo

A run's start is told apart from what torch alone takes to be imported with the compiler that its optimizers load. Per
run: one process for each run, and one sweep in one process, whose runs go side by side. By turns, `--repeats` times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

FIRST_STEP = """
import os, time
from rlpref import train
from rlpref.trainer import Trainer

update = Trainer._update

def first(self, batch):
    update(self, batch)
    os.write(1, f"first step {time.time()}\\n".encode())
    os._exit(0)

Trainer._update = first
train.main()
"""
TORCH = "import time, torch, torch._dynamo; print('first step', time.time())"
RUN = "from rlpref import train; train.main()"
ONLY_METRICS = "logger.mode=disabled"


def finished(code: str, *overrides: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"the process failed:\n{done.stderr}")
    return done


def start(code: str, overrides: list[str]) -> float:
    """Seconds until the process says that its first step is done."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        begun = time.time()
        done = finished(code, *overrides, f"hydra.run.dir={folder}/run")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("first step")]
    return float(line.split()[-1]) - begun


def wall(runs: int, overrides: list[str]) -> float:
    """Seconds per run of one process: a run alone, or a sweep over so many seeds with its report."""
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        begun = time.perf_counter()
        if runs == 1:
            finished(RUN, *overrides, f"hydra.run.dir={folder}/run")
        else:
            seeds = ",".join(map(str, range(runs)))
            finished(RUN, "-m", f"seed={seeds}", *overrides, f"hydra.sweep.dir={folder}/sweep")
        return (time.perf_counter() - begun) / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=16, help="runs of the sweep")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("override", nargs="*", help="settings of the runs, such as algorithm=ppo budget.ppo.rounds=20")
    arguments = parser.parse_args()
    quiet = [*arguments.override, ONLY_METRICS]
    ways = {
        "torch and its compiler imported": lambda: start(TORCH, []),
        "first step done": lambda: start(FIRST_STEP, quiet),
        "first step done, wandb offline": lambda: start(FIRST_STEP, arguments.override),
        "a run, one process for each": lambda: wall(1, quiet),
        f"a run of a sweep of {arguments.runs}, side by side": lambda: wall(arguments.runs, quiet),
    }
    found = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, measure in ways.items():
            found[name].append(measure())
    print("| what | seconds, median [min, max] |\n| --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}] |", flush=True)


if __name__ == "__main__":
    main()
