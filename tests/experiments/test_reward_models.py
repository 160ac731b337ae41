"""experiments/reward_models.py: baselines and intervals against what they should be, and the whole on small runs."""

import json

import numpy as np
import pandas as pd
import pytest

import runs
from rlpref.data.rows import KwiseRow

study = runs.experiment("reward_models")


def rows(n, start=0, good="kind", bad="cruel", k=3):
    """Lists whose best answer has one word, the worst another; lengths say nothing."""
    found = []
    for i in range(start, start + n):
        answers = [f"a {word} {'plain ' * ((i + j) % 3)}word" for j, word in enumerate([good, "quiet", bad][:k])]
        found.append(KwiseRow(f"row-{i}", f"prompt {i}", answers, [1.0, 0.5, 0.0][:k]))
    return found


def test_the_linear_model_learns_the_word_that_decides_and_length_does_not():
    train, held_out = rows(60), rows(30, start=100)
    margins = study.margins(held_out, study.bag_of_words(train, held_out))
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
    found = table.set_index("model")
    assert (found.loc[["lists-seed0", "mean of 2: lists", "pairs-seed0"], "accuracy"] == 1).all()
    assert (found["accuracy_low"] <= found["accuracy"]).all()
    assert (found.loc["bag of words", "lead"] == 0).all()
    report = tmp_path / "runs" / "report"
    bins = pd.read_csv(report / "reliability.csv")
    assert bins.groupby("model")["pairs"].sum()["lists-seed0"] == table["pairs"].iloc[0]
    assert "lists-seed1" in (report / "reward_models.md").read_text()
    assert (report / "reward_models_reliability.png").stat().st_size > 5000
