"""experiments/reward_models.py: baselines and intervals against what they should be, and the whole on small runs."""

import json

import numpy as np
import pandas as pd
import pytest

import runs
from rlpref.binding import ConfigError
from rlpref.data.rows import KwiseRow
from rlpref.data.tasks import SOLVERS

study = runs.experiment("reward_models")

TASK_ROWS = {
    "gsm8k": [
        {"question": f"{i} + 1?"} | {solver: {"solution": solver, "is_correct": solver[0] == "6"} for solver in SOLVERS}
        for i in range(20)
    ],
    "oasst": [
        {"prompt": f"p {i}", "responses": [{"text": word, "rank": rank} for rank, word in enumerate("ab")]}
        for i in range(20)
    ],
    "xstest": [
        {"id": f"v{i}", "model": label, "type": "homonyms", "prompt": f"p {i}"}
        | {"completion": label, "final_label": label}
        for i in range(20)
        for label in ("1_full_compliance", "2_full_refusal")
    ],
}


def rows(n, start=0, good="kind", bad="cruel", k=3):
    """Lists whose best answer has one word, the worst another; lengths say nothing."""
    found = []
    for i in range(start, start + n):
        answers = [f"a {word} {'plain ' * ((i + j) % 3)}word" for j, word in enumerate([good, "quiet", bad][:k])]
        found.append(KwiseRow(f"row-{i}", f"prompt {i}", answers, [1.0, 0.5, 0.0][:k]))
    return found


def test_the_linear_model_learns_the_word_that_decides_and_length_does_not():
    train, held_out = rows(60), rows(30, start=100)
    margins = study.margins(held_out, study.scores_by_words(train, held_out))
    assert (margins > 0).all()
    assert len(margins) == 90  # three pairs of each list
    by_length = study.margins(held_out, study.lengths(held_out))
    assert 0.3 < (by_length > 0).mean() < 0.7


def test_pairs_within_the_margin_are_no_preference():
    row = KwiseRow("x", "p", ["a", "b", "c"], [0.5, 0.45, 0.2])
    assert study.pairs_of([row]) == [(0, 0, 2), (0, 1, 2)]


def test_intervals_resample_prompts_and_not_pairs():
    """The spread is that of a mean over prompts whose pairs agree, and a pair more or less of them changes nothing."""
    one, three = rows(200, k=2), rows(200)
    right = np.random.default_rng(0).random(200) < 0.7
    narrow = study.resampled(one, right[:, None].astype(float))
    repeated = study.resampled(three, np.repeat(right, 3)[:, None].astype(float))
    for draws in (narrow, repeated):
        assert draws.mean() == pytest.approx(right.mean(), abs=0.01)
        assert draws.std() == pytest.approx((right.mean() * (1 - right.mean()) / 200) ** 0.5, rel=0.1)


def test_a_tie_of_the_scores_prefers_the_longer_by_half():
    held_out = rows(30)
    margins = study.margins(held_out, study.lengths(held_out))
    judged = [study.Judged("d", "bag of words", own, 0.0) for own in (margins, np.zeros(90), -margins)]
    assert list(study.table_of(held_out, judged)["prefers_longer"]) == [1, 0.5, 0]


def test_data_sets_of_one_folder_or_one_file_have_names_of_their_own():
    paths = ["x/alpaca/train.jsonl.gz", "x/hh/a.jsonl", "x/hh/b.jsonl", "x/oasst/t.jsonl", "x/oasst/t.jsonl"]
    sections = [{"path": path, "seed": i} for i, path in enumerate(paths)]
    assert study.data_names(sections) == ["alpaca", "hh/a", "hh/b", "oasst/t (seed=3)", "oasst/t (seed=4)"]


@pytest.mark.parametrize("source", ["gsm8k", "oasst", "xstest"])
def test_files_of_tasks_are_read_without_a_model(tmp_path, source):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TASK_ROWS[source]))
    config, _ = runs.compose(f"data={source}", f"data.path={file}", "data.test_fraction=0.5")
    train, held_out = study.read(config)
    assert len(train) + len(held_out) == 20
    assert study.pairs_of(train)


@pytest.mark.parametrize("source", ["testbed", "sentiment"])
def test_data_that_a_model_makes_are_refused_by_name(source):
    config, _ = runs.compose(f"data={source}")
    with pytest.raises(ConfigError, match=f"'{source}' needs a model"):
        study.read(config)


@pytest.mark.slow
def test_runs_become_tables_and_a_figure(tmp_path):
    runs.save_llama(tmp_path / "llama")
    words = [("very good", 1.0), ("good film", 0.6), ("was awful", 0.0)]
    lists, pairs = tmp_path / "data" / "lists.jsonl", tmp_path / "data" / "pairs.jsonl"
    lists.parent.mkdir()
    answers = [{"text": text, "stars": stars} for text, stars in words]
    lists.write_text("".join(json.dumps({"prompt": f"the film {i}", "responses": answers}) + "\n" for i in range(40)))
    runs.write_jsonl(pairs)
    base = [*runs.TINY, "model=hf", f"model.name={tmp_path / 'llama'}", "reward=none", "data=jsonl", "threads=1"]
    base += ["algorithm=reward_model", "data.max_prompt_length=48", "data.max_completion_length=8", "model.lr=0.01"]
    base += ["data.test_fraction=0.3", "algorithm.batch_size=8", "algorithm.epochs=3"]
    kwise = [f"data.path={lists}", "data.kind=kwise", "data.score_key=stars", "algorithm/loss=reward_plackett_luce"]
    for seed in (0, 1):
        runs.run(tmp_path / "runs" / f"lists-seed{seed}", *base, *kwise, f"seed={seed}")
    runs.run(tmp_path / "runs" / "pairs-seed0", *base, f"data.path={pairs}")
    table = study.write(tmp_path / "runs")
    assert list(table["model"]) == [
        *["longer wins", "bag of words", "lists-seed0", "lists-seed1", "mean of 2: lists"],
        *["longer wins", "bag of words", "pairs-seed0"],
    ]
    assert list(dict.fromkeys(table["data"])) == ["data/lists", "data/pairs"]
    found = table.set_index("model")
    assert (found.loc[["lists-seed0", "mean of 2: lists", "pairs-seed0"], "accuracy"] == 1).all()
    assert (found["accuracy_low"] <= found["accuracy"]).all()
    assert (found.loc["bag of words", "lead"] == 0).all()
    report = tmp_path / "runs" / "report"
    bins = pd.read_csv(report / "reliability.csv")
    assert len(study.reliability_figure(bins).axes) == 2
    assert bins.groupby("model")["pairs"].sum()["lists-seed0"] == table["pairs"].iloc[0]
    page = (report / "reward_models.md").read_text()
    assert "lists-seed1" in page
    assert page.endswith(study.CUT + "\n")
    assert (report / "reward_models_reliability.png").stat().st_size > 5000
