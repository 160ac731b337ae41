"""Every exhibit in its short version: its figure, its claims, its files; and the form that all of them share."""

import json
import re
from pathlib import Path

import pytest

import runs
from rlpref.binding import ConfigError
from rlpref.report import Interval

exhibit = runs.experiment("exhibit")
museum = runs.experiment("figures")
NAMES = exhibit.names()
EXPERIMENTS = runs.ROOT / "experiments"
PROVENANCE = re.compile(r"paper|closed form|ours, frozen on \d{4}-\d\d-\d\d over |a finding: no threshold")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_short_version_has_its_figure_and_a_verdict_for_each_claim(name, tmp_path):
    script = runs.experiment(name)
    folder = exhibit.show(name, script.make, script.Grid, tmp_path, short=True)
    claims = json.loads((folder / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == list(exhibit.read(name).claims)
    assert all(claim["value"] is not None for claim in claims), claims
    closed = [claim for claim in claims if claim["provenance"].startswith("closed form")]
    assert not [claim for claim in closed if claim["verdict"] != "holds"]
    assert (folder / f"{name}.png").stat().st_size > 5_000
    assert (folder / f"{name}.pdf").stat().st_size > 5_000
    assert exhibit.is_done(name, tmp_path, short=True)
    assert not exhibit.is_done(name, tmp_path, short=False)
    assert exhibit.read(name).title in museum.page([name], tmp_path, "figures")


@pytest.mark.parametrize("name", NAMES)
def test_every_exhibit_has_a_script_a_row_and_where_its_thresholds_are_from(name):
    found = exhibit.read(name)
    assert (EXPERIMENTS / f"{name}.py").exists()
    assert f"`{name}`" in (EXPERIMENTS / "README.md").read_text()
    assert found.short.keys() <= found.grid.keys()
    for claim in found.thresholds().values():
        assert PROVENANCE.match(claim.provenance), claim.provenance
        no_threshold = claim.at_most is None and claim.at_least is None
        assert no_threshold == claim.provenance.startswith("a finding"), claim


@pytest.mark.parametrize("name", NAMES)
def test_the_scripts_stay_small(name):
    assert len((EXPERIMENTS / f"{name}.py").read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    ("limits", "found", "verdict"),
    [
        ({"at_most": 0.1}, (0.05, None, None), "holds"),
        ({"at_most": 0.1}, (0.2, None, None), "fails"),
        ({"at_most": 0.1}, (float("nan"), None, None), "fails"),
        ({"at_least": 0.3, "at_most": 0.9}, (0.2, None, None), "fails"),
        ({"at_least": 0.3, "beyond": 0}, (0.5, 0.1, 0.9), "holds"),
        ({"at_least": 0.3, "beyond": 0}, (0.5, -0.1, 1.1), "open"),
        ({"at_least": 0.3, "beyond": 0}, (0.5, None, None), "open"),
        ({"at_most": -0.3, "beyond": 0}, (-0.5, -0.9, -0.1), "holds"),
        ({}, (0.5, 0.1, 0.9), "reported"),
    ],
)
def test_the_verdict_follows_value_and_interval(limits, found, verdict):
    numbers = [float("nan") if number is None else number for number in found]
    assert exhibit.Threshold("a claim", "a paper", "paper", **limits).verdict(Interval(*numbers)) == verdict


@pytest.mark.slow
def test_another_threshold_judges_the_kept_values_anew(tmp_path, monkeypatch):
    name = "f11_best_of_n_kl"
    script = runs.experiment(name)
    folder = exhibit.show(name, script.make, script.Grid, tmp_path, short=True)
    stricter = exhibit.read(name)
    stricter.claims["loose"]["at_least"] = 0.99
    monkeypatch.setattr(exhibit, "read", lambda name: stricter)
    assert exhibit.is_done(name, tmp_path, short=True)
    assert [row["verdict"] for row in exhibit.judge(name, tmp_path)] == ["holds", "holds", "fails"]
    assert json.loads((folder / "claims.json").read_text())[2]["verdict"] == "fails"
    stricter.claims["new"] = stricter.claims["loose"]
    assert not exhibit.is_done(name, tmp_path, short=True)
    assert exhibit.judge(name, tmp_path / "nowhere") == []


def test_an_unknown_setting_of_the_grid_is_refused_by_name(tmp_path):
    script = runs.experiment("f11_best_of_n_kl")
    with pytest.raises(ConfigError, match="anwsers"):
        exhibit.show("f11_best_of_n_kl", script.make, script.Grid, tmp_path, True, ["grid.anwsers=3"])
    assert not (tmp_path / "f11_best_of_n_kl").exists()


def test_a_claim_without_a_value_is_refused_by_name(tmp_path):
    script = runs.experiment("f11_best_of_n_kl")

    def lossy(grid, folder):
        made = script.make(grid, folder)
        return exhibit.Findings(made.figure, {"bound": made.values["bound"]})

    with pytest.raises(ConfigError, match="loose"):
        exhibit.show("f11_best_of_n_kl", lossy, script.Grid, tmp_path, short=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [("exhibit: {a: b: c}", "is no YAML"), ("other: 1", "no section 'exhibit'"), ("exhibit: {titel: x}", "titel")],
)
def test_a_broken_file_is_refused_by_name(text, said, tmp_path, monkeypatch):
    monkeypatch.setattr(exhibit, "CONF", tmp_path)
    monkeypatch.setattr(exhibit, "ROOT", tmp_path)
    (tmp_path / "f00_broken.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"f00_broken.yaml.*{said}"):
        exhibit.read("f00_broken")


@pytest.mark.parametrize("name", NAMES)
def test_an_exhibit_is_no_run(name):
    from rlpref.check import check

    assert (runs.CONF / "experiment" / f"{name}.yaml").read_text().startswith("# @package _global_\n")
    if name == NAMES[0]:
        config, _ = runs.compose(f"experiment={name}")
        with pytest.raises(ConfigError, match="'exhibit' is a figure"):
            check(config)


def test_a_method_without_a_look_of_its_own_is_refused():
    with pytest.raises(ConfigError, match="gdpo"):
        exhibit.look("gdpo")
    assert exhibit.look("dpo") == {"color": "#0072B2", "marker": "o"}


@pytest.mark.slow
def test_the_museum_draws_what_is_not_done_and_names_what_failed(tmp_path, capsys, monkeypatch):
    museum.main(["f11_best_of_n_kl", "--short", "--out", str(tmp_path)])
    assert "1 drawn, 0 done before" in capsys.readouterr().out
    museum.main(["f11_best_of_n_kl", "--short", "--out", str(tmp_path)])
    assert "0 drawn, 1 done before" in capsys.readouterr().out
    museum.main(["f11_best_of_n_kl", "--out", str(tmp_path), "--gallery", str(tmp_path / "docs")])
    text = (tmp_path / "docs" / "figures.md").read_text()
    assert "1 exhibits, 3 claims: 3 holds" in text
    assert (tmp_path / "docs" / "figures" / "f11_best_of_n_kl.png").exists()
    monkeypatch.setattr(museum, "drawn", lambda name, out, short: "it broke")
    (tmp_path / "f11_best_of_n_kl" / "exhibit.json").unlink()
    with pytest.raises(SystemExit, match="f11_best_of_n_kl: it broke"):
        museum.main(["f11_best_of_n_kl", "--short", "--out", str(tmp_path)])


def test_an_unknown_exhibit_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match="no such exhibit: f99"):
        museum.main(["f99", "--out", str(tmp_path)])
    assert not Path(tmp_path / "verdicts.md").exists()
