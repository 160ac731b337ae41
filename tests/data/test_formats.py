import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpref.binding import ConfigError
from rlpref.data.checks import BadRow
from rlpref.data.formats import (
    dialogue_text,
    dialogue_turns,
    hh_row,
    kwise_row,
    record_format,
    trl_row,
    unpaired_row,
)

USER, ASSISTANT = "user", "assistant"


def turn(role, content):
    return {"role": role, "content": content}


def test_hh_is_split_at_the_last_assistant_and_not_at_the_common_prefix():
    start = "\n\nHuman: Which engine?\n\nAssistant: For what?\n\nHuman: Search.\n\nAssistant:"
    row = hh_row({"chosen": start + " Duckduckgo is one.", "rejected": start + " Dogpile."}, "r")
    assert row.prompt == [turn(USER, "Which engine?"), turn(ASSISTANT, "For what?"), turn(USER, "Search.")]
    assert (row.chosen, row.rejected) == ("Duckduckgo is one.", "Dogpile.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: other\n\nAssistant: b", "differ"),
        ("\n\nHuman: q\n\nAssistant: ", "\n\nHuman: q\n\nAssistant: b", "chosen after the last .* is empty"),
        ("\n\nHuman: q", "\n\nHuman: q\n\nAssistant: b", "no '.n.nAssistant:'"),
        ("hello\n\nHuman: q\n\nAssistant: a", "hello\n\nHuman: q\n\nAssistant: b", "does not begin"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "does not begin"),
        ("\n\nHuman: \n\nAssistant: a", "\n\nHuman: \n\nAssistant: b", "is empty"),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant:  a ", "same text"),
        (None, "\n\nHuman: q\n\nAssistant: b", "is null"),
    ],
)
def test_hh_rows_that_do_not_compare_two_answers_are_bad(chosen, rejected, reason):
    with pytest.raises(BadRow, match=reason):
        hh_row({"chosen": chosen, "rejected": rejected}, "r")


WORDS = st.text(alphabet="abc .", min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=3), WORDS)
def test_dialogue_text_and_turns_are_inverse(exchanges, last):
    prompt = [t for said, answer in exchanges for t in (turn(USER, said), turn(ASSISTANT, answer))]
    prompt.append(turn(USER, last))
    rendered = dialogue_text(prompt)
    assert rendered.endswith("\n\nAssistant:")
    assert dialogue_turns(rendered.removesuffix("\n\nAssistant:")) == prompt


def test_trl_standard_explicit_keeps_texts_as_they_are():
    row = trl_row({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "r")
    assert (row.prompt, row.chosen, row.rejected) == ("The sky is", " blue.", " green.")


@pytest.mark.parametrize("explicit", [True, False])
def test_trl_conversational_explicit_and_implicit_are_the_same_row(explicit):
    prompt = [turn("system", "Be brief."), turn(USER, "Sky?")]
    chosen, rejected = [turn(ASSISTANT, "Blue.")], [turn(ASSISTANT, "Green.")]
    record = (
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if explicit
        else {"chosen": prompt + chosen, "rejected": prompt + rejected}
    )
    row = trl_row(record | {"score_chosen": 8.0, "score_rejected": 2}, "r")
    assert (row.prompt, row.chosen, row.rejected) == (prompt, "Blue.", "Green.")
    assert (row.chosen_score, row.rejected_score) == (8.0, 2.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The film was great", "The film was good", "The film was"),
        ("The film was fun", "The film was fun and long", "The film was"),
        ("The film was great", "The film was  bad", "The film was"),
        ("a\n\nb c", "a\n\nb d", "a\n\nb"),
        ("Q: why?\nA: so", "Q: why?\nA: because", "Q: why?\nA:"),
    ],
)
def test_trl_standard_implicit_cuts_the_common_prefix_at_a_word(chosen, rejected, prompt):
    row = trl_row({"chosen": chosen, "rejected": rejected}, "r")
    assert row.prompt == prompt
    assert (row.prompt + row.chosen, row.prompt + row.rejected) == (chosen, rejected)
    assert row.chosen[0].isspace()
    assert row.rejected[0].isspace()


def test_trl_standard_implicit_with_assistant_uses_the_dialogue_rule():
    start = "\n\nHuman: q\n\nAssistant:"
    row = trl_row({"chosen": start + " same words one", "rejected": start + " same words two"}, "r")
    assert (row.prompt, row.chosen, row.rejected) == (start, " same words one", " same words two")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": "alpha", "rejected": "beta"}, "share no first word"),
        ({"chosen": "alphabet", "rejected": "alpha"}, "share no first word"),
        ({"chosen": "a\n\nAssistant: x", "rejected": "a y"}, "rejected' has no"),
        ({"chosen": [turn(USER, "q")], "rejected": [turn(USER, "p")]}, "part before|empty list"),
        (
            {
                "chosen": [turn(USER, "q"), turn(ASSISTANT, "a")],
                "rejected": [turn(USER, "p"), turn(ASSISTANT, "b")],
            },
            "part before",
        ),
        (
            {"prompt": [turn(USER, "q")], "chosen": [turn(USER, "a")], "rejected": [turn(ASSISTANT, "b")]},
            "not one assistant turn",
        ),
        (
            {"prompt": "q", "chosen": [turn(ASSISTANT, "a")], "rejected": [turn(ASSISTANT, "b")]},
            "as turns too",
        ),
        ({"prompt": [turn(USER, "q")], "chosen": [turn(ASSISTANT, "a")], "rejected": "b"}, "one format"),
        ({"chosen": "a x", "rejected": "a y", "tools": [{}]}, "tools"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is null"),
    ],
)
def test_trl_rows_that_cannot_be_read_are_bad(record, reason):
    with pytest.raises(BadRow, match=reason):
        trl_row(record, "r")


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "q", "completion": " a"}, "q"),
        ({"prompt": [turn(USER, "q")], "completion": [turn(ASSISTANT, " a")]}, [turn(USER, "q")]),
        ({"prompt": [turn(USER, "q")], "completion": " a"}, [turn(USER, "q")]),
        ({"messages": [turn(USER, "q"), turn(ASSISTANT, " a")]}, [turn(USER, "q")]),
    ],
)
def test_unpaired_formats(record, prompt):
    row = unpaired_row(record | {"label": False, "weight": 2, "score": 0.5, "finished": False}, "r")
    assert (row.id, row.prompt, row.completion, row.label) == ("r", prompt, " a", False)
    assert (row.weight, row.score, row.finished) == (2.0, 0.5, False)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "q", "completion": "a"}, "key 'label' is missing"),
        ({"prompt": "q", "completion": "a", "label": 1}, "'label' is a number, not true or false; write true"),
        ({"prompt": "q", "completion": "", "label": True}, "'completion' is empty"),
        ({"prompt": "q", "label": True}, "key 'completion' is missing"),
        ({"prompt": "q", "completion": [turn(ASSISTANT, "a")], "label": True}, "write the prompt as turns too"),
        ({"messages": [turn(ASSISTANT, "a")], "label": True}, r"'messages\[:-1\]' is an empty list"),
        ({"messages": [turn(USER, "a"), turn(USER, "b")], "label": True}, "is not one assistant turn"),
        ({"prompt": "q", "completion": "a", "label": True, "tools": [{}]}, "tools"),
    ],
)
def test_unpaired_rows_that_cannot_be_read_are_bad(record, reason):
    with pytest.raises(BadRow, match=reason):
        unpaired_row(record, "r")


@pytest.mark.parametrize(
    "record",
    [
        {"responses": ["a", "b"], "scores": [1, -0.5]},
        {"responses": ["a", None, "b"], "scores": [1, None, -0.5]},
        {"responses": [{"text": "a", "score": 1}, {"content": "b", "score": -0.5}]},
        {"responses": [{"text": "a", "score": 1}, {"text": "c"}, {"text": "b", "score": -0.5}]},
        {"responses": [[turn(ASSISTANT, "a")], turn(ASSISTANT, "b")], "scores": [1, -0.5]},
    ],
)
def test_kwise_formats(record):
    row = kwise_row(record | {"prompt": [turn(USER, "q")], "weight": 3}, "r")
    assert (row.prompt, row.responses, row.scores) == ([turn(USER, "q")], ["a", "b"], [1.0, -0.5])
    assert (row.id, row.weight, row.finished) == ("r", 3.0, [True, True])
    assert row.unscored == len(record["responses"]) - 2


def test_kwise_finished_and_score_keys():
    record = {"prompt": "q", "responses": ["a", "b"], "scores": [0, 1], "finished": [False, True]}
    assert kwise_row(record, "r").finished == [False, True]
    record = {"prompt": "q", "responses": [{"text": "a", "p": 0, "finished": False}, {"text": "a", "p": 1}]}
    row = record_format("kwise", "p")(record, "r")
    assert (row.scores, row.finished, row.responses) == ([0.0, 1.0], [False, True], ["a", "a"])
    with pytest.raises(ConfigError, match=r"data.kind 'pairs' does not use 'score_key'"):
        record_format("pairs", "p")


TWO = {"prompt": "q", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (TWO, r"key 'scores' is missing \(it has: prompt, responses\); add 'scores'"),
        (TWO | {"scores": [1]}, "'scores' has 1 of the 2 entries it needs"),
        (TWO | {"scores": [1, 2, 3]}, "'scores' has 3 entries for 2 responses; give one for each"),
        (TWO | {"scores": [1, float("nan")]}, r"'scores\[1\]' is not a finite number"),
        (TWO | {"scores": [1, "2"]}, r"'scores\[1\]' is a string, not a number"),
        (TWO | {"scores": [1, True]}, r"'scores\[1\]' is a boolean"),
        (TWO | {"scores": 3}, "'scores' is a number, not a list"),
        (TWO | {"scores": [1, 1]}, "all scores are equal; remove the row, it ranks nothing"),
        (TWO | {"scores": [1, None]}, r"1 of 2 responses have a score \(looked for 'score' and 'scores'\); score at"),
        (TWO | {"scores": [1, 2], "finished": [True]}, "'finished' has 1 of the 2"),
        (TWO | {"scores": [1, 2], "finished": [True, 1]}, r"'finished\[1\]' is a number, not true or false"),
        ({"prompt": "q", "responses": ["a"], "scores": [1]}, "'responses' has 1 of the 2 entries it needs"),
        ({"prompt": "q", "responses": "ab", "scores": [1, 2]}, "'responses' is a string, not a list"),
        ({"prompt": "q", "responses": ["a", ""], "scores": [1, 2]}, r"'responses\[1\]' is empty"),
        ({"prompt": "q", "responses": ["a", [turn(ASSISTANT, "b")]], "scores": [1, 2]}, "prompt as turns too"),
        ({"prompt": "q", "responses": [{"text": "a"}, {"answer": "b"}], "scores": [1, 2]}, "neither 'text' nor"),
        (
            {"prompt": "q", "responses": [{"text": "a", "score": 1}, {"text": "b"}], "scores": [1, 2]},
            "'scores' is given and so is 'score' of a response; keep one",
        ),
        (
            {"prompt": "q", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": []}]},
            r"\[1\].score' is a list",
        ),
        (TWO | {"scores": [1, 2], "weight": -2}, "'weight' is -2"),
    ],
)
def test_kwise_rows_that_cannot_be_read_are_bad(record, reason):
    with pytest.raises(BadRow, match=reason):
        kwise_row(record, "r")
