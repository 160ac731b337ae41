"""The short version of `experiments/family`: two methods, one epoch of everything, on a random Llama."""

import pandas as pd
import pytest

import runs
from rlpref.report import load

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
    table = study.write(folder, sweep, rates).set_index("method")
    assert (table["seeds"] == 3).all()
    own = sweep.done[sweep.done["method"] == "dpo"]
    assert table.loc["dpo", "reward"] == pytest.approx(own["eval/reward"].mean())
    assert table["reward - beta KL"].is_monotonic_decreasing
    assert {file.name for file in (folder / "report").iterdir()} >= {"family.png", "family.csv", "tuning.csv"}
    assert len(pd.read_csv(folder / "report" / "family.csv")) == 2
