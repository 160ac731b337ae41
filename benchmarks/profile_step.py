"""Where the time of a DPO step, of a rollout and of a PPO round goes, from torch's profiler on the production code.

    python benchmarks/profile_step.py
    python benchmarks/profile_step.py --what dpo model.compile=true    # settings of the runs

The first pass warms up and is not counted. The profiler itself costs time, most of it where operations are many and
small: shares say more than seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from dpo_step import dpo_trainer
from plain_ppo import Round
from ppo_update import first_prompts, ppo_trainer, production_round
from production import FAST, fixed_batches, with_pairs
from torch.profiler import ProfilerActivity, profile
from turns import table, timed
from work import Work, encode, first_pairs, options, work_of

from rlpref.algorithms.algorithm import Costs
from rlpref.algorithms.algorithm import Round as RoundOfRun
from rlpref.algorithms.common import sample_answers
from rlpref.data.tokenise import encode_prompts

MATMULS = ("aten::mm", "aten::addmm", "aten::linear", "aten::matmul", "mkldnn::_linear", "aten::mkldnn_linear")
COPIES = ("copy", "aten::cat", "aten::index", "aten::clone", "aten::contiguous", "aten::gather", "aten::zero")
GROUPS = ("matmul", "attention", "head and embedding", "norms, elementwise", "copies, casts", "optimizer", "compiled")
REST = "Python and the rest"


def group(name: str, shapes: list, vocab: int) -> str | None:
    """Where an operation belongs; None for what is no operation but a name around several."""
    if name.startswith("Optimizer.") or "_fused_adam" in name:
        return "optimizer"
    if "CompiledFxGraph" in name or name.startswith(("graph_", "cpp_fused", "triton_")):
        return "compiled"
    if not name.startswith(("aten::", "mkldnn::", "onednn::", "quantized::")):
        return None
    if any(isinstance(shape, list) and vocab in shape for shape in shapes):
        return "head and embedding"
    if "attention" in name or name in ("aten::bmm", "aten::baddbmm", "aten::_softmax"):
        return "attention"
    if name.startswith(MATMULS):
        return "matmul"
    return "copies, casts" if any(part in name for part in COPIES) else "norms, elementwise"


def seconds_by_group(call: Callable[[], object], vocab: int, device: str) -> dict[str, float]:
    """Of one call, after one that warms up. On a GPU the time of its kernels, and as the rest when none ran."""
    call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    wall: dict[str, float] = {}
    with profile(activities=activities, record_shapes=True) as profiled, timed(wall, "all", device):
        call()
    found: Counter[str] = Counter()
    for event in profiled.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if place := group(event.key, event.input_shapes, vocab):
            found[place] += own / 1e6
    return {name: found[name] for name in GROUPS} | {REST: wall["all"] - sum(found.values())}


def dpo(work: Work, overrides: list[str]) -> tuple[Callable[[], object], int]:
    """One step on the first batch, and the size of the vocabulary."""
    trainer = dpo_trainer(work, [*FAST, *overrides])
    pairs = encode(work, trainer.models.tokenizer, first_pairs(work))
    batch = fixed_batches(with_pairs(trainer, pairs), work.batch)[0]
    return lambda: trainer._update(batch), trainer.models.policy.config.vocab_size


def rollout(work: Work, overrides: list[str]) -> tuple[Callable[[], object], int]:
    """One answer to each prompt."""
    todo, prompts = ppo_work(work)
    trainer = ppo_trainer(todo, work.data, [*FAST, *overrides])
    encoded = encode_prompts(prompts, trainer.models.tokenizer, 10**6)
    round = RoundOfRun(0, trainer.generators, [Costs()])
    return lambda: sample_answers(trainer.models, encoded, 1, round), trainer.models.policy.config.vocab_size


def ppo(work: Work, overrides: list[str]) -> tuple[Callable[[], object], int]:
    """One round: answers, scores, passes of reference and critic, updates."""
    todo, prompts = ppo_work(work)
    one_round, trainer = production_round(todo, work.data, prompts, [*FAST, *overrides])
    return one_round, trainer.models.policy.config.vocab_size


WHAT = {"dpo": dpo, "rollout": rollout, "ppo": ppo}


def ppo_work(work: Work, prompts: int = 32, new_tokens: int = 64, longest: int = 128) -> tuple[Round, list]:
    """Half of the prompts that ppo_update.py has, in half as many minibatches."""
    found = first_prompts(work.model, work.data, prompts, longest)
    return Round(work.model, len(found), new_tokens, work.batch, 0.1, 1e-6, work.device, work.threads), found


def main() -> None:
    parser = options(__doc__, pairs=8)
    parser.add_argument("--what", default=",".join(WHAT), help="some of dpo, rollout, ppo")
    parser.add_argument("override", nargs="*", help="settings of the runs")
    given = parser.parse_args()
    work = work_of(given)
    columns = {}
    for name in given.what.split(","):
        call, vocab = WHAT[name](work, given.override)
        columns[name] = seconds_by_group(call, vocab, work.device)
        del call
    totals = {name: sum(column.values()) for name, column in columns.items()}
    rows = [
        [place, *(f"{column[place]:.2f} s, {column[place] / totals[name]:.0%}" for name, column in columns.items())]
        for place in (*GROUPS, REST)
    ]
    print(table(["", *(f"{name}, {totals[name]:.1f} s" for name in columns)], rows))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
