"""`make bench`: every comparison of this folder in turn, as one report in Markdown on standard output.

    python benchmarks/run_all.py --repeats 5 > benchmarks/results.md
    python benchmarks/run_all.py --only dpo_step,scaling

Exit code 1 when one of them failed; the report says which and goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from rlpref.logging.card import environment

HERE = Path(__file__).parent
SMALL_RUNS = ["algorithm=dpo", "data.pairs=2000", "budget.batch_size=64", "evaluation.times=4"]
BENCHMARKS = {
    "dpo_step": ["--sides", "peak,ours,trl,trl_lean,trl_defaults"],
    "rollouts": [],
    "ppo_update": ["--sides", "ours,plain"],
    "head": [],
    "scaling": [],
    "replicas": ["--alone", "1", *SMALL_RUNS],
    "startup": [],
    "profile_step": [],
}
TITLES = {
    "dpo_step": "DPO step",
    "rollouts": "Rollouts",
    "ppo_update": "PPO round",
    "head": "Log-prob kernel",
    "scaling": "Cost by length and batch",
    "replicas": "Small runs per second",
    "startup": "Start",
    "profile_step": "Where the time goes",
}
WITH_DEVICE = ("dpo_step", "ppo_update", "scaling", "profile_step")  # the others run on the CPU
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> str:
    """What a reader must know of the machine, without its name."""
    info = environment()
    versions = ", ".join(f"{name} {info['packages'][name]}" for name in ("torch", "transformers"))
    commit = f"{info['git_commit']}{' with changes' if info['git_dirty'] else ''}"
    lines = [f"- commit {commit}", f"- {versions}, Python {info['python']}"]
    lines.append(f"- {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    return "\n".join([*lines, f"- GPU: {info['gpu'] or 'none'}"])


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return "unknown processor"
    known = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in known.items()}
    flags = known.get("flags", "").split()
    return f"{known.get('model name', 'unknown processor')} ({', '.join(flag for flag in FLAGS if flag in flags)})"


def run(name: str, arguments: list[str]) -> tuple[str, bool]:
    """The section of one script, and whether it succeeded."""
    begun = time.perf_counter()
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    minutes = (time.perf_counter() - begun) / 60
    body = done.stdout.strip()
    if done.returncode:
        body += f"\n\n**failed**:\n\n```\n{done.stderr.strip()[-2000:]}\n```"
    shown = " ".join(["python", f"benchmarks/{name}.py", *arguments])
    return f"## {TITLES[name]}\n\n`{shown}` ({minutes:.1f} minutes)\n\n{body}\n", done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", help=f"some of {','.join(BENCHMARKS)}")
    given = parser.parse_args()
    print(f"# Benchmarks\n\nMedians with smallest and largest of {given.repeats} repeats.\n\n{machine()}\n", flush=True)
    failed = False
    for name in given.only.split(",") if given.only else BENCHMARKS:
        if not (HERE / f"{name}.py").exists():
            print(f"## {TITLES[name]}\n\nbenchmarks/{name}.py is not here.\n", flush=True)
            continue
        device = ["--device", given.device] if name in WITH_DEVICE else []
        section, fine = run(name, [*device, "--repeats", str(given.repeats), *BENCHMARKS[name]])
        failed |= not fine
        print(section, flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
