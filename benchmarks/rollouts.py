"""Sampled tokens per second and peak memory: rlpref and HF `generate`, by turns, each in a process of its own.

    python benchmarks/rollouts.py --repeats 5                              # 64 prompts x 4 answers x 64 tokens
    python benchmarks/rollouts.py --prompts 16 --dtypes bfloat16 --sides rlpref "generate, static cache"

SmolLM2-135M-Instruct answers the first different prompts of `--data`, human preference pairs as JSON lines. `generate`
is used as its documentation does: prompts padded on the left in one batch, `num_return_sequences`, nothing truncated
(top_k=0, top_p=1: the distribution that rlpref samples from). Tokens count up to the end of each answer; loading the
model and a short warm-up do not count. Peak memory is that of the whole process. `--lock` takes a file that is locked
for each measurement, for machines that several people measure on.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data" / "hh_harmless" / "train.jsonl.gz"
MAX_PROMPT = 256


def read_prompts(path: str, n: int) -> list[list[dict]]:
    with gzip.open(path, "rt") as file:
        found = {json.dumps(json.loads(line)["prompt"]): None for line in file}
    if len(found) < n:
        raise SystemExit(f"{path} has {len(found)} different prompts, not {n}")
    return [json.loads(prompt) for prompt in list(found)[:n]]


def load(dtype: str, attention: str):
    """The frozen model in `dtype`, and its tokenizer."""
    import torch

    from rlpref.models.gguf import smollm2_135m
    from rlpref.models.lm import DTYPES
    from rlpref.process import prepare_process

    prepare_process(None)
    loaded = smollm2_135m("float32", attention, None)
    torch.manual_seed(0)
    return loaded.policy.requires_grad_(False).to(DTYPES[dtype]), loaded.tokenizer


def with_rlpref(model, prompts, k: int, tokens: int, eos: int) -> int:
    import torch

    from rlpref.rollout.sampler import sample

    samples = sample(model, prompts, k, tokens, 1.0, eos, [torch.Generator().manual_seed(0)])
    return int(samples.sequences.lengths.sum())


def compiled(model, *arguments) -> int:
    """rlpref with `model.compile=true`; the warm-up compiles."""
    from rlpref.models.computing import Computing

    Computing(compute_dtype=None, compile=True, checkpoint_layers=False).prepare_layers(model)
    return with_rlpref(model, *arguments)


def with_generate(model, prompts, k: int, tokens: int, eos: int, **options) -> int:
    found = model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.attention_mask.long(),
        do_sample=True,
        num_return_sequences=k,
        max_new_tokens=tokens,
        top_k=0,
        top_p=1.0,
        eos_token_id=eos,
        pad_token_id=eos,
        **options,
    )
    answers = found[:, prompts.ids.shape[1] :]
    ended = (answers == eos).cumsum(1)
    return int((ended == 0).sum() + (ended[:, -1] > 0).sum())


SIDES = {
    "generate": ("sdpa", with_generate),
    "generate, static cache": ("sdpa", lambda *args: with_generate(*args, cache_implementation="static")),
    "rlpref": ("packed", with_rlpref),
    "rlpref, compiled layers": ("packed", compiled),
}


def child(arguments: argparse.Namespace) -> None:
    """One side, once; prints what it measured."""
    import torch

    from rlpref.data.tokenise import encode_prompts
    from rlpref.logging.card import peak_memory_mb

    torch.set_num_threads(arguments.threads)
    attention, run = SIDES[arguments.side]
    model, tokenizer = load(arguments.dtypes[0], attention)
    prompts = encode_prompts(read_prompts(arguments.data, arguments.prompts), tokenizer, MAX_PROMPT)
    eos = tokenizer.eos_token_id
    with torch.inference_mode():
        run(model, prompts[:2], 1, 3, eos)
        with locked(arguments.lock):
            begun = time.perf_counter()
            tokens = run(model, prompts, arguments.k, arguments.tokens, eos)
            seconds = time.perf_counter() - begun
    print(json.dumps({"tokens": tokens, "seconds": seconds, "peak_mb": peak_memory_mb()}))


def locked(path: str | None):
    if path is None:
        return nullcontext()
    file = open(path, "a")  # noqa: SIM115 closing it is what unlocks
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def measure(side: str, dtype: str, arguments: argparse.Namespace) -> dict:
    same = [f"--{key}={getattr(arguments, key)}" for key in ("prompts", "k", "tokens", "threads", "data")]
    same += [f"--lock={arguments.lock}"] if arguments.lock else []
    command = [sys.executable, __file__, "--side", side, "--dtypes", dtype, *same]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{side}, {dtype} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{dtype}, {side}: {found}", file=sys.stderr, flush=True)
    return found


def middle(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--k", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer, at most")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--lock", default=None)
    parser.add_argument("--side", default=None, choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return child(arguments)
    print("| weights | way | tokens/s, median [min, max] | ratio to generate's best, by turns | peak MB |")
    print("| --- | --- | --- | --- | --- |")
    for dtype in arguments.dtypes:
        turns = [{side: measure(side, dtype, arguments) for side in arguments.sides} for _ in range(arguments.repeats)]
        rates = {side: [turn[side]["tokens"] / turn[side]["seconds"] for turn in turns] for side in arguments.sides}
        theirs = [side for side in arguments.sides if side.startswith("generate")] or arguments.sides[:1]
        best = max(theirs, key=lambda side: statistics.median(rates[side]))
        for side, found in rates.items():
            ratios = middle([rate / base for rate, base in zip(found, rates[best])], 2)
            peak = middle([turn[side]["peak_mb"] for turn in turns])
            print(f"| {dtype} | {side} | {middle(found)} | {ratios} | {peak} |", flush=True)
    return None


if __name__ == "__main__":
    main()
