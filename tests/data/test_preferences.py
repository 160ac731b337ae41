import json

import pytest

from rlpref.binding import ConfigError
from rlpref.data.preferences import make_data


@pytest.fixture
def path(tmp_path):
    records = [
        {"prompt": f"the film {word} {other}", "chosen": "great", "rejected": answer}
        for word in "abcd"
        for other in "abcd"
        for answer in ("bad", "a b c d a")
    ]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, [*records, {}])))
    return str(file)


def test_data_have_unique_prompts_and_a_card(context, path):
    data = make_data({"path": path, "bad_rows": "skip"}, context, "jsonl")
    card = data.card
    assert (card["n_train"], card["n_test"]) == (len(data.train), len(data.test))
    assert card["n_train"] + card["n_test"] == 32
    assert (len(data.prompts), len(data.test_prompts)) == (card["n_train"] // 2, card["n_test"] // 2)
    assert card["skipped"] == 1
    assert card["train"]["completions_truncated"] + card["test"]["completions_truncated"] == 16
    assert card["source"] == "jsonl"
    assert json.loads(json.dumps(card)) == card
    first = data.train.chosen.ids[0][data.train.chosen.attention_mask[0]].tolist()
    prompt = data.prompts.ids[0][data.prompts.attention_mask[0]].tolist()
    assert first[: len(prompt)] == prompt
    assert len(data.rows.train) == len(data.train)


def test_the_same_settings_give_the_same_data(context, path):
    settings = {"path": path, "bad_rows": "skip"}
    one, two = (make_data(settings, context, "jsonl") for _ in range(2))
    assert one.card == two.card
    assert one.train.chosen.ids.equal(two.train.chosen.ids)


def test_unknown_sources_and_settings_are_named(context, path):
    with pytest.raises(ConfigError, match=r"'jsnl' is not known. Did you mean 'jsonl'"):
        make_data({}, context, "jsnl")
    with pytest.raises(ConfigError, match=r"does not use 'bad_row'. Did you mean 'bad_rows'"):
        make_data({"path": path, "bad_row": "skip"}, context, "jsonl")
    with pytest.raises(ConfigError, match="needs a value for: bad_rows"):
        make_data({"path": path}, context, "jsonl")
