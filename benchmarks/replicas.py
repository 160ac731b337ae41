"""Runs per second: one process for each run, and one process for all of them, side by side in one run.

    python benchmarks/replicas.py                             # runs of three sizes
    python benchmarks/replicas.py algorithm=iterative_dpo     # settings of your own

Both are whole processes of the same program, from the start of Python to the last file of the last run; no report
and no wandb. One process per run is timed on `--alone` runs one after another, because 32 would only take longer,
and on two at the same time, which is what two cores can do. By turns, `--repeats` times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "DPO, 2,000 pairs, 94 steps": ["algorithm=dpo", "data.pairs=2000", "budget.batch_size=64", "evaluation.times=4"],
    "DPO, as in the demo, 588 steps": ["algorithm=dpo"],
    "PPO, as in the demo, 400 steps": ["algorithm=ppo"],
}
CHILD = """
import sys
from pathlib import Path
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rlpref.jobs import Job
from rlpref.run import run_side_by_side

folder, first, count, *overrides = sys.argv[1:]
with initialize_config_module("rlpref.conf", version_base="1.3"):
    config = compose("train", overrides)
jobs = []
for seed in range(int(first), int(first) + int(count)):
    config.seed = seed
    jobs.append(Job(OmegaConf.to_container(config, resolve=True), Path(folder) / str(seed), "benchmark"))
failed = [result for result in run_side_by_side(jobs) if not isinstance(result, dict)]
sys.exit(str(failed) if failed else 0)
"""


def start(folder: Path, first: int, count: int, overrides: list[str]) -> subprocess.Popen:
    """A process that trains seeds first, first + 1, ..., and leaves their run folders."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    arguments = [sys.executable, "-c", CHILD, str(folder), str(first), str(count), *overrides]
    return subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)


def seconds(folder: Path, processes: list[tuple[int, int]], overrides: list[str]) -> float:
    """Wall time of processes (first seed, number of seeds) that start together."""
    begun = time.perf_counter()
    started = [start(folder, *seeds, overrides) for seeds in processes]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"a process failed: {codes}")
    return time.perf_counter() - begun


def measure(overrides: list[str], seeds: int, alone: int, repeats: int) -> dict[str, list[float]]:
    """Runs per second of each way, once for each repeat."""
    overrides = [*overrides, "logger.mode=disabled"]
    rates: dict[str, list[float]] = {"one process per run": [], "two at once": [], f"one process for {seeds}": []}
    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp(prefix="replicas-"))
        each = [seconds(folder / "alone", [(seed, 1)], overrides) for seed in range(alone)]
        found = [
            1 / statistics.mean(each),
            2 / seconds(folder / "pair", [(0, 1), (1, 1)], overrides),
            seeds / seconds(folder / "together", [(0, seeds)], overrides),
        ]
        for rate, way in zip(found, rates.values()):
            way.append(rate)
        check_equal(folder / "alone", folder / "together", alone)
        shutil.rmtree(folder)
    return rates


def check_equal(alone: Path, together: Path, runs: int) -> None:
    """Both ways made the same runs."""
    for seed in range(runs):
        first, second = (json.loads((folder / str(seed) / "summary.json").read_text()) for folder in (alone, together))
        for key in ("exact/reward", "exact/kl"):
            if abs(first[key] - second[key]) > 1e-5:
                raise RuntimeError(f"seed {seed}: {key} is {first[key]} alone and {second[key]} beside others")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32, help="runs in one process")
    parser.add_argument("--alone", type=int, default=2, help="runs timed one by one in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("override", nargs="*", help="settings of the runs, such as algorithm=ppo budget.ppo.rounds=20")
    arguments = parser.parse_args()
    sizes = {" ".join(arguments.override): arguments.override} if arguments.override else SIZES
    print("| runs | way | runs per second, median [min, max] | ratio |\n| --- | --- | --- | --- |")
    for name, overrides in sizes.items():
        rates = measure(overrides, arguments.seeds, arguments.alone, arguments.repeats)
        base = statistics.median(rates["one process per run"])
        for way, found in rates.items():
            middle = statistics.median(found)
            interval = f"{middle:.3f} [{min(found):.3f}, {max(found):.3f}]"
            print(f"| {name} | {way} | {interval} | {middle / base:.1f} |", flush=True)


if __name__ == "__main__":
    main()
