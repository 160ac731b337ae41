import json

from rlpref.logging.card import write_card


def test_the_card_can_be_read_by_people_and_by_programs(tmp_path):
    algorithm = {"name": "ppo", "kl": "reward", "dual_clip": None, "loss": {"name": "a|b"}}
    card = {"seed": 3, "algorithm": algorithm, "staleness": 3, "model": {"name": "tabular"}}
    write_card(tmp_path, card)
    assert json.loads((tmp_path / "run.json").read_text()) == card
    text = (tmp_path / "card.md").read_text()
    first, rest = text.split("## The run")
    assert first.startswith("# ppo\n")
    for row in ("| kl | reward |", "| dual_clip | - |", "| loss.name | a\\|b |", "| staleness | 0 to 3 updates"):
        assert row in first
    assert "| seed | 3 |" in rest
    assert "| model.name | tabular |" in rest
    assert "staleness" not in rest


def test_what_samples_nothing_has_no_staleness(tmp_path):
    write_card(tmp_path, {"algorithm": {"name": "dpo"}, "staleness": None})
    assert "staleness" not in (tmp_path / "card.md").read_text()
