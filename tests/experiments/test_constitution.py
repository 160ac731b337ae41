"""`experiments/constitution.py`: rows from a chat that the test plays, and whole: pairs, then DPO on them."""

import json
from dataclasses import dataclass, field

import pytest
import yaml

import runs
from rlpref.binding import ConfigError
from rlpref.data.formats import trl_row

PRINCIPLES = [{"name": "kind", "critique": "was it sad", "revise": "love it"}]


@pytest.fixture(scope="module")
def study():
    return runs.experiment("constitution")


@dataclass
class Played:
    """Answers by the number of turns; keeps what it was asked."""

    answers_by_stage: list[list[str]]
    asked: list = field(default_factory=list)

    def answers(self, prompts):
        self.asked.append(prompts)
        return [(text, True) for text in self.answers_by_stage[len(self.asked) - 1]]


def test_each_stage_sees_what_came_before_and_what_did_not_change_is_dropped(study):
    prompts = ["p0", "p1", "p2"]
    questions = [study.Question(p, [{"role": "user", "content": p}]) for p in prompts]
    chat = Played([["a0", "a1", "a2"], ["c0", "c1", "c2"], ["r0", "a1", ""]])
    rows, dropped = study.revise(chat, questions, PRINCIPLES, seed=0)
    assert dropped == {"unchanged": 1, "empty": 1}
    assert [[t["content"] for t in turns] for turns in chat.asked[1]] == [
        [f"p{i}", f"a{i}", "was it sad"] for i in range(3)
    ]
    last = [turn["content"] for turn in chat.asked[2][0]]
    assert last[:4] == ["p0", "a0", "was it sad", "c0"]
    assert last[4].startswith("love it")
    (row,) = rows
    assert (row["principle"], row["critique"], row["id"]) == ("kind", "c0", "p0")
    read = trl_row(row, "x")
    assert (read.chosen, read.rejected, read.prompt) == ("r0", "a0", questions[0].turns)


def test_a_prompt_keeps_its_principle_whatever_else_is_asked(study):
    principles = [{"name": str(i), "critique": "c", "revise": "r"} for i in range(50)]
    questions = [study.Question(str(i), [{"role": "user", "content": str(i)}]) for i in range(9)]

    def drawn(some, seed):
        stages = [[f"{stage}{i}" for i in range(len(some))] for stage in "acr"]
        rows, _ = study.revise(Played(stages), some, principles, seed)
        return {row["id"]: row["principle"] for row in rows}

    every = drawn(questions, 0)
    assert drawn(questions[3:], 0).items() <= every.items()
    assert drawn(questions, 1) != every
    assert len(set(every.values())) > 3


def test_the_principles_that_come_along_are_whole_and_different(study):
    principles = study.read_principles(study.PRINCIPLES)
    assert 8 <= len(principles) <= 12
    for key in ("name", "critique", "revise"):
        assert len({principle[key] for principle in principles}) == len(principles)


@pytest.mark.parametrize("content", ["", "name: x", "- name: x\n  critique: y", "- {name: x, critique: y, revise: 3}"])
def test_principles_that_lack_something_are_refused(study, tmp_path, content):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"p\.yaml.*critique, name, revise"):
        study.read_principles(tmp_path / "p.yaml")


@pytest.mark.slow
def test_a_model_revises_and_dpo_trains_on_it(study, tmp_path):
    runs.save_llama(tmp_path / "llama")
    (tmp_path / "principles.yaml").write_text(yaml.safe_dump(PRINCIPLES))
    rows = [{"id": str(i), "prompt": " ".join(runs.WORDS[: 1 + i])} for i in range(14)]
    rows += [{"id": "turns", "prompt": [{"role": "user", "content": "the film was sad"}]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name, *more):
        out = tmp_path / name
        command = [
            str(tmp_path / "prompts.jsonl"),
            "--model",
            str(tmp_path / "llama"),
            "--out",
            str(out),
            "--most",
            "6",
        ]
        study.main([*command, "--principles", str(tmp_path / "principles.yaml"), *more])
        return out.read_bytes()

    first = write("pairs.jsonl")
    assert write("again.jsonl") == first
    assert write("other.jsonl", "--seed", "1") != first
    assert len(runs.read_rows(tmp_path / "pairs.jsonl")) > 8
    settings = [
        *runs.TINY,
        "model=hf",
        f"model.name={tmp_path}/llama",
        "data=jsonl",
        f"data.path={tmp_path}/pairs.jsonl",
    ]
    settings += ["data.test_fraction=0.4", "reward=none", "algorithm=dpo", "algorithm.batch_size=4"]
    summary = runs.run(tmp_path / "run", *settings, "data.max_completion_length=8", "training.max_steps=2")
    assert summary["step"] == 2
