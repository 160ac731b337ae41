"""The short version of `experiments/error_ladder`: the runs of its three commands, its tables and its figure."""

import json

import pandas as pd
import pytest

import runs
from rlpref.binding import ConfigError
from rlpref.report import NoRuns

pytestmark = pytest.mark.slow  # whole runs

SHORT = ["threads=1", "evaluation.times=1", "evaluation.k=4", "data.test_pairs=20", "data.pairs=300"]
SHORT += ["testbed.horizon=2", "testbed.prompts=2", "logger.mode=disabled", "algorithm.epochs=2"]
FEW = ["experiment=error_ladder", *SHORT, "model.pretrain_steps=20"]
OFFLINE = ("sft", "dpo", "ipo")
MODEL_STEPS = 50


@pytest.fixture(scope="module")
def study():
    return runs.experiment("error_ladder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the three commands leave, on one seed, and DPO on two."""
    folder = tmp_path_factory.mktemp("error_ladder")
    for method in ("reward_model", *OFFLINE):
        runs.run(folder / f"{method}-gold-seed0", *FEW, f"algorithm={method}")
    runs.run(folder / "dpo-gold-seed1", *FEW, "algorithm=dpo", "seed=1")
    online = [*FEW, "algorithm.rounds=2", "algorithm.prompts_per_round=16"]
    runs.run(folder / "iterative_dpo-gold-seed0", *online, "algorithm=iterative_dpo", "algorithm.data=aggregated")
    runs.run(folder / "ppo-gold-seed0", *online, "algorithm=ppo")
    once = [setting for setting in online if not setting.startswith("algorithm.epochs")]  # each round is one update
    runs.run(folder / "reinforce-gold-seed0", *once, "algorithm=reinforce")
    path = f"reward.path={folder}/reward_model-gold-seed0"
    runs.run(folder / "ppo-learned-seed0", *online, "algorithm=ppo", "reward=learned", path)
    return folder


@pytest.fixture(scope="module")
def table(study, folder):
    return study.write(folder, MODEL_STEPS).set_index(["method", "reward"])


@pytest.fixture(scope="module")
def each_run(table, folder):
    return pd.read_csv(folder / "report" / "error_ladder_runs.csv").set_index("run")


def test_every_policy_has_its_row(table):
    expected = {(name, "") for name in OFFLINE}
    expected |= {("iterative_dpo", "gold"), ("ppo", "gold"), ("ppo", "learned"), ("reinforce", "gold")}
    assert set(table.index) == expected
    assert table["n"].to_dict() == {name: 2 if name == ("dpo", "") else 1 for name in expected}


def test_the_segments_of_each_run_sum_to_the_regret_that_it_logged(study, each_run, folder):
    sums = each_run[list(study.SOURCES)].sum(axis=1)
    for run in each_run.index:
        logged = json.loads((folder / run / "summary.json").read_text())
        if not run.startswith("sft"):  # has no beta, so it logs no regret
            assert sums[run] == pytest.approx(logged["exact/regret"], abs=1e-12), run
        assert sums[run] == pytest.approx(each_run["regret"][run], abs=1e-12)


def test_each_source_is_charged_to_whom_it_concerns(table):
    nothing = {"abs": 1e-8}
    for method in ("sft", "dpo", "ipo"):
        assert table.loc[(method, ""), "reward model"] == 0
    assert table.loc[("dpo", ""), "objective"] == pytest.approx(0, **nothing)
    assert table.loc[("ipo", ""), "objective"] > 0.1
    assert table.loc[("sft", ""), "objective"] > 0.1
    for method in ("dpo", ""), ("ipo", ""), ("iterative_dpo", "gold"):
        assert abs(table.loc[method, "statistics"]) > 1e-4
    for method in ("ppo", "reinforce"):
        assert table.loc[(method, "gold"), "reward model"] == pytest.approx(0, **nothing)
    assert table.loc[("ppo", "learned"), "reward model"] > 1e-3
    for reward in ("gold", "learned"):
        assert table.loc[("ppo", reward), "objective"] == table.loc[("ppo", reward), "statistics"] == 0


def test_the_files_are_written(table, folder):
    again = pd.read_csv(folder / "report" / "error_ladder.csv", keep_default_na=False).set_index(["method", "reward"])
    assert again["regret"].astype(float).tolist() == pytest.approx(table["regret"].tolist())
    lines = (folder / "report" / "error_ladder.md").read_text().splitlines()
    assert len(lines) == 2 + len(table)
    assert "| function class |" in lines[0]
    assert (folder / "report" / "error_ladder.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "report" / "error_ladder.pdf").read_bytes()[:4] == b"%PDF"


def test_fresh_pairs_leave_statistics_to_the_optimiser_and_a_table_excludes_nothing(study, tmp_path):
    settings = [*SHORT, "algorithm=iterative_dpo", "algorithm.rounds=2", "algorithm.prompts_per_round=16"]
    runs.run(tmp_path / "fresh", *settings)
    found = study.climb(tmp_path / "fresh")
    assert found["statistics"] == found["function class"] == 0
    assert found["optimisation"] == pytest.approx(found["regret"], abs=1e-12)


ONCE = ["algorithm.rounds=1", "algorithm.prompts_per_round=4"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["algorithm=iterative_dpo", "algorithm.pairing=best_worst", *ONCE], "pairing bradley_terry"),
        (["algorithm=ppo", "algorithm.eos_rule=subtract", "algorithm.eos_penalty=1.0", *ONCE], "eos_rule none"),
        (["algorithm=dpo", "data.pairs_from=near", "+data.pairs_from_options.distance=1"], "drawn independently"),
        (["algorithm=reward_model"], "algorithm kind with a ladder"),
    ],
)
def test_a_run_without_a_known_ladder_is_refused(study, tmp_path, settings, reason):
    runs.run(tmp_path, *SHORT, *settings)
    with pytest.raises(ConfigError, match=reason):
        study.climb(tmp_path)


def test_a_folder_without_ladders_is_named(study, tmp_path):
    with pytest.raises(NoRuns, match=str(tmp_path)):
        study.write(tmp_path)
    runs.run(tmp_path / "reward_model", *SHORT, "algorithm=reward_model")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        study.write(tmp_path)
