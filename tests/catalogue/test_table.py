"""The catalogue is made from the registry, and docs/losses.md is what it makes."""

from pathlib import Path

import pytest

from rlpref import loss_configs
from rlpref.catalogue import table
from rlpref.catalogue.cli import main
from rlpref.losses import LOSSES
from rlpref.losses.inputs import PairLogps

DOCS = Path(__file__).parents[2] / "docs"


def test_the_written_page_is_not_stale():
    written = (DOCS / "losses.md").read_text(encoding="utf-8")
    assert written == table.page(), "run `rlpref-losses --write docs`"


def test_every_family_has_its_picture():
    for name in {table.module(entry) for entry in LOSSES.values()}:
        assert (DOCS / "losses" / f"{name}.png").stat().st_size > 5000


def test_the_table_has_every_loss_once_with_its_facts(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    for entry in LOSSES.values():
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [entry.name]]
        assert entry.data in line
        assert ("KL-regularised" in line) == entry.kl_optimal
        assert ("as a whole" in line) == entry.coupled
    assert f"{len(LOSSES)} losses" in said


def test_there_are_as_many_as_promised():
    assert len(LOSSES) >= 50
    assert {entry.data for entry in LOSSES.values()} >= {"pairs", "unpaired", "kwise", "rollouts", "reward pairs"}


def test_one_loss_in_full(capsys):
    assert main(["ipo", "kto"]) == 0
    said = capsys.readouterr().out
    assert "(margin - 1/(2 tau))^2" in said
    assert "it may not be split" in said


def test_an_unknown_loss_is_refused_by_name(capsys):
    assert main(["dpoo"]) == 2
    assert "loss 'dpoo' is not known. Did you mean 'dpo'" in capsys.readouterr().err


def test_what_is_read_from_the_source_is_what_is_registered():
    """Configurations come from the text of the files, training from the registry."""
    found = {loss.name: loss for loss in loss_configs.signatures()}
    assert found.keys() == LOSSES.keys()
    for name, entry in LOSSES.items():
        assert found[name].takes == entry.takes.__name__
        defaults = {key: "${beta}" if p.default is p.empty else p.default for key, p in entry.hyperparameters.items()}
        assert found[name].hyperparameters == defaults


def test_every_pair_loss_stands_in_the_table_of_modifiers():
    lines = table.modifier_table().splitlines()
    for entry in LOSSES.values():
        assert (entry.takes is PairLogps) == any(line.startswith(f"| {entry.name} |") for line in lines)


@pytest.mark.parametrize(("loss", "modifier", "answer"), [("dpo", "margin", "yes"), ("simpo", "divergence", "no")])
def test_the_table_of_modifiers_gives_reasons(loss, modifier, answer):
    header, _, *lines = table.modifier_table().splitlines()
    place = header.split(" | ").index(modifier)
    (line,) = [line for line in lines if line.startswith(f"| {loss} |")]
    assert line.split(" | ")[place].startswith(answer)
