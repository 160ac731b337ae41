"""The convergence table: how far each method ends from its own optimum, and from the KL-regularised one.

    rlpref experiment=convergence
    python experiments/convergence.py runs/convergence

reads the run folders and writes convergence.csv and convergence.md into <folder>/report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import yaml

from rlpref.logging.folder import write_atomically
from rlpref.report import Sweep, load, mean_interval
from rlpref.report.tables import interval_text, markdown

CELL = ["method", "model", "task"]
IN_CELL = ("model.kind", "testbed.reward")
MEASURES = {"regret": "exact/regret", "own_regret": "exact/own_regret", "kl": "exact/kl", "gap": "exact/gap"}
TITLES = {"regret": "regret to the KL-regularised optimum", "own_regret": "own regret", "kl": "KL (nats)"}
TITLES |= {"gap": "gap to the frontier", "n": "seeds"}


def convergence(sweep: Sweep) -> pd.DataFrame:
    """One row per method, model, task and whatever else was swept: `n` finished runs, the mean over seeds of each of
    MEASURES and `_low`, `_high` of its 95% interval (Student's t), and `unfinished`, the runs that stand in no mean.

    regret and gap are in units of reward, kl in nats per answer. own_regret is the regret where the method aims at the
    KL-regularised optimum; it is in units of the win rate for IPO, and in nats for SFT, which has no beta and so no
    regret (NaN). A cell without a finished run keeps its row, with n = 0; a run without a readable config has no cell.
    """
    known = sweep.runs[sweep.runs["method"].notna()]
    configs = [yaml.safe_load(sweep.configs[run]) for run in known["run"]]
    cells = pd.DataFrame([_cell(config) for config in configs], columns=CELL)
    swept = ["beta"] * (known["beta"].nunique() > 1) + [key for key in sweep.keys if key not in IN_CELL]
    cells = cells.join(known[swept].reset_index(drop=True))
    rows = []
    for cell, members in cells.groupby([*CELL, *swept], dropna=False):
        runs = known.iloc[members.index]
        unfinished = runs["status"] != "done"
        row = dict(zip(cells.columns, cell)) | {"n": int((~unfinished).sum())}
        for name, key in MEASURES.items():
            same = name == "own_regret" and all(_aims_at_the_optimum(configs[i]) for i in members.index)
            interval = mean_interval(runs[~unfinished].get(MEASURES["regret"] if same else key, []))
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"unfinished": "; ".join(runs.loc[unfinished, "run"])})
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: 'mean [low, high]', '-' for what there is not."""
    columns = {name: table[name].astype(str) for name in table.columns[: table.columns.get_loc("n") + 1]}
    for name in MEASURES:
        intervals = zip(table[name], table[f"{name}_low"], table[f"{name}_high"])
        columns[name] = [interval_text(*interval, places=4) for interval in intervals]
    columns["unfinished"] = table["unfinished"]
    if not table["unfinished"].any():
        del columns["unfinished"]
    return pd.DataFrame(columns).rename(columns=TITLES)


def write(folder: Path) -> pd.DataFrame:
    """Writes <folder>/report/convergence.csv and .md whole or not at all; returns the table. Raises
    rlpref.report.NoRuns where the folder holds no run."""
    table = convergence(load(folder))
    write_atomically(folder / "report" / "convergence.csv", table.to_csv(index=False))
    write_atomically(folder / "report" / "convergence.md", markdown(readable(table)))
    return table


def _cell(config: dict) -> tuple[str, str, str]:
    """CELL of a run, from its config: the sweep itself has columns only for settings that differ between runs."""
    return config["algorithm"]["name"], config["model"]["kind"], config["testbed"]["reward"]


def _aims_at_the_optimum(config: dict) -> bool:
    """Whether the optimum of the run's own loss is the KL-regularised one of the gold reward: policy gradients on that
    reward, and DPO on Bradley-Terry labels against the reference that the KL is measured from."""
    algorithm, loss = config["algorithm"], config["algorithm"].get("loss", {})
    if config["reference"]["kind"] != "initial":
        return False
    if loss.get("name") == "dpo" and not loss["label_smoothing"]:
        if algorithm["kind"] == "offline":
            return config["data"]["preference"] == "bradley_terry"
        return algorithm["pairing"] == "bradley_terry"
    if algorithm.get("kl_target") or algorithm.get("reward_clip") or algorithm.get("scale_scores", "none") != "none":
        return False  # the KL is weighed against another reward, or by another weight
    in_return = algorithm.get("kl", "reward") == "reward"  # then all advantages vanish there, whatever divides them
    return config["reward"]["kind"] == "gold" and algorithm.get("eos_rule") == "none" and in_return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the sweep's folder, such as runs/convergence")
    folder = parser.parse_args().folder
    print(markdown(readable(write(folder))), end="")


if __name__ == "__main__":
    main()
