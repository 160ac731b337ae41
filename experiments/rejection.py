"""Which of k answers to keep and at what temperature to draw them, beside exact order statistics: Llama 2's figures.

    rlpref experiment=rejection
    python experiments/rejection.py runs/rejection

reads the run folders and writes rejection.csv, .md and .png into <folder>/report. Touvron et al. 2023 (2307.09288),
figures 7 and 8: the best of k rises with k, the median does not; the best of more answers, and after RLHF, is highest
at a higher temperature.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from rlpref.logging.folder import write_atomically
from rlpref.report import Sweep, load, mean_interval
from rlpref.report.figures import save
from rlpref.report.style import PALETTE, shade
from rlpref.report.tables import interval_text, markdown
from rlpref.testbed.exact import expectation
from rlpref.testbed.optima import optimum
from rlpref.testbed.selection import order_statistic
from rlpref.testbed.task import Testbed, make_testbed

CELL = ["keep", "temperature", "k"]
AFTER_RLHF = 0.2  # beta of the optimum that stands for a policy after RLHF
TEMPERATURES = [0.4 + 0.05 * i for i in range(33)]
SHOWN = 1.0  # the temperature of the first panel


def kept_score(task: Testbed, policy: Tensor, keep: str, k: int, temperature: float) -> float:
    """Exact mean score of the kept one of k answers of the policy at a temperature, over prompts; `random` is any."""
    rank, k = {"max": (k, k), "median": ((k - 1) // 2 + 1, k), "random": (1, 1)}[keep]
    tempered = (policy / temperature).log_softmax(-1)
    return float(expectation(task, order_statistic(task, tempered, task.rewards, rank, k), task.rewards).mean())


def best_temperature(task: Testbed, policy: Tensor, k: int) -> float:
    """Of TEMPERATURES the one at which the best of k scores highest."""
    return max(TEMPERATURES, key=lambda temperature: kept_score(task, policy, "max", k, temperature))


def cells(sweep: Sweep) -> tuple[pd.DataFrame, Testbed]:
    """One row per rule, temperature and k: mean over finished runs of the kept score and of the reward after imitation
    with their 95% intervals (Student's t), and the exact kept score; and the task of all of them."""
    rows, task = [], None
    for run in sweep.done.itertuples():
        config = yaml.safe_load(sweep.configs[run.run])
        task = task or make_testbed(**config["testbed"])
        own = sweep.history[sweep.history["run"] == run.run]
        row = {name: config["algorithm"][name] for name in CELL}
        row["kept"] = own["objective/scores_kept"].dropna().iloc[0]
        rows.append(row | {"reward": own["exact/reward"].dropna().iloc[-1]})
    found = []
    for cell, runs in pd.DataFrame(rows).groupby(CELL):
        row = dict(zip(CELL, cell)) | {"seeds": len(runs)}
        row["exact"] = kept_score(task, task.ref, row["keep"], row["k"], row["temperature"])
        for name in ("kept", "reward"):
            interval = mean_interval(runs[name])
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        found.append(row)
    return pd.DataFrame(found), task


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The cells as text."""
    columns = {name: table[name].astype(str) for name in [*CELL, "seeds"]}
    columns["kept score, exact"] = table["exact"].map("{:.3f}".format)
    for name, title in (("kept", "kept score, drawn"), ("reward", "reward after imitation")):
        intervals = zip(table[name], table[f"{name}_low"], table[f"{name}_high"])
        columns[title] = [interval_text(*interval, places=3) for interval in intervals]
    return pd.DataFrame(columns)


def figure(table: pd.DataFrame, task: Testbed) -> Figure:
    """Which answer is kept; the best at several temperatures; the best temperature. Lines are exact, points drawn."""
    drawn = Figure(figsize=(8.4, 2.9), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    ks = range(1, int(table["k"].max()) + 1, 2)

    def lines(axis, rows: pd.DataFrame, keep: str, temperature: float, colour, label: str) -> None:
        axis.plot(ks, [kept_score(task, task.ref, keep, k, temperature) for k in ks], color=colour, lw=1, label=label)
        axis.plot(rows["k"], rows["kept"], "o", color=colour, ms=3)

    for keep, colour in zip(("max", "median", "random"), PALETTE):
        chosen = table[(table["keep"] == keep) & (table["temperature"] == SHOWN)]
        lines(left, chosen, keep, SHOWN, colour, keep)
    temperatures = sorted(table["temperature"].unique())
    for i, temperature in enumerate(temperatures):
        chosen = table[(table["keep"] == "max") & (table["temperature"] == temperature)]
        lines(middle, chosen, "max", temperature, shade(PALETTE[0], i, len(temperatures)), f"T = {temperature:g}")
    some = [1, 2, 4, 10, 20, 50, 100]
    after = optimum(task, task.ref, task.rewards, AFTER_RLHF).policy
    for policy, colour, label in ((task.ref, PALETTE[0], "reference"), (after, PALETTE[1], "after RLHF")):
        right.plot(some, [best_temperature(task, policy, k) for k in some], "o-", color=colour, ms=3, lw=1, label=label)
    for axis in (left, middle, right):
        axis.set(xscale="log", xlabel="answers to a prompt")
        axis.legend(frameon=False, fontsize=7)
    left.set(ylabel="mean score of the kept answer", title=f"which is kept (T = {SHOWN:g})")
    middle.set(title="the best, at each temperature")
    right.set(title="the best temperature", ylabel="temperature")
    return drawn


def write(folder: Path) -> pd.DataFrame:
    """Writes <folder>/report/rejection.csv, .md and .png; returns the cells."""
    table, task = cells(load(folder))
    write_atomically(folder / "report" / "rejection.csv", table.to_csv(index=False))
    write_atomically(folder / "report" / "rejection.md", markdown(readable(table)))
    save(figure(table, task), folder / "report", "rejection")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as runs/rejection")
    print(markdown(readable(write(parser.parse_args().folder))), end="")


if __name__ == "__main__":
    main()
