"""`experiments/judge.py`: what it counts, on verdicts that the test gives, and whole on a tiny Llama."""

import json
from argparse import Namespace

import pandas as pd
import pytest
import torch
import yaml

import runs
from rlpref.data.rows import Row
from rlpref.rewards.judge import PairJudge
from rlpref.rewards.rubric import Question

PAIR = Question("{prompt}|{first}|{second}", ("A", "B"))
ROWS = [Row(str(i), f"p{i}", chosen="good" * (1 + i % 2 * 2), rejected="bad bad") for i in range(8)]


@pytest.fixture(scope="module")
def study():
    return runs.experiment("judge")


def shares(study, says):
    """The report on ROWS of a judge whose A has probability `says(first, second)`."""

    def reader(requests, words):
        first = torch.tensor([says(*request.split("|")[1:]) for request in requests], dtype=torch.float64)
        return torch.stack([first, 1 - first], 1).log()

    table = study.measure(ROWS, PairJudge(PAIR, reader, None, "tie"))
    return study.summary(table).set_index("what")["share"]


def test_a_perfect_judge_agrees_always(study):
    found = shares(study, lambda first, second: 0.9 if "good" in first else 0.1)
    assert found["agreement"] == found["agreement, a tie unless both orders agree"] == 1
    assert found["position flips (orders disagree)"] == found["ties (orders disagree, or both say tie)"] == 0
    assert found["readings that name the answer shown first"] == 0.5
    assert found["agreement of 'longer wins'"] == 0.5
    assert found["judge prefers the longer answer"] == 0.5


def test_a_judge_of_the_order_alone_flips_always_and_ties(study):
    found = shares(study, lambda first, second: 0.8)
    assert found["position flips (orders disagree)"] == found["readings that name the answer shown first"] == 1
    assert found["ties (orders disagree, or both say tie)"] == 1
    assert found["agreement, a tie unless both orders agree"] == 0.5
    assert pd.isna(found["agreement of the pairs on which both orders agree"])


def test_a_judge_of_length_is_told_from_one_of_quality(study):
    found = shares(study, lambda first, second: 0.9 if len(first) > len(second) else 0.1)
    assert found["judge prefers the longer answer"] == 1
    assert found["agreement"] == found["agreement of 'longer wins'"] == 0.5
    assert found["agreement where the chosen answer is longer"] == 1
    assert found["agreement where the chosen answer is shorter"] == 0


def test_a_tie_prefers_the_longer_answer_by_half(study):
    assert shares(study, lambda first, second: 0.5)["judge prefers the longer answer"] == 0.5


def test_one_pair_of_each_conversation_is_judged(study, tmp_path):
    """Three prompts of one tree (one opening), two that name a group, and one alone."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    prompts = [turns[:1], turns, [*turns[:2], {"role": "user", "content": "d"}], "e", "f", "g"]
    rows = [{"prompt": prompt, "responses": ["x", "y"], "scores": [1, 0]} for prompt in prompts]
    rows[3] |= {"group": "named"}
    rows[4] |= {"group": "named"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data": tmp_path / "rows.jsonl", "kind": "kwise", "score_key": None, "lowest_best": False}
    options = Namespace(**options, pairs_by="random")
    drawn = [study.read_pairs(Namespace(**vars(options), seed=seed))[0] for seed in range(9)]
    for pairs in drawn:
        assert sorted(prompts.index(row.prompt) // 3 for row in pairs) == [0, 1, 1]
        assert len({row.group for row in pairs}) == 3
    assert len({str(row.prompt) for pairs in drawn for row in pairs}) == 6  # which of a tree is random


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pairwise", "pointwise"])
def test_ranked_answers_are_read_and_a_report_is_written(study, tmp_path, mode):
    runs.save_llama(tmp_path / "llama")
    sections = {
        "pairwise": ("{prompt} love {first} hate {second}", {"first": "good", "second": "bad", "tie": None}),
        "pointwise": ("{prompt} was {answer}", {"good": "good", "bad": "bad"}),
    }
    rubric = {key: {"request": request, "verdicts": verdicts} for key, (request, verdicts) in sections.items()}
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(rubric))
    texts = ["very good film", "good", "bad"]
    responses = [{"text": text, "rank": rank} for rank, text in enumerate(texts)]
    rows = [{"prompt": f"the film {i}", "responses": responses} for i in range(12)]
    rows.append({"prompt": "sad " * 90, "responses": responses})
    rows.append({"prompt": "all equal", "responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 0}]})
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [str(tmp_path / "lists.jsonl"), "--kind", "kwise", "--score-key", "rank", "--lowest-best"]
    command += ["--judge", str(tmp_path / "llama"), "--rubric", str(tmp_path / "rubric.yaml"), "--mode", mode]
    found = study.main(
        [*command, "--pairs", "10", "--longest", "60", "--pairs-by", "best_worst", "--out", str(tmp_path)]
    )
    written = pd.read_csv(tmp_path / "judge.csv")
    assert len(written) == 10
    assert (written["chosen_is_longer"] == 1).all()  # the best rank is the longest text
    assert found.set_index("what")["n"]["agreement"] == 10
    assert f"{mode}: 10 of 12 conversations" in (tmp_path / "judge.md").read_text()
    assert "of 13 in lists.jsonl (1 bad rows left out)" in (tmp_path / "judge.md").read_text()
