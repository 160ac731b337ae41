"""The multiplier that each policy gradient learns beside the exact one: how far it ends from it, and the way there.

    rlpref experiment=constrained
    python experiments/constrained.py runs/constrained

reads the run folders and writes constrained.csv, .md and .png into <folder>/report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

from rlpref.logging.folder import write_atomically
from rlpref.report import Sweep, load, mean_interval
from rlpref.report.figures import save
from rlpref.report.style import method_styles
from rlpref.report.tables import interval_text, markdown
from rlpref.testbed.optima import constrained
from rlpref.testbed.task import make_testbed

LEARNED = "constraint/multiplier"
MEASURES = {LEARNED: "multiplier", "exact/cost": "cost", "exact/reward": "reward", "exact/own_regret": "own regret"}


def exact_multiplier(config: dict) -> float:
    """Of the task, beta and limit of a run; 0 where the limit does not bind."""
    task = make_testbed(**config["testbed"])
    limit = config["constraint"]["limit"]
    return constrained(task, task.ref, task.rewards, task.costs, config["beta"], limit).multiplier


def ends(sweep: Sweep) -> pd.DataFrame:
    """One row per finished run: method, seed, limit, exact multiplier, and the last value of each of MEASURES."""
    rows = []
    for run in sweep.done.itertuples():
        config = yaml.safe_load(sweep.configs[run.run])
        own = sweep.history[sweep.history["run"] == run.run]
        row = {"run": run.run, "method": run.method, "seed": run.seed, "limit": config["constraint"]["limit"]}
        row["exact"] = exact_multiplier(config)
        rows.append(row | {name: own[key].dropna().iloc[-1] for key, name in MEASURES.items()})
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per method and limit, as text: means over seeds with 95% intervals (Student's t), and the largest error
    of any seed, relative to the exact multiplier, or absolute where that is 0."""
    found = []
    for (method, limit), cell in rows.groupby(["method", "limit"]):
        exact = cell["exact"].iloc[0]
        worst = (cell["multiplier"] - exact).abs().max()
        row = {"method": method, "limit": f"{limit:g}", "seeds": len(cell), "exact multiplier": f"{exact:.4f}"}
        row |= {name: interval_text(*mean_interval(cell[name]), places=4) for name in MEASURES.values()}
        row["largest error"] = f"{worst / exact:.1%}" if exact else f"{worst:.4f}"
        found.append(row)
    return pd.DataFrame(found)


def figure(sweep: Sweep, rows: pd.DataFrame) -> Figure:
    """A panel for each limit: the multiplier of each run over its answers, and the exact one."""
    limits, styles = sorted(rows["limit"].unique()), method_styles(sorted(rows["method"].unique()))
    drawn = Figure(figsize=(2.6 * len(limits), 2.8), layout="constrained")
    for axis, limit in zip(drawn.subplots(1, len(limits), sharey=True, squeeze=False)[0], limits):
        cell = rows[rows["limit"] == limit]
        axis.axhline(cell["exact"].iloc[0], color="black", lw=1, label="exact")
        for method, (colour, _) in styles.items():
            for i, run in enumerate(cell.loc[cell["method"] == method, "run"]):
                path = sweep.history[sweep.history["run"] == run].dropna(subset=[LEARNED])
                label = None if i else method
                axis.plot(path["cost/samples"], path[LEARNED], color=colour, lw=0.8, alpha=0.7, label=label)
        axis.set(title=f"mean cost at most {limit:g}", xlabel="answers drawn")
    drawn.axes[0].set_ylabel("multiplier (reward per unit of cost)")
    drawn.axes[0].legend(frameon=False, fontsize=7)
    return drawn


def write(folder: Path) -> pd.DataFrame:
    """Writes <folder>/report/constrained.csv, .md and .png; returns the table as text."""
    sweep = load(folder)
    rows = ends(sweep)
    text = table(rows)
    write_atomically(folder / "report" / "constrained.csv", rows.to_csv(index=False))
    write_atomically(folder / "report" / "constrained.md", markdown(text))
    save(figure(sweep, rows), folder / "report", "constrained")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as runs/constrained")
    print(markdown(write(parser.parse_args().folder)), end="")


if __name__ == "__main__":
    main()
