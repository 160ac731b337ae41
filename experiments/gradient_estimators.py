"""Exact bias and variance of every policy-gradient estimator and KL placement, beside the exact gradient.

    python experiments/gradient_estimators.py [--out FOLDER] [--seeds N] [--prompts N] [--k ANSWERS]

Three policies on each of a few random tasks: the reference, half way to pi* in log-probs, and nine tenths of the
way. All tuples of k answers are enumerated; nothing is sampled. Writes gradient_estimators.csv and .md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

from rlpref.logging.folder import write_atomically
from rlpref.testbed.estimators import ESTIMATORS, KL_PLACEMENTS, Estimator
from rlpref.testbed.gradients import enumerate_draws, objective_gradient, quality
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import make_testbed

BETA = 0.5
WAY = {"reference": 0.0, "half way": 0.5, "near pi*": 0.9}  # share of log pi*/ref
BIAS = {"none": "unbiased", "scale": "BIASED in length only", "direction": "BIASED"}
ALONE = "KL alone"
OBJECTIVE = "reward and KL"


def measure(seed: int, prompts: int, k: int) -> list[dict]:
    """One row per policy, target and estimator on the task of that seed."""
    task = make_testbed(vocab=3, horizon=2, prompts=prompts, seed=seed, reward="ngram")
    best = optimum(task, task.ref, task.rewards, BETA).policy
    rows = []
    for name, way in WAY.items():
        policy = (task.ref + way * (best - task.ref)).log_softmax(-1)
        studies = {OBJECTIVE: (task.rewards, BETA, ESTIMATORS | KL_PLACEMENTS)}
        if way > 0:  # at the reference the gradient of the KL is 0
            studies[ALONE] = (torch.zeros_like(task.rewards), 1.0, KL_PLACEMENTS)
        for target, (rewards, beta, estimators) in studies.items():
            draws = enumerate_draws(task, policy, task.ref, rewards, beta, k)
            exact = objective_gradient(task, policy, task.ref, rewards, beta)
            for estimator, entry in estimators.items():
                found = quality(draws, entry.surrogate, exact)
                rows.append({"seed": seed, "policy": name, "target": target, "estimator": estimator, **vars(found)})
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds: the largest bias, the smallest cosine, mean scale and mean variance."""
    groups = rows.groupby(["policy", "target", "estimator"], sort=False)
    how = {"bias": "max", "cosine": "min", "scale": "mean", "variance": "mean"}
    return groups.agg(how).reset_index()


def table(rows: pd.DataFrame, estimators: dict[str, Estimator]) -> str:
    """A markdown table; all rows are of one policy and one target."""
    lines = ["| estimator | by theory | bias | cosine | scale | variance | why |", "|---|---|---|---|---|---|---|"]
    for row in rows.itertuples():
        entry = estimators[row.estimator]
        cosine = "mean is 0" if pd.isna(row.cosine) else f"{row.cosine:.3f}"
        bias = f"{row.bias:.3f}" if row.bias > 1e-9 else "0"
        numbers = f"{bias} | {cosine} | {round(row.scale, 3) + 0:.3f} | {row.variance:.2f}"
        lines.append(f"| {row.estimator} | {BIAS[entry.bias]} | {numbers} | {entry.why} |")
    return "\n".join(lines)


def page(rows: pd.DataFrame, seeds: int, prompts: int, k: int) -> str:
    """The whole markdown file."""
    parts = [
        "# Policy-gradient estimators against the exact gradient",
        f"Vocabulary 3, horizon 2, {prompts} prompt(s), reward `ngram`, beta {BETA}, {k} answers to each prompt, "
        f"{seeds} task seed(s). Bias is |E g - grad J| / |grad J|, scale the length of E g along grad J, variance "
        "E|g - E g|^2 / |grad J|^2. Largest bias and smallest cosine of the seeds; mean scale and variance.",
    ]
    for (policy, target), group in summary(rows).groupby(["policy", "target"], sort=False):
        parts += [f"## {policy}: {target}", table(group, ESTIMATORS | KL_PLACEMENTS)]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gradient_estimators"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--k", type=int, default=4, help="answers to each prompt, at least 2")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = (options.prompts, options.k)
    rows = pd.DataFrame([row for seed in range(options.seeds) for row in measure(seed, *sizes)])
    text = page(rows, options.seeds, *sizes)
    write_atomically(options.out / "gradient_estimators.csv", rows.to_csv(index=False))
    write_atomically(options.out / "gradient_estimators.md", text)
    print(text)


if __name__ == "__main__":
    main()
