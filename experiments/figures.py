"""The museum: draws the exhibits that are not done yet, prints every verdict, writes the gallery.

    python experiments/figures.py                    the exact ones, as `make figures`
    python experiments/figures.py --part all         the trained ones, too, as `make figures-full`
    python experiments/figures.py f11_best_of_n_kl   these alone
    python experiments/figures.py --part all --gallery docs    nothing drawn anew: docs/figures.md from what is there

Each exhibit is a process of its own, `--jobs` at a time; what is done is not done again, and one that fails does not
stop the others. Exit code 1 where an exhibit has no result; a claim that fails is a result.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from exhibit import CONF, OUT, ROOT, is_done, judge, names, read, spoken
from rlpref.binding import ConfigError
from rlpref.logging.folder import read_json, write_atomically

VERDICTS = ("holds", "fails", "open", "reported")
GRADES = {"exact": "exact: the paper's setting, or a closed form", "scaled": "scaled: the protocol made small"}
GRADES |= {"analogue": "analogue: the claim in another setting"}


def drawn(name: str, out: Path, short: bool) -> str:
    """Draws the exhibit in a process of its own; returns the last line of its error, or nothing."""
    script = ROOT / "experiments" / f"{name}.py"
    command = [sys.executable, str(script), "--out", str(out), *["--short"] * short]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    error = lines[-1] if done.returncode else ""
    print(f"{name}: {error or 'done'} ({time.perf_counter() - began:.0f} s)", flush=True)
    return error


def verdicts(shown: list[str], out: Path) -> list[dict]:
    """The claims of these exhibits with their verdicts, each with its exhibit."""
    return [{"exhibit": name} | row for name in shown for row in judge(name, out)]


def table(rows: list[dict], what: str) -> str:
    """A markdown table of verdicts; `what` is the first column."""
    lines = [f"| {what} | claim | value [95% interval] | verdict | threshold from |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row["exhibit" if what == "exhibit" else "source"], row["claim"], spoken(row)]
        cells += [f"**{row['verdict']}**", row["provenance"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def summary(rows: list[dict]) -> str:
    """How many claims of each verdict, in one line."""
    counts = {kind: sum(row["verdict"] == kind for row in rows) for kind in VERDICTS}
    return f"{len({row['exhibit'] for row in rows})} exhibits, {len(rows)} claims: " + ", ".join(
        f"{count} {kind}" for kind, count in counts.items()
    )


def contents(shown: list[str], rows: list[dict], out: Path) -> str:
    """A markdown table of the exhibits: how many claims of each verdict, what it cost, the command."""
    lines = [f"| exhibit | what it says | {' | '.join(VERDICTS)} | CPU |", "|---|---|" + "---|" * (len(VERDICTS) + 1)]
    for name in shown:
        own = [row["verdict"] for row in rows if row["exhibit"] == name]
        counts = " | ".join(str(own.count(kind) or "") for kind in VERDICTS)
        seconds = read_json(out / name / "exhibit.json")["cpu_seconds"]
        lines.append(f"| [{name}](#{name}) | {read(name).title} | {counts} | {seconds:.0f} s |")
    return "\n".join(lines)


def page(shown: list[str], out: Path, pictures: str) -> str:
    """The gallery: each figure with its claims, verdicts, cost and command. Pictures are <pictures>/<id>.png."""
    shown = [name for name in shown if (out / name / "exhibit.json").exists()]
    rows = verdicts(shown, out)
    parts = [
        "# Gallery of figures",
        f"Made by `python experiments/figures.py --part all --gallery docs`; not edited by hand. {summary(rows)}.",
        "`holds` and `fails` are against the threshold; `open`: the value would do and its interval does not; "
        "`reported`: a finding without a threshold. A claim that fails stays, with what we think of it. "
        "CPU seconds are of the process that drew the figure; runs that were there already are not in them.",
        "; ".join(GRADES.values()).capitalize() + ".",
        contents(shown, rows, out),
    ]
    for name in shown:
        parts += _exhibit(name, out, pictures, [row for row in rows if row["exhibit"] == name])
    return "\n\n".join(parts) + "\n"


def _exhibit(name: str, out: Path, pictures: str, rows: list[dict]) -> list[str]:
    exhibit, made = read(name), read_json(out / name / "exhibit.json")
    failed = [f"*{row['claim']}*: {row['comment']}" for row in rows if row["verdict"] != "holds" and row["comment"]]
    changed = f" With {', '.join(made['settings'])}." if made["settings"] else ""
    return [
        f"## {name}",
        f"**{exhibit.title}**",
        f"![{exhibit.title}]({pictures}/{name}.png)",
        f"{exhibit.paper}: {exhibit.figure}. {GRADES[exhibit.grade].capitalize()}. `python experiments/{name}.py`, "
        f"{made['seconds']:.0f} s ({made['cpu_seconds']:.0f} s of CPU).{_runs(out / name)}{changed}"
        + (" **The short version.**" if made["short"] else ""),
        *([" ".join(made["notes"])] if made["notes"] else []),
        table(rows, "source"),
        *failed,
    ]


def _runs(folder: Path) -> str:
    """How many runs an exhibit trained and how long these took, as a sentence."""
    walls = [read_json(file)["wall_seconds"] for file in (folder / "runs").rglob("run.json")]
    return f" {len(walls)} runs of {sum(walls) / 60:.0f} minutes in all, beside other work." if walls else ""


def gallery(shown: list[str], out: Path, docs: Path) -> None:
    """<docs>/figures.md and the pictures in <docs>/figures."""
    for name in shown:
        if (file := out / name / f"{name}.png").exists():
            (docs / "figures").mkdir(parents=True, exist_ok=True)
            with Image.open(file) as picture:  # 128 colours do, and are a third of the bytes
                picture.convert("RGB").quantize(128).save(docs / "figures" / file.name, optimize=True)
    write_atomically(docs / "figures.md", page(shown, out, "figures"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="exhibits; none: those of --part")
    parser.add_argument("--part", choices=("exact", "trained", "all"), default="exact")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--short", action="store_true", help="the small versions that CI runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="write FOLDER/figures.md of what is there alone")
    options = parser.parse_args(arguments)
    try:
        shown = options.ids or [name for name in names() if options.part in ("all", read(name).part)]
        if unknown := [name for name in shown if not (CONF / f"{name}.yaml").exists()]:
            raise ConfigError(f"no such exhibit: {', '.join(unknown)}. There are: {', '.join(names())}.")
        if options.gallery:
            return gallery(shown, options.out, options.gallery)
        failed = draw_all(shown, options.out, options.short, options.jobs)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    rows = verdicts(shown, options.out)
    write_atomically(options.out / "verdicts.md", table(rows, "exhibit") + "\n")
    for row in rows:
        print(f"{row['verdict']:>8}  {row['exhibit']}: {row['claim']}: {spoken(row)}")
    print(summary(rows))
    if failed:
        raise SystemExit("without a result:\n  " + "\n  ".join(f"{name}: {error}" for name, error in failed.items()))


def draw_all(shown: list[str], out: Path, short: bool, jobs: int) -> dict[str, str]:
    """Draws what is not done; exhibit -> error of those without a result."""
    began = time.perf_counter()
    left = [name for name in shown if not is_done(name, out, short)]
    with ThreadPoolExecutor(jobs) as pool:
        errors = dict(zip(left, pool.map(lambda name: drawn(name, out, short), left)))
    print(f"{len(left)} drawn, {len(shown) - len(left)} done before, in {time.perf_counter() - began:.0f} s")
    return {name: error for name, error in errors.items() if error}


if __name__ == "__main__":
    main()
