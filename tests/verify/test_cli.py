"""The command `rlpref-verify`: its table, its exit codes, what it says when it cannot run."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest

from rlpref.verify import cli


@pytest.fixture
def few(monkeypatch):
    """Two rows in the place of all: the command's part is the same."""
    pytest.importorskip("trl")
    from rlpref.verify import oracles

    rows = oracles.oracles()
    two = [next(each for each in rows if each.name == name) for name in ("dpo", "exo")]
    monkeypatch.setattr(oracles, "oracles", lambda: two)
    return two


def test_table_and_exit_code(few, capsys):
    assert cli.main(["--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "dpo(beta=0.1)" in out
    assert "2 rows against TRL 1.16" in out
    assert "float64, 2 random batches each: 0 beyond 1e-12" in out
    assert "lifted casts" in out
    assert "no counterpart in TRL: " in out
    assert "DIFFERS" not in out


def test_single_precision(few, capsys):
    assert cli.main(["--seeds", "1", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert "float32, 1 random batches each: 0 beyond 1e-05" in out
    assert "lifted casts" not in out


def test_a_difference_is_marked_and_fails(few, capsys):
    few[0] = replace(few[0], factor=1 + 1e-9)
    assert cli.main(["--seeds", "1"]) == 1
    out = capsys.readouterr().out
    assert [line.split("(")[0] for line in out.splitlines() if "DIFFERS" in line] == ["1 x dpo"]
    assert "1 beyond" in out


def test_without_trl(monkeypatch, capsys):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cli, "version", absent)
    assert cli.main([]) == 2
    assert "pip install 'rlpref[verify]'" in capsys.readouterr().err


def test_another_version(monkeypatch, capsys):
    monkeypatch.setattr(cli, "version", lambda name: "1.17.0")
    assert cli.main([]) == 2
    assert "is written for TRL 1.16, but 1.17.0 is installed" in capsys.readouterr().err


def test_seeds_must_be_some(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
