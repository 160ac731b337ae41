"""The short version of `experiments/family`: two methods, one epoch of everything, on a random Llama."""

import math
from dataclasses import replace

import pandas as pd
import pytest

import runs
from rlpref.report import load
from rlpref.report.tables import markdown

pytestmark = pytest.mark.slow  # whole runs

FEW = ["threads=1", "evaluation.times=1", "evaluation.k=2", "evaluation.prompts=4", "evaluation.pairs=8"]
FEW += ["data.prompts=60", "data.max_prompt_length=48", "data.max_completion_length=8", "training.max_steps=2"]


@pytest.fixture(scope="module")
def study():
    return runs.experiment("family")


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    """The tuning of two methods at two learning rates, and three seeds of each."""
    root = tmp_path_factory.mktemp("family")
    runs.save_llama(root / "model")
    model = ["experiment=family", "model=hf", f"model.name={root / 'model'}", *FEW]
    for method in ("dpo", "remax"):
        for lr in ("1e-4", "1e-3"):
            where = root / "tuning" / f"{method}-{lr}"
            runs.run(where, *model, f"algorithm={method}", f"optimizer.lr={lr}", *study.TUNING)
        for seed in range(3):
            runs.run(root / "final" / f"{method}-{seed}", *model, f"algorithm={method}", f"seed={seed}")
    return root


def test_the_rate_with_the_best_objective_on_the_tuning_seed_is_chosen(study, folder):
    tuning = load(folder / "tuning")
    rates = study.chosen(tuning).set_index("method")
    for method, tried in tuning.done.groupby("method"):
        value = tried["eval/reward"] - 0.05 * tried["eval/kl"]
        assert rates.loc[method, "optimizer.lr"] == tried.loc[value.idxmax(), "optimizer.lr"]
        assert rates.loc[method, "objective"] == pytest.approx(value.max())
    assert set(tuning.done["seed"]) == {100}


def test_the_table_and_the_figure_are_written(study, folder):
    sweep, rates = load(folder / "final"), study.chosen(load(folder / "tuning"))
    table = study.write(folder, sweep, rates, ["remax", "dpo"]).set_index("method")
    assert (table["seeds"] == 3).all()
    assert (table["failed"] == "").all()
    own = sweep.done[sweep.done["method"] == "dpo"]
    assert table.loc["dpo", "reward"] == pytest.approx(own["eval/reward"].mean())
    assert table["reward - beta KL"].is_monotonic_decreasing
    assert {file.name for file in (folder / "report").iterdir()} >= {"family.png", "family.csv", "tuning.csv"}
    assert len(pd.read_csv(folder / "report" / "family.csv")) == 2


def test_what_has_no_result_stands_in_the_table(study, folder):
    """One seed failed, one ended without a number, one never began; and a method that no learning rate suits."""
    sweep, tuning = load(folder / "final"), load(folder / "tuning")
    runs = sweep.runs.set_index("run", drop=False)
    runs.loc["dpo-0", "status"] = "failed"
    runs.loc["dpo-1", "eval/reward"] = math.nan
    runs = runs.drop(index="remax-2")
    methods = ["dpo", "remax", "ipo"]
    table = study.family(replace(sweep, runs=runs), study.chosen(tuning), methods).set_index("method")
    assert table["seeds"].to_dict() == {"dpo": 1, "remax": 2, "ipo": 0}
    assert table["failed"].to_dict() == {"dpo": "seed 0, seed 1", "remax": "seed 2", "ipo": "tuning"}
    assert table.index[-1] == "ipo"
    assert table.loc["dpo", "reward"] == pytest.approx(runs.loc["dpo-2", "eval/reward"])
    assert "| ipo | " in markdown(study.readable(table.reset_index()))


def test_a_rate_whose_objective_is_no_number_is_not_chosen(study, folder):
    tuning = load(folder / "tuning")
    runs = tuning.runs.copy()
    best = study.chosen(tuning).set_index("method")["optimizer.lr"]
    runs.loc[(runs["method"] == "dpo") & (runs["optimizer.lr"] == best["dpo"]), "eval/kl"] = math.nan
    runs.loc[runs["method"] == "remax", "eval/reward"] = math.nan
    again = study.chosen(replace(tuning, runs=runs))
    assert list(again["method"]) == ["dpo"]
    assert again["optimizer.lr"].iloc[0] != best["dpo"]
