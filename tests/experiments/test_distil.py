"""A trained policy's best answers teach another model, through files alone."""

import json

import pytest

import runs

pytestmark = pytest.mark.slow

SHORT = ["data.max_prompt_length=48", "data.max_completion_length=8", *runs.TINY]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """(folder with models and files, the rows of a teacher's best answers)"""
    root = tmp_path_factory.mktemp("distil")
    for seed in (0, 1):
        runs.save_llama(root / f"llama{seed}", seed)
    settings = ["data=sentiment", "data.prompts=60", "algorithm=rejection", "algorithm.rounds=2", "algorithm.k=2"]
    settings += ["algorithm.prompts_per_round=8", "algorithm.batch_size=8"]
    runs.run(root / "teacher", *SHORT, "model=hf", f"model.name={root}/llama0", *settings)
    runs.experiment("distil").main([str(root / "teacher"), str(root / "best.jsonl"), "--k", "6"])
    return root, [json.loads(line) for line in (root / "best.jsonl").read_text().splitlines()]


def test_each_row_is_the_best_and_the_worst_of_a_prompt(distilled):
    _, rows = distilled
    assert len(rows) > 20
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert row["chosen_score"] > row["rejected_score"]
        assert row["chosen"] != row["rejected"]


def test_the_same_seed_draws_the_same_answers(distilled):
    root, _ = distilled
    for seed, same in ((0, True), (1, False)):
        runs.experiment("distil").main([str(root / "teacher"), str(root / "again.jsonl"), "--k", "6", f"--seed={seed}"])
        assert ((root / "again.jsonl").read_text() == (root / "best.jsonl").read_text()) is same


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_another_model_learns_from_the_file(algorithm, distilled, tmp_path):
    root, _ = distilled
    settings = [
        "data=jsonl",
        f"data.path={root}/best.jsonl",
        "data.gold=vader",
        "reward=none",
        "data.test_fraction=0.3",
    ]
    settings += [
        "data.test_fraction=0.3",
        f"algorithm={algorithm}",
        "algorithm.batch_size=8",
        "algorithm.epochs=4",
        "optimizer.lr=0.003",
    ]
    runs.run(tmp_path, *SHORT, "model=hf", f"model.name={root}/llama1", *settings)
    evaluated = [row for row in runs.metrics(tmp_path) if "eval/reward" in row]
    key = {"sft": "eval/logps/chosen", "dpo": "eval/kl"}[algorithm]
    assert evaluated[-1][key] > evaluated[0][key]
    assert runs.status(tmp_path)["status"] == "done"


def test_one_answer_has_no_best(distilled, capsys):
    root, _ = distilled
    with pytest.raises(SystemExit):
        runs.experiment("distil").main([str(root / "teacher"), str(root / "none.jsonl"), "--k", "1"])
    assert "at least 2" in capsys.readouterr().err
    assert not (root / "none.jsonl").exists()
