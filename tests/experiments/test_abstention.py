"""The short version of `experiments/abstention`: eleven questions, two methods, its table and its figure."""

import numpy as np
import pandas as pd
import pytest

import runs

pytestmark = pytest.mark.slow  # whole runs

CHANCES = "testbed.options.correct=[0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1]"
SHORT = ["experiment=abstention", "threads=1", "testbed.prompts=11", CHANCES, "evaluation.times=1", "evaluation.k=4"]
SHORT += ["data.test_pairs=50", "evaluation.pairs=50"]
METHODS = {
    "reinforce": ["algorithm=reinforce", "data.pairs=200", "algorithm.rounds=150", "algorithm.prompts_per_round=44"],
    "dpo": ["algorithm=dpo", "data.pairs=60000"],
}


@pytest.fixture(scope="module")
def study():
    return runs.experiment("abstention")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abstention")
    for cost in (0.5, 1, 3):
        for name, settings in METHODS.items():
            runs.run(folder / f"{name}-{cost}", *SHORT, *settings, f"testbed.options.cost={cost}")
    return folder


@pytest.fixture(scope="module")
def table(study, folder):
    return study.write(folder).set_index(["cost", "method"])


@pytest.mark.parametrize("cost", [0.5, 1, 3])
@pytest.mark.parametrize("method", [*METHODS, "optimum"])
def test_policies_abstain_below_chows_threshold(table, method, cost):
    row = table.loc[(cost, method)]
    assert row["chow"] == pytest.approx(cost / (1 + cost))
    assert abs(row["threshold"] - row["chow"]) <= 0.1
    assert row["found"]


def test_abstaining_pays_exactly_below_the_threshold(study, folder):
    rates = study.measure(folder / "reinforce-3")
    best = rates[rates["method"] == "optimum"].set_index("p")["rate"]
    assert (best[best.index <= 0.6] > 0.99).all()
    assert (best[best.index >= 0.9] < 0.01).all()


@pytest.mark.parametrize(("t", "expected"), [(0.45, 0.45), (0.05, 0.05), (-1, 0.0), (2, 1.0)])
def test_the_threshold_of_a_step_is_the_step_in_whatever_order_the_questions_come(study, t, expected):
    p = np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert study.threshold(p, (p < t).astype(float)) == pytest.approx(expected)


def test_one_question_on_the_wrong_side_does_not_move_the_threshold(study):
    p = np.linspace(0, 1, 11)
    rate = (p < 0.45).astype(float)
    rate[8] = 1.0
    assert study.threshold(p, rate) == pytest.approx(0.45)


def test_the_files_are_written(table, folder):
    report = folder / "report"
    assert (report / "abstention.md").read_text().count("yes") == 9
    assert set(pd.read_csv(report / "abstention.csv")["method"]) == {"optimum", *METHODS}
    assert (report / "abstention.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_of_another_task_are_refused(study, tmp_path):
    runs.run(tmp_path / "run", *runs.TESTBED, *runs.METHODS["dpo"], "training.max_steps=1")
    with pytest.raises(study.ConfigError, match="not 'abstain'"):
        study.measure(tmp_path / "run")
