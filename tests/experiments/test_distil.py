"""A trained policy's best answers teach another model, through files alone."""

import json
from itertools import product

import pytest
import torch

import runs
from rlpref.build import build
from rlpref.check import check
from rlpref.rollout.sampler import ends_with_eos

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


def test_a_student_of_a_longer_budget_learns_no_end_where_the_teacher_was_cut(distilled):
    root, rows = distilled
    ended = [row["chosen_finished"] for row in rows]
    assert 0 < sum(ended) < len(rows)
    assert all(len(row["chosen"].split()) < 8 for row in rows if row["chosen_finished"])  # of 8 tokens one is the EOS
    settings = ["data=jsonl", f"data.path={root}/best.jsonl", "reward=none", "data.test_fraction=0.3", "algorithm=sft"]
    student = parts_of(*SHORT, "data.max_completion_length=16", "model=hf", f"model.name={root}/llama1", *settings)
    read = ends_with_eos(student.data.train.chosen, student.models.eos_token_id).tolist()
    assert read == [row.chosen_finished for row in student.data.rows.train]
    assert set(read) == {True, False}


def test_answers_stand_with_their_prompts_though_some_lists_make_no_pair(tmp_path):
    """The reward tells the prompts apart: an answer that stands with another prompt has the score of its own."""
    runs.save_llama(tmp_path / "llama")
    prompts = [f"{one} {other}" for one, other in product(runs.WORDS[:6], repeat=2)]
    lists = [{"responses": ["good", "bad"], "scores": [1.0, 0.9 if i % 2 else 0.0]} for i in range(len(prompts))]
    rows = [{"prompt": prompt} | each for prompt, each in zip(prompts, lists)]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["data=jsonl", f"data.path={tmp_path}/lists.jsonl", "data.kind=kwise", "data.pairs_by=margin"]
    settings += ["data.pairs_margin=0.5", "data.gold=vader", "data.test_fraction=0.2", "algorithm=dpo"]
    parts = parts_of(*SHORT, "model=hf", f"model.name={tmp_path}/llama", *settings)
    tokenizer = parts.models.tokenizer

    def by_prompt(sequences):
        within = sequences.attention_mask & ~sequences.mask
        said = [tokenizer.decode(ids[mask]) for ids, mask in zip(sequences.ids, within)]
        return torch.tensor([10.0 * prompts.index(prompt) + i % 4 for i, prompt in enumerate(said)])

    parts.models.reward = by_prompt
    found = runs.experiment("distil").best_and_worst(parts, 4, 0)
    assert len(found) > len(parts.data.rows.train) > 0
    assert all(row["chosen_score"] // 10 == prompts.index(row["prompt"]) for row in found)


def parts_of(*overrides):
    config, _ = runs.compose(*overrides)
    return build(config, check(config))
