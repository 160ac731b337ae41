"""Rafailov et al. 2024 (2406.02900): gold reward of DPO, IPO and SLiC against sqrt(KL) within one epoch, exactly.

A tiny Llama on one epoch of pairs, measured from checkpoint to checkpoint; every environment has a task, a reference
and pairs of its own. And a tree of 15 answers with few pairs, where the mass on answers outside the data is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exhibit import Findings, look, main, panels, style, train
from rlpref.report import Interval, Sweep, mean_interval
from rlpref.report.gao import fit_gao
from rlpref.report.style import shade

NAMES = {"dpo": "DPO", "ipo": "IPO", "hinge": "SLiC"}
QUIET = ("logger.mode=disabled", "evaluation.k=2", "data.test_pairs=50", "data.seed=${seed}")


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    betas: list[float]
    pairs: int
    more_pairs: int
    batch_size: int
    learning_rate: float
    pretrain_steps: int
    checkpoints: int
    environments: list[int]
    tree_pairs: int
    tree_steps: int
    trees: list[int]


def llama(grid: Grid) -> list[str]:
    return ["model=tiny", f"model.lr={grid.learning_rate}", f"model.pretrain_steps={grid.pretrain_steps}"]


def epochs(grid: Grid, folder: Path) -> pd.DataFrame:
    """One row per checkpoint: see `rows_of`."""
    size = [f"testbed.vocab={grid.vocab}", f"testbed.horizon={grid.horizon}", f"testbed.prompts={grid.prompts}"]
    epoch = ["algorithm.epochs=1", f"algorithm.batch_size={grid.batch_size}", f"evaluation.times={grid.checkpoints}"]
    shared = [*llama(grid), *size, *epoch, *QUIET, "testbed.seed=${seed}", "optimizer.schedule=constant"]
    all_of = [f"algorithm={','.join(NAMES)}", f"beta={','.join(map(str, grid.betas))}", f"data.pairs={grid.pairs}"]
    more = ["algorithm=dpo", f"beta={min(grid.betas)}", f"data.pairs={grid.more_pairs}"]
    sweeps = {}
    for environment in grid.environments:  # runs that follow each other share their reference
        sweeps |= {f"all-{environment}": [*all_of, f"seed={environment}"]}
        sweeps |= {f"more-{environment}": [*more, f"seed={environment}"]}
    return rows_of(train(folder, sweeps, shared))


def trees(grid: Grid, folder: Path) -> pd.DataFrame:
    """The same of the tree, `table` of a table: every seed has pairs of its own."""
    shared = ["testbed.vocab=3", "testbed.horizon=3", "testbed.prompts=1", f"seed={','.join(map(str, grid.trees))}"]
    shared += [f"data.pairs={grid.tree_pairs}", f"algorithm.batch_size={grid.tree_pairs}", "beta=0.1", *QUIET]
    shared += [f"algorithm.epochs={grid.tree_steps}", f"evaluation.times={grid.checkpoints}"]
    found = rows_of(train(folder, {"tree": [f"algorithm={','.join(NAMES)}", *llama(grid)]}, shared))
    table = rows_of(train(folder, {"tree-table": ["algorithm=dpo", "model=tabular"]}, shared))
    return pd.concat([found, table.assign(method="table")], ignore_index=True)


def rows_of(found: Sweep) -> pd.DataFrame:
    """method, seed, beta, pairs, share (of the steps), kl (nats), gold (gain over the reference, units of reward) and
    unseen (exact mass of answers in no pair), one row per evaluation."""
    configs = {run: yaml.safe_load(text) for run, text in found.configs.items()}
    history = found.history.dropna(subset=["exact/kl"]).sort_values(["run", "step"])
    of = history.groupby("run", sort=False)
    frame = pd.DataFrame(
        {
            "method": history["method"],
            "seed": history["seed"].astype(int),
            "beta": history["beta"],
            "pairs": [configs[run]["data"]["pairs"] for run in history["run"]],
            "share": history["step"] / of["step"].transform("max"),
            "kl": history["exact/kl"],
            "gold": history["exact/reward"] - of["exact/reward"].transform("first"),
            "unseen": history["exact/mass_unseen"],
        }
    )
    return frame.reset_index(drop=True)


def peaks(rows: pd.DataFrame) -> pd.DataFrame:
    """Per method, pairs, beta and seed: best (gold of the best checkpoint), at (its share of the epoch) and last (gold
    of the last)."""
    keys = ["method", "pairs", "beta", "seed"]
    best = rows.loc[rows.groupby(keys)["gold"].idxmax()].set_index(keys)
    last = rows[rows["share"] == 1].set_index(keys)["gold"]
    return pd.DataFrame({"best": best["gold"], "at": best["share"], "last": last})


def fits(rows: pd.DataFrame) -> dict[str, tuple[Interval, Interval, list[float]]]:
    """Of each method on the smaller data: a and b of d (a - b log d) over seeds, and R2 of each."""
    found = {}
    for method, own in rows.groupby("method"):
        alone = [fit_gao(one["kl"], one["gold"], "rl") for _, one in own.groupby("seed")]
        coefficients = [mean_interval([fit._asdict()[key].mean for fit in alone]) for key in ("alpha", "beta")]
        found[method] = (*coefficients, [fit.r2 for fit in alone])
    return found


def draw(grid: Grid, rows: pd.DataFrame, tree: pd.DataFrame) -> Figure:
    small = rows[rows["pairs"] == grid.pairs]
    with style():
        title = "One epoch of DPO, IPO, SLiC: gold reward falls back in one task of three"
        figure, axes = panels(3, 2, height=2.45, title=title)
        fitted = fits(small)
        for axis, method in zip(axes, NAMES):
            _against_kl(axis, grid, small[small["method"] == method], method, fitted[method])
        _within(axes[3], small, min(grid.betas))
        _sizes(axes[4], grid, rows)
        _tree(axes[5], tree)
    return figure


def _against_kl(axis: Axes, grid: Grid, rows: pd.DataFrame, method: str, fitted: tuple) -> None:
    colour = look(method)["color"]
    for number, beta in enumerate(grid.betas):
        own = rows[rows["beta"] == beta].groupby("share")[["kl", "gold"]].mean()
        own_shade = shade(colour, number, len(grid.betas))
        axis.plot(
            own["kl"] ** 0.5, own["gold"], color=own_shade, marker=look(method)["marker"], ms=3, lw=1, label=f"{beta:g}"
        )
    d = np.linspace(0.05, rows["kl"].max() ** 0.5, 100)
    axis.plot(d, d * (fitted[0].mean - fitted[1].mean * np.log(d)), color="k", lw=1, ls=":")
    axis.set(xlabel="sqrt(KL), sqrt(nats)", title=f"{NAMES[method]}, {grid.pairs:,} pairs (dotted: fit)")
    axis.set_ylabel("gold reward over the reference")
    axis.legend(title="beta", title_fontsize=7, loc="lower right")


def _within(axis: Axes, rows: pd.DataFrame, beta: float) -> None:
    for method, name in NAMES.items():
        own = rows[(rows["method"] == method) & (rows["beta"] == beta)]
        line = pd.DataFrame({share: mean_interval(one)._asdict() for share, one in own.groupby("share")["gold"]}).T
        axis.plot(line["mean"], **look(method), ms=3, lw=1.1, ls="--" if method == "hinge" else "-", label=name)
        axis.fill_between(line.index, line["low"], line["high"], color=look(method)["color"], alpha=0.13, lw=0)
    axis.set(
        xlabel="share of the epoch", ylabel="gold reward over the reference", title=f"within the epoch, beta {beta:g}"
    )
    axis.legend(loc="lower right")


def _sizes(axis: Axes, grid: Grid, rows: pd.DataFrame) -> None:
    colour = look("dpo")["color"]
    for pairs, dash in zip((grid.pairs, grid.more_pairs), ("-", "--")):
        own = rows[(rows["method"] == "dpo") & (rows["pairs"] == pairs)]
        own = own[own["beta"] == min(grid.betas)].groupby("share")["gold"].mean()
        axis.plot(own, color=colour, ls=dash, lw=1.1, label=f"{pairs:,} pairs")
    axis.set(
        xlabel="share of the epoch",
        ylabel="gold reward over the reference",
        title=f"DPO, beta {min(grid.betas):g}: more pairs",
    )
    axis.legend(loc="lower right")


def _tree(axis: Axes, tree: pd.DataFrame) -> None:
    first = tree.groupby(["method", "seed"])["unseen"].transform("first")
    moved = tree.assign(change=tree["unseen"] - first)
    for method, name in NAMES.items():
        own = moved[moved["method"] == method].groupby("share")["change"]
        line = pd.DataFrame({share: mean_interval(one)._asdict() for share, one in own}).T
        axis.plot(line["mean"], **look(method), ms=3, lw=1.1, ls="--" if method == "hinge" else "-", label=name)
        axis.fill_between(line.index, line["low"], line["high"], color=look(method)["color"], alpha=0.13, lw=0)
    table = moved[moved["method"] == "table"].groupby("share")["change"].mean()
    axis.plot(table, color="k", lw=1, ls=":", label="DPO, a table")
    axis.axhline(0, color="0.35", lw=0.8)
    axis.set(xlabel="share of the training", ylabel="change of the mass in no pair", title="a tree of 15 answers")
    axis.legend(loc="upper left")


def make(grid: Grid, folder: Path) -> Findings:
    rows, tree = epochs(grid, folder), trees(grid, folder)
    low = min(grid.betas)
    found = peaks(rows)
    at_low = found.xs((grid.pairs, low), level=("pairs", "beta"))
    fallen = (at_low["last"] <= 0.9 * at_low["best"]).groupby("seed").sum()
    lost = (found["best"] - found["last"]).xs(("dpo", low), level=("method", "beta")).unstack("pairs")
    dpo = rows[(rows["method"] == "dpo") & (rows["pairs"] == grid.pairs)]
    moved = tree.groupby(["method", "seed"])["unseen"].agg(["first", "last"])
    moved = moved["last"] - moved["first"]
    values = {
        "rise_and_fall": mean_interval(fallen),
        "before_the_end": mean_interval(at_low.xs("dpo", level="method")["at"]),
        "fit": mean_interval(fits(dpo)["dpo"][2]),
        "data": mean_interval(lost[grid.pairs] - lost[grid.more_pairs]),
        "tree_table": mean_interval(moved["table"]),
        "tree": mean_interval(moved["dpo"]),
    }
    notes = [
        "Means over environments, in the tree over draws of the pairs; bands: 95% intervals over them.",
        "The paper's sizes of model are not run, and no judge: the gold reward is exact.",
    ]
    return Findings(draw(grid, rows, tree), values, {"checkpoints": rows, "tree": tree}, notes)


if __name__ == "__main__":
    main(make, Grid)
