"""Where each method learns to abstain, against Chow's threshold c / (1 + c).

    rlpref experiment=abstention
    python experiments/abstention.py runs/abstention

The last enumerates the trained policy of each finished run and writes abstention.csv (cost, method, p, rate: means over
seeds), abstention_thresholds.csv, .md and the figure into <folder>/report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor

from rlpref import checkpoint
from rlpref.binding import ConfigError
from rlpref.check import check
from rlpref.check_rewards import trained_weights
from rlpref.logging.folder import write_atomically
from rlpref.report import load, mean_interval
from rlpref.report.abstention import abstention_figure
from rlpref.report.figures import save
from rlpref.report.tables import interval_text, markdown
from rlpref.testbed.exact import expectation
from rlpref.testbed.optima import optimum
from rlpref.testbed.rewards import contains
from rlpref.testbed.task import Testbed, conditionals, make_testbed

WITHIN = 0.1  # of the threshold in p: what counts as found


def threshold(p: np.ndarray, rate: np.ndarray) -> float:
    """The t for which "abstain where p < t" is nearest to abstaining with probabilities `rate` [questions], by the mean
    distance over the questions; the middle between the two questions that t parts (t may also lie beyond all)."""
    order = np.argsort(p)
    p, rate = p[order], rate[order]
    off = [(1 - rate[:i]).sum() + rate[i:].sum() for i in range(len(p) + 1)]  # abstaining on the first i
    between = np.concatenate([[p[0]], (p[1:] + p[:-1]) / 2, [p[-1]]])
    best = np.flatnonzero(np.isclose(off, min(off), rtol=0, atol=1e-9))
    return float(between[best].mean())


def abstains(task: Testbed, policy: Tensor) -> np.ndarray:
    """[prompts] the probability that an answer contains ABSTAIN, the last token."""
    said = contains(task, [task.tree.vocab - 1], "ABSTAIN").double()
    return expectation(task, policy, said).numpy()


def measure(folder: Path) -> pd.DataFrame:
    """One finished run: p and the chance of abstaining of its policy and of the exact optimum, question by question."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if config["testbed"]["reward"] != "abstain":
        raise ConfigError(f"{folder} was trained on testbed.reward '{config['testbed']['reward']}', not 'abstain'.")
    if config["init"]:
        raise ConfigError(f"{folder} started from another run: its reference is not the task's.")
    task, temperature = make_testbed(**config["testbed"]), config["temperature"]
    model = check(config).model(task).policy
    with torch.no_grad():
        ref = conditionals(task, model, temperature)
        best = optimum(task, ref, task.rewards, config["beta"]).policy
        checkpoint.load_weights(model, trained_weights(folder, "policy"))
        policy = conditionals(task, model, temperature)
    options = config["testbed"]["options"]
    rows = {config["algorithm"]["name"]: policy, "optimum": best}
    return pd.concat(
        pd.DataFrame(
            {
                "cost": float(options["cost"]),
                "method": method,
                "seed": config["seed"],
                "p": options["correct"],
                "rate": abstains(task, each),
            }
        )
        for method, each in rows.items()
    )


def thresholds(rates: pd.DataFrame) -> pd.DataFrame:
    """One row for each cost and method: the threshold, its mean over seeds with interval, and how far it is off."""
    rows = []
    for (cost, method), own in rates.groupby(["cost", "method"], sort=False):
        found = [threshold(one["p"].to_numpy(), one["rate"].to_numpy()) for _, one in own.groupby("seed")]
        middle, chow = mean_interval(found), cost / (1 + cost)
        off = max(abs(each - chow) for each in found)
        row = {"cost": cost, "method": method, "seeds": len(found), "chow": chow, "threshold": middle.mean}
        rows.append(row | {"low": middle.low, "high": middle.high, "furthest": off, "found": off <= WITHIN})
    return pd.DataFrame(rows).sort_values(["cost", "method"], ignore_index=True)


def write(folder: Path) -> pd.DataFrame:
    """Writes the files of the study into <folder>/report; returns the table of thresholds."""
    runs = load(folder).runs
    done = runs[runs["status"] == "done"]["run"]
    rates = pd.concat([measure(folder / run) for run in done]).drop_duplicates(["cost", "method", "seed", "p"])
    table, means = thresholds(rates), rates.groupby(["cost", "method", "p"], as_index=False, sort=False)["rate"].mean()
    report = folder / "report"
    write_atomically(report / "abstention.csv", means.to_csv(index=False))
    write_atomically(report / "abstention_thresholds.csv", table.to_csv(index=False))
    write_atomically(report / "abstention.md", markdown(readable(table)))
    save(abstention_figure(means), report, "abstention")
    return table


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text."""
    middle = [interval_text(*each, places=3) for each in zip(table["threshold"], table["low"], table["high"])]
    return pd.DataFrame(
        {
            "c": table["cost"].map("{:g}".format),
            "method": table["method"],
            "seeds": table["seeds"].astype(str),
            "c/(1+c)": table["chow"].map("{:.3f}".format),
            "threshold": middle,
            "furthest seed off": table["furthest"].map("{:.3f}".format),
            f"within {WITHIN:g}": table["found"].map({True: "yes", False: "no"}),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as runs/abstention")
    print(markdown(readable(write(parser.parse_args().folder))), end="")


if __name__ == "__main__":
    main()
