import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpref.data.checks import BadRow
from rlpref.data.formats import dialogue_text, dialogue_turns, hh_row, trl_row

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
