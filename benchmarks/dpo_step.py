"""DPO steps of rlpref and of TRL on the same pairs, by turns.

    python benchmarks/dpo_step.py
    python benchmarks/dpo_step.py --sides peak,ours model.compile=true    # settings of our fast side
    python benchmarks/dpo_step.py --sides all

Full fine-tuning of SmolLM2-135M-Instruct, AdamW, gradients clipped, beta 0.1. A pass is one step on each of a few fixed
batches; a step goes from the first forward pass to the updated weights. The reference's log-probs are computed before
and not timed, except in TRL's default, which computes them again in each step.
"""

from __future__ import annotations

import statistics

from peak import floor_seconds, peak
from production import FAST, NAIVE, fixed_batches, make_trainer, with_pairs
from transformers import AutoTokenizer
from turns import Side, Turn, by_turns, interval, ratios, table, timed
from work import PairTokens, Work, encode, first_pairs, lengths, needed_flops, options, work_of

from rlpref.data.rows import Row
from rlpref.ops.twin import running

BETA, LR = 0.1, 1e-6
OURS, NAIVELY, PEAK = "rlpref, fast", "rlpref, naive fp32", "peak"
COMPARED = ("loss", "logps/chosen", "logps/rejected", "grad_norm")
SHORT = {
    "peak": PEAK,
    "ours": OURS,
    "naive": NAIVELY,
    "trl": "TRL, reference precomputed",
    "trl_defaults": "TRL, defaults",
    "trl_lean": "TRL, precomputed, pair by pair",
    "trl_lean_fast": "TRL, precomputed, pair by pair, no checkpointing",
    "trl_fast": "TRL, precomputed, no checkpointing",
    "trl_fp32": "TRL, fp32, precomputed",
}
USUAL = "peak,ours,trl,trl_lean,trl_lean_fast,trl_defaults"


def ours(turn: Turn, work: Work, rows: list[Row], overrides: list[str]) -> None:
    """rlpref's side."""
    trainer = dpo_trainer(work, overrides)
    batches = fixed_batches(with_pairs(trainer, encode(work, trainer.models.tokenizer, rows)), work.batch)
    counted: list[int] = []
    embedding = running(trainer.models.policy).get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].numel()))
    turn()
    while True:
        counted.clear()
        steps = [timed_step(trainer, batch, work.device) for batch in batches]
        seconds, logged = zip(*steps)
        turn({"seconds": list(seconds), "logged": list(logged), "computed_tokens": sum(counted)})


def dpo_trainer(work: Work, overrides: list[str]):
    """The trainer of `rlpref algorithm=dpo` on this work."""
    places = {"model.name": work.model, "data.path": work.data, "device": work.device, "threads": work.threads}
    limits = {f"data.max_{part}_length": work.max_length for part in ("prompt", "completion")}
    numbers = {"beta": BETA, "model.lr": LR, "algorithm.batch_size": work.batch}
    given = [f"{key}={value}" for key, value in (places | limits | numbers).items()]
    return make_trainer(["algorithm=dpo", "data=hh", "reward=none", *given, *overrides])


def timed_step(trainer, batch, device: str) -> tuple[float, dict[str, float]]:
    """Seconds of an optimizer step, and what it logs."""
    seconds: dict[str, float] = {}
    with timed(seconds, "step", device):
        row = trainer._update(batch)
    return seconds["step"], {name: float(row[name]) for name in COMPARED}


def side(name: str, work: Work, rows: list[Row], overrides: list[str]) -> Side:
    """`overrides` are for our fast side alone."""
    same = {"work": work, "rows": rows}
    if name == PEAK:
        return Side(name, peak, {"work": work})
    if name == OURS:
        return Side(name, ours, same | {"overrides": [*FAST, *overrides]})
    if name == NAIVELY:
        return Side(name, ours, same | {"overrides": NAIVE})
    from trl_dpo import SETTINGS, trl_dpo  # seconds to import

    return Side(name, trl_dpo, same | {"settings": SETTINGS[name], "beta": BETA, "lr": LR})


def report(work: Work, pairs: list[PairTokens], reports: dict[str, list[dict]]) -> str:
    """Tables of the measured passes, the first of each side left out, and of its first step."""
    flops = needed_flops(work.model, pairs)
    measured = {name: found[1:] for name, found in reports.items()}
    roofs = [one["flops_per_second"] for one in measured.pop(PEAK, [])]
    seconds = {name: [sum(one["seconds"]) for one in found] for name, found in measured.items()}
    head = ["side", "s per step", "pairs/s", "useful tokens/s", "tokens computed", "share of roofline", "peak GB"]
    rows = []
    for name, passes in seconds.items():
        last, steps = measured[name][-1], len(pairs) / work.batch
        share = f"{share_of_roof(flops, roofs, passes, 'fp32' if 'fp32' in name else 'bf16'):.0%}" if roofs else ""
        cells = [
            interval([pass_ / steps for pass_ in passes]),
            interval([len(pairs) / pass_ for pass_ in passes]),
            interval([sum(pair.useful for pair in pairs) / pass_ for pass_ in passes], 0),
            f"{last['computed_tokens']:,}",
            share,
            f"{last['peak_gb']:.1f}",
            interval(ratios(passes, seconds[OURS])) if OURS in seconds else "",
        ]
        rows.append([name, *cells])
    firsts = [
        [name, *(f"{found[0]['logged'][0][key]:.4f}" for key in COMPARED)]
        for name, found in reports.items()
        if name != PEAK
    ]
    parts = [_what(work, pairs, flops), table([*head, f"time / {OURS}"], rows), _roof(roofs)]
    parts += ["First step of each side, same weights and pairs:", table(["side", *COMPARED], firsts)]
    return "\n\n".join(part for part in parts if part)


def share_of_roof(flops: dict[str, float], roofs: list[dict], passes: list[float], precision: str) -> float:
    """Median over the rounds of the least time, at the rates measured in the same round, over the time of a pass."""
    pairs = zip(roofs, passes, strict=True)
    return statistics.median(floor_seconds(flops, roof[precision]) / seconds for roof, seconds in pairs)


def _what(work: Work, pairs: list[PairTokens], flops: dict[str, float]) -> str:
    useful, scored = sum(pair.useful for pair in pairs), sum(pair.chosen + pair.rejected for pair in pairs)
    spent = ", ".join(f"{part} {count / 1e12:.2f}" for part, count in flops.items())
    return (
        f"{work.pairs} pairs in batches of {work.batch}: {useful:,} useful tokens (prompt once, both answers), of which"
        f" {scored:,} are scored. A step on each batch needs {sum(flops.values()) / 1e12:.2f} TFLOP ({spent})."
    )


def _roof(roofs: list[dict]) -> str:
    if not roofs:
        return ""
    parts = [(precision, part) for precision in roofs[0] for part in roofs[0][precision]]
    rates = [f"{p} {part} {interval([roof[p][part] / 1e9 for roof in roofs], 0)}" for p, part in parts]
    return f"Matrix products of these shapes, GFLOP/s: {'; '.join(rates)}."


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sides", default=USUAL, help=f"all, or some of {','.join(SHORT)}")
    parser.add_argument("override", nargs="*", help="settings of our fast side, such as model.compile=true")
    arguments = parser.parse_args()
    work = work_of(arguments)
    names = [SHORT[name] for name in (SHORT if arguments.sides == "all" else arguments.sides.split(","))]
    rows = first_pairs(work)
    pairs = lengths(encode(work, AutoTokenizer.from_pretrained(work.model), rows))
    reports = by_turns([side(name, work, rows, arguments.override) for name in names], arguments.repeats)
    print(report(work, pairs, reports))


if __name__ == "__main__":
    main()
