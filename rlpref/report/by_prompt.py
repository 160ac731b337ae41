"""What each run scored at each held-out prompt, from all its answers: what is compared prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

KEYS = ("run", "by", "prompt_index", "answer_index", "prompt")
SCORES = ("reward", "proxy_reward", "cost", "kl")


def prompt_means(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of each run, one row per held-out prompt, in their order: `prompt` (its text), for each of reward, proxy_reward,
    cost and kl that was measured the mean over the policy's answers, ref_reward, win_rate against the reference's
    answers to the prompt (a tie one half); and `<name>_noise`, the squared standard error of that mean: what other
    answers to the same prompt would change. NaN with one answer to a prompt.

    Example: `prompt_means(load("runs/sentiment").answers)["dpo-seed0"]["win_rate"].nsmallest(5)`
    """
    if not {"by", "prompt_index", "answer_index"} <= set(answers.columns):
        return {}
    rows = answers[[name for name in (*KEYS, *SCORES) if name in answers]]
    rows = rows.sort_values(["run", "prompt_index", "answer_index"], kind="stable")
    policy, reference = (_by_run(rows[rows["by"] == by]) for by in ("policy", "reference"))
    return {run: _table(run, columns, reference.get(run)) for run, columns in policy.items()}


def asked_alike(means: Mapping[str, pd.DataFrame], runs: Iterable[str], name: str) -> np.ndarray | None:
    """[runs, prompts] the means of one score, where all the runs answered the same prompts; else None."""
    frames = [means.get(run) for run in runs]
    if not frames or any(frame is None or name not in frame for frame in frames):
        return None
    if any(not np.array_equal(frame["prompt"], frames[0]["prompt"]) for frame in frames[1:]):
        return None
    values = np.array([frame[name].to_numpy() for frame in frames])
    return None if np.isnan(values).any() else values


def beats(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[.., n, m] of each of ours [.., n] against each of theirs [.., m]: 1 where it is higher, one half for a tie."""
    difference = ours[..., :, None] - theirs[..., None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def _by_run(rows: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """run -> column -> its values; the rows are sorted by run."""
    columns = {name: rows[name].to_numpy() for name in rows.columns}
    names, starts = np.unique(columns["run"].astype(str), return_index=True)
    parts = {name: np.split(values, starts[1:]) for name, values in columns.items()}
    return {run: {name: parts[name][i] for name in parts} for i, run in enumerate(names)}


def _table(run: str, policy: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None) -> pd.DataFrame:
    first = policy["answer_index"] == 0
    columns: dict[str, np.ndarray] = {"prompt": policy["prompt"][first]}

    def grid(rows: dict[str, np.ndarray], name: str) -> np.ndarray:
        prompts = len(columns["prompt"])
        if not prompts or len(rows[name]) % prompts:
            raise ValueError(f"answers.jsonl of {run}: {len(rows[name])} answers to {prompts} prompts are no table.")
        return rows[name].astype(float).reshape(prompts, -1)

    for name in SCORES:
        if name in policy and not pd.isna(policy[name]).all():
            columns[name], columns[f"{name}_noise"] = _mean_and_noise(grid(policy, name))
    if "reward" in columns and reference is not None:
        ours, theirs = grid(policy, "reward"), grid(reference, "reward")
        columns["ref_reward"], columns["ref_reward_noise"] = _mean_and_noise(theirs)
        columns["win_rate"], columns["win_rate_noise"] = _wins(ours, theirs)
    return pd.DataFrame(columns, index=pd.Index(policy["prompt_index"][first], name="prompt_index"))


def _mean_and_noise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    answers = values.shape[1]
    noise = values.var(1, ddof=1) / answers if answers > 1 else np.full(len(values), np.nan)
    return values.mean(1), noise


def _wins(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' answers are drawn: the noise is that of the one and of the other."""
    won = beats(ours, theirs)
    mean, noise = _mean_and_noise(won.mean(2))
    return mean, noise + _mean_and_noise(won.mean(1))[1]
