"""Likelihood displacement (Pal et al. 2402.13228, Razin et al. 2410.08847) on an enumerable Llama, loss by loss.

Every environment has its task, its reference and its pairs: drawn at random, or at Hamming distance 1. Log-probs are
those of held-out pairs, masses of answers are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exhibit import Findings, look, main, panels, style, train
from rlpref import checkpoint
from rlpref.build import build
from rlpref.check import check
from rlpref.check_rewards import trained_weights
from rlpref.evaluation.displacement import verdicts
from rlpref.report import Sweep, load, mean_interval
from rlpref.report.displacement import of_pairs
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.task import answer_tokens, conditionals

NAMES = {"dpo": "DPO", "ipo": "IPO", "simpo": "SimPO", "dpo_nll": "DPO + likelihood", "dpop": "DPOP"}
KINDS = {"near": ["data.pairs_from=near", "+data.pairs_from_options.distance=1"], "random": []}
MASSES = {"chosen": "#009E73", "rejected": "#CC79A7", "unseen": "0.45"}  # more often in the pairs, or in none
TOP = 5


@dataclass(frozen=True)
class Grid:
    vocab: int
    horizon: int
    prompts: int
    pairs: int
    beta: float
    learning_rate: float
    steps: int
    batch_size: int
    pretrain_steps: int
    evaluations: int
    test_pairs: int
    lambdas: list[float]
    environments: list[int]


def runs(grid: Grid, folder: Path) -> dict[str, Sweep]:
    """Name of the setting -> its runs, one per environment: <kind of pairs>-<method>, DPOP with its lambda."""
    at = f"beta={grid.beta}"
    settings = {f"{kind}-dpo": [at, "algorithm=dpo", *KINDS[kind]] for kind in KINDS}
    near = KINDS["near"]
    settings |= {
        "near-ipo": [at, "algorithm=ipo", *near],
        "near-simpo": ["algorithm=simpo", *near],
        "near-dpo_nll": [at, "algorithm=dpo_nll", *near],
    }
    settings |= {
        f"near-dpop{lam:g}": [at, "algorithm=dpop", f"algorithm.loss.lam={lam}", *near] for lam in grid.lambdas
    }
    shared = [
        *("model=tiny", f"model.lr={grid.learning_rate}", f"model.pretrain_steps={grid.pretrain_steps}"),
        *(f"testbed.vocab={grid.vocab}", f"testbed.horizon={grid.horizon}", f"testbed.prompts={grid.prompts}"),
        *("testbed.seed=${seed}", "data.seed=${seed}"),
        *(f"data.pairs={grid.pairs}", f"data.test_pairs={grid.test_pairs}", f"algorithm.batch_size={grid.batch_size}"),
        *("algorithm.epochs=10000", f"training.max_steps={grid.steps}", "logger.mode=disabled"),
        *(f"evaluation.times={grid.evaluations}", "evaluation.k=2", f"evaluation.pairs={grid.test_pairs}"),
    ]
    # Environment by environment: runs that follow each other share their reference, which takes long to make.
    train(
        folder,
        {f"{name}-{e}": [*own, f"seed={e}"] for e in grid.environments for name, own in settings.items()},
        shared,
    )
    return {name: load(*(folder / "runs" / f"{name}-{e}" for e in grid.environments)) for name in settings}


def ends(found: dict[str, Sweep]) -> pd.DataFrame:
    """One row per setting and environment: chosen, rejected (changes of mean log-probs, nats), ches_corr, accuracy, kl
    (nats), and the changes of the mass on answers by what the pairs say of them (mass_<MASSES>)."""
    rows = []
    for name, sweep in found.items():
        for run, pairs in sweep.pairs.groupby("run", sort=False):
            history = sweep.history[sweep.history["run"] == run].dropna(subset=["exact/kl"])
            first, last = history.iloc[0], history.iloc[-1]
            moved = of_pairs(pairs)
            row = {"setting": name, "environment": int(last["seed"]), "kl": last["exact/kl"]}
            row |= {key: moved[key] for key in ("chosen", "rejected", "ches_corr")} | {
                "accuracy": last["eval/accuracy"]
            }
            rows.append(row | {f"mass_{of}": last[f"exact/mass_{of}"] - first[f"exact/mass_{of}"] for of in MASSES})
    return pd.DataFrame(rows)


def paths(found: dict[str, Sweep]) -> pd.DataFrame:
    """One row per setting, environment and evaluation: step, and the change of the chosen answers' mean log-prob."""
    rows = []
    for name, sweep in found.items():
        history = sweep.history.dropna(subset=["eval/logps/chosen"])
        change = history["eval/logps/chosen"] - history.groupby("run")["eval/logps/chosen"].transform("first")
        rows.append(history[["seed", "step"]].assign(setting=name, chosen=change))
    return pd.concat(rows)


def top(sweep: Sweep) -> pd.DataFrame:
    """The TOP answers of the first run that gained most probability: answer, before, after (mean over prompts of its
    own share), and what the training pairs say of it."""
    run = sweep.done.iloc[0]
    config = yaml.safe_load(sweep.configs[run["run"]])
    parts = build(config, check(config))
    with torch.no_grad():
        before = answer_logps(parts.task, conditionals(parts.task, parts.models.policy)).exp().flatten(1)
        checkpoint.load_weights(parts.models.policy, trained_weights(run["folder"], "policy"))
        after = answer_logps(parts.task, conditionals(parts.task, parts.models.policy)).exp().flatten(1)
    judged, tokens = verdicts(parts.task, parts.data.train), answer_tokens(parts.task).flatten(0, 1)
    rows = []
    for flat in (after - before).flatten().topk(TOP).indices.tolist():
        prompt, place = divmod(flat, before.shape[1])
        net = float(judged[prompt, place])
        said = "in no pair" if net != net else "mostly chosen" if net > 0 else "mostly rejected" if net < 0 else "even"
        words = " ".join(str(token) for token in tokens[place].tolist() if token > 0) or "(empty)"
        rows.append(
            {"prompt": prompt, "answer": words, "said": said}
            | {"before": float(before[prompt, place]), "after": float(after[prompt, place])}
        )
    return pd.DataFrame(rows)


def deciles(sweep: Sweep) -> pd.DataFrame:
    """[decile, run] the mean fall of the chosen answers (nats) of held-out pairs by decile of their CHES."""
    pairs = sweep.pairs.assign(fall=sweep.pairs["ref_chosen"] - sweep.pairs["chosen"])
    rank = pairs.groupby("run")["ches"].rank(pct=True, method="first")
    pairs["decile"] = (rank * 10).clip(upper=9.999).astype(int) + 1
    return pairs.pivot_table("fall", "decile", "run")


def label(setting: str) -> str:
    kind, method = setting.split("-", 1)
    method, lam = ("dpop", method[4:]) if method.startswith("dpop") else (method, "")
    return NAMES[method] + (f" {lam}" if lam else "") + ("" if kind == "near" else ", random pairs")


def look_of(setting: str) -> dict[str, str]:
    method = setting.split("-", 1)[1]
    return look("dpop" if method.startswith("dpop") else method)


def whisker(axis: Axes, height: float, values: pd.Series, **style_of) -> None:
    found = mean_interval(values)
    axis.plot([found.low, found.high], [height, height], lw=1.4, color=style_of["color"], alpha=0.6)
    axis.plot(found.mean, height, ls="", ms=4.5, **style_of)


def draw(found: dict[str, Sweep], rows: pd.DataFrame, gained: pd.DataFrame) -> Figure:
    settings = list(found)
    with style():
        title = "DPO lowers what it chose and learns the order; strong DPOP does neither"
        figure, axes = panels(3, 2, height=2.6, title=title)
        _ends(axes[0], rows, settings)
        _accuracy(axes[1], rows, settings)
        _masses(axes[2], rows, settings)
        _paths(axes[3], paths(found))
        for kind in KINDS:
            table = deciles(found[f"{kind}-dpo"])
            dash = "-" if kind == "near" else "--"
            axes[4].plot(table.mean(axis=1), **look("dpo"), ls=dash, ms=3, lw=1.1, label=f"{kind} pairs")
        axes[4].axhline(0, color="0.35", lw=0.8)
        axes[4].set(xlabel="decile of CHES", ylabel="fall of the chosen answer, nats", title="DPO: CHES and the fall")
        axes[4].set_xticks([1, 4, 7, 10])
        axes[4].legend()
        _top(axes[5], gained)
    return figure


def _named(axis: Axes, settings: list[str]) -> None:
    axis.set_yticks(range(len(settings)), map(label, settings), fontsize=7)
    axis.set_ylim(len(settings) - 0.5, -0.5)
    axis.axvline(0, color="0.35", lw=0.8, zorder=1)


def _ends(axis: Axes, rows: pd.DataFrame, settings: list[str]) -> None:
    for height, setting in enumerate(settings):
        own = rows[rows["setting"] == setting]
        whisker(axis, height - 0.15, own["chosen"], color=look_of(setting)["color"], marker="o")
        whisker(axis, height + 0.15, own["rejected"], color=look_of(setting)["color"], marker="x")
    _named(axis, settings)
    axis.set(xlabel="change of log-prob, nats", title="chosen (o) and rejected (x)")


def _accuracy(axis: Axes, rows: pd.DataFrame, settings: list[str]) -> None:
    for height, setting in enumerate(settings):
        whisker(axis, height, rows[rows["setting"] == setting]["accuracy"] - 0.5, **look_of(setting))
    _named(axis, settings)
    axis.tick_params(labelleft=False)
    axis.set(xlabel="implicit accuracy less one half", title="held-out order of the pairs")


def _masses(axis: Axes, rows: pd.DataFrame, settings: list[str]) -> None:
    means = rows.groupby("setting")[[f"mass_{of}" for of in MASSES]].mean()
    for shift, (of, colour) in zip((-0.25, 0, 0.25), MASSES.items()):
        heights = [at + shift for at in range(len(settings))]
        axis.barh(heights, means.loc[settings, f"mass_{of}"], 0.24, color=colour, label=of)
    _named(axis, settings)
    axis.tick_params(labelleft=False)
    axis.set(xlabel="change of exact mass", title="mass by what pairs say of it")
    axis.legend(handlelength=1, loc="lower left")


def _paths(axis: Axes, rows: pd.DataFrame) -> None:
    for setting, own in rows.groupby("setting", sort=False):
        dash = "-" if setting.startswith("near") else "--"
        axis.plot(own.groupby("step")["chosen"].mean(), **look_of(setting), ls=dash, ms=2.5, lw=1)
    axis.axhline(0, color="0.35", lw=0.8)
    axis.set(xlabel="optimizer steps", ylabel="chosen answers, nats", title="chosen, on the way (dashed: random)")


def _top(axis: Axes, gained: pd.DataFrame) -> None:
    heights = range(len(gained))
    axis.barh([at + 0.04 for at in heights], gained["before"], 0.2, color="0.7", label="before")
    axis.barh([at + 0.26 for at in heights], gained["after"], 0.2, color=look("dpo")["color"], label="after DPO")
    for at, row in zip(heights, gained.itertuples()):
        name = f"{row.answer} ({row.said})"
        axis.text(0.02, at - 0.1, name, fontsize=7, va="bottom", transform=axis.get_yaxis_transform())
    axis.set_yticks([])
    axis.set_ylim(len(gained) + 0.3, -0.6)
    axis.set(xlabel="probability given its prompt", title="DPO: who gained most")
    axis.legend(loc="lower right")


def make(grid: Grid, folder: Path) -> Findings:
    found = runs(grid, folder)
    rows = ends(found)
    table = {column: rows.pivot(index="environment", columns="setting", values=column) for column in rows.columns[2:]}
    strong = f"near-dpop{max(grid.lambdas):g}"
    chosen = table["chosen"]
    values = {
        "falls": mean_interval(chosen["near-dpo"]),
        "learns": mean_interval(table["accuracy"]["near-dpo"] - 0.5),
        "near": mean_interval(chosen["near-dpo"] / chosen["random-dpo"]),
        "leaves": mean_interval(table["mass_unseen"]["near-dpo"]),
        "dpop": mean_interval(chosen[strong]),
        "frozen": mean_interval(table["kl"][strong]),
        "likelihood": mean_interval(chosen["near-dpo_nll"] - chosen["near-dpo"]),
        "ches": mean_interval(table["ches_corr"]["random-dpo"]),
        "ches_near": mean_interval(table["ches_corr"]["near-dpo"]),
    }
    gained = top(found["near-dpo"])
    notes = [
        "Pairs are at Hamming distance 1 where nothing else is said. Whiskers: 95% intervals over environments; curves",
        "and bars: means; last panel: the first environment, what its pairs say of an answer in brackets.",
    ]
    return Findings(draw(found, rows, gained), values, {"ends": rows, "gained": gained}, notes)


if __name__ == "__main__":
    main(make, Grid)
