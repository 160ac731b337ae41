import pytest
import yaml

from rlpref.binding import ConfigError
from rlpref.rewards.rubric import BLANKS, Question, read_question, shipped_rubrics

GOOD = {"request": "{prompt} {first} {second}", "verdicts": {"first": "A", "second": "B", "tie": None}}


@pytest.mark.parametrize("mode", BLANKS)
@pytest.mark.parametrize("rubric", shipped_rubrics())
def test_every_rubric_that_comes_along_asks_in_both_ways(rubric, mode):
    question = read_question(rubric, mode)
    filled = question.fill(**{blank: f"<{blank}>" for blank in BLANKS[mode]})
    assert all(f"<{blank}>" in filled for blank in BLANKS[mode])
    assert "{" not in filled
    assert len(question.words) in (2, 3)


def test_the_two_that_the_documentation_names_are_there():
    assert shipped_rubrics() == ["harmlessness", "helpfulness"]


def test_braces_in_a_text_are_text():
    question = Question("p {prompt} 1 {first} 2 {second}", ("A", "B"))
    filled = question.fill(prompt="{second}", first="{first} {x}", second="s")
    assert filled == "p {second} 1 {first} {x} 2 s"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": "{prompt} {first}"}, r"must be a text that has \{second\} once"),
        ({"request": "{prompt} {first} {second} {first}"}, r"has \{first\} once"),
        ({"request": 3}, r"must be a text"),
        ({"verdicts": {"first": "A", "second": "B"}}, r"must have the keys first, second, tie"),
        ({"verdicts": {"first": True, "second": "B", "tie": None}}, r"verdict 'first' is True; write a word in quotes"),
        ({"verdicts": {"first": None, "second": "B", "tie": None}}, r"verdict 'first' is None"),
        ({"verdicts": {"first": "A", "second": "A", "tie": None}}, r"two verdicts have the same word"),
        ({"temperature": 1}, r"'request' and 'verdicts' under this key, and nothing else"),
    ],
)
def test_a_rubric_that_cannot_be_asked_is_refused_with_its_file(tmp_path, change, message):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"pairwise": GOOD | change}))
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{message}"):
        read_question(str(file), "pairwise")


def test_a_file_needs_only_the_mode_that_is_asked_for(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"pairwise": GOOD}))
    assert read_question(str(file), "pairwise").words == ("A", "B")
    with pytest.raises(ConfigError, match="'pointwise'"):
        read_question(str(file), "pointwise")


@pytest.mark.parametrize("content", ["just text", "a: [", ""])
def test_a_file_without_keys_is_refused(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        read_question(str(file), "pairwise")


def test_an_unknown_rubric_names_those_that_are_known():
    with pytest.raises(ConfigError, match=r"'kindness' is no file.*harmlessness, helpfulness"):
        read_question("kindness", "pairwise")
