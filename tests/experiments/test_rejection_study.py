"""The study of rejection sampling: exact order statistics, and a few of its runs beside them."""

from itertools import pairwise

import pytest

import runs
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import make_testbed


@pytest.fixture(scope="module")
def study():
    return runs.experiment("rejection")


@pytest.fixture(scope="module")
def task():
    return make_testbed(vocab=6, horizon=3, prompts=4, seed=0, reward="ngram")


def test_the_best_rises_ever_slower_and_the_median_stays(study, task):
    best = [study.kept_score(task, task.ref, "max", 2**i, 1.0) for i in range(7)]
    gains = [after - before for before, after in pairwise(best)]
    assert all(gain > 0 for gain in gains)
    assert all(later < earlier for earlier, later in pairwise(gains[1:]))  # concave in log k
    medians = [study.kept_score(task, task.ref, "median", k, 1.0) for k in (21, 51, 99)]
    assert max(medians) - min(medians) < 0.05
    assert study.kept_score(task, task.ref, "random", 51, 1.0) == pytest.approx(0, abs=1e-9)  # standardised


def test_more_answers_and_a_sharper_policy_are_best_drawn_hotter(study, task):
    ks = (2, 10, 100)
    of_ref = [study.best_temperature(task, task.ref, k) for k in ks]
    assert of_ref == sorted(of_ref)
    assert of_ref[-1] > of_ref[0]
    sharper = optimum(task, task.ref, task.rewards, study.AFTER_RLHF).policy
    of_sharper = [study.best_temperature(task, sharper, k) for k in ks[:2]]
    assert all(one > other for one, other in zip(of_sharper, of_ref))  # 100 answers are nearly all there are


@pytest.mark.slow
def test_the_table_holds_drawn_beside_exact_scores(study, tmp_path):
    few = ["threads=1", "evaluation.pairs=20", "data.test_pairs=20"]
    for keep in ("max", "median"):
        for temperature in (0.8, 1.0):
            settings = [f"algorithm.keep={keep}", f"algorithm.temperature={temperature}", "algorithm.k=7"]
            chosen = ["experiment=rejection", "algorithm=rejection", *few, *settings]
            runs.run(tmp_path / f"{keep}-{temperature}", *chosen)
    table = study.write(tmp_path)
    assert len(table) == 4
    assert (table["kept"] - table["exact"]).abs().max() < 0.15
    assert (table["reward"] - table["exact"]).abs().max() < 0.3
    assert (tmp_path / "report" / "rejection.png").stat().st_size > 10_000
    assert "kept score, exact" in (tmp_path / "report" / "rejection.md").read_text()
