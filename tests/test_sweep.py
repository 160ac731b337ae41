"""`rlpref.train.sweep`: what `rlpref -m` does, for notebooks and scripts."""

import sys

import pytest

import runs
from rlpref.binding import ConfigError
from rlpref.train import main, sweep

SMALL = [*runs.TESTBED, "training.max_steps=3", "algorithm.batch_size=16"]


def folders(root) -> list[str]:
    return sorted(path.name for path in root.iterdir() if (path / "status.json").exists())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "with space=1"
    return sweep(root, "algorithm=dpo,ipo", "beta=0.1,0.5", "replicas=2", *SMALL), root


def test_it_gives_the_frames_of_all_runs(done):
    found, root = done
    assert (found.runs["status"] == "done").all()
    settings = found.runs[["method", "beta", "seed"]]
    assert sorted(settings.itertuples(index=False, name=None)) == [
        (method, beta, seed) for method in ("dpo", "ipo") for beta in (0.1, 0.5) for seed in (0, 1)
    ]
    assert found.missing.empty
    assert len(folders(root)) == 8


@pytest.mark.slow
def test_the_command_makes_the_same_runs(done, tmp_path, monkeypatch):
    root = tmp_path / "command"
    arguments = ["algorithm=dpo,ipo", "beta=0.1,0.5", "replicas=2", *SMALL, f"hydra.sweep.dir={root}"]
    monkeypatch.setattr(sys, "argv", ["rlpref", "-m", *arguments])
    monkeypatch.setattr("rlpref.report.build", lambda folders: None)  # of the runs alone
    main()
    assert folders(root) == folders(done[1])
    for name in folders(root):
        assert runs.metrics(root / name) == runs.metrics(done[1] / name)
    assert (root / "sweep.json").read_text() == (done[1] / "sweep.json").read_text()


def test_what_is_done_is_not_done_again(done):
    found, root = done
    before = {name: (root / name / "metrics.jsonl").stat().st_mtime_ns for name in folders(root)}
    again = sweep(root, "algorithm=dpo,ipo", "beta=0.1,0.5", "replicas=2", *SMALL)
    assert {name: (root / name / "metrics.jsonl").stat().st_mtime_ns for name in folders(root)} == before
    assert again.runs.equals(found.runs)


def test_the_others_of_a_failed_run_are_done(tmp_path):
    with pytest.raises(ExceptionGroup, match="1 of 2 runs failed") as raised:
        sweep(tmp_path, "algorithm=dpo,simpo", "reference=none", *SMALL)
    (error,) = raised.value.exceptions
    assert isinstance(error, ConfigError)
    assert "dpo-beta0.5-seed0" in error.__notes__[0]
    statuses = {name.split("-")[0]: runs.status(tmp_path / name)["status"] for name in folders(tmp_path)}
    assert statuses == {"dpo": "failed", "simpo": "done"}


def test_an_experiment_with_a_grid_of_its_own_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="grid of its own"):
        sweep(tmp_path, "experiment=demo")
    assert not list(tmp_path.iterdir())


def test_the_folder_is_not_named_twice(tmp_path):
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir"):
        sweep(tmp_path / "a", f"hydra.sweep.dir={tmp_path / 'b'}", *SMALL)
    assert not list(tmp_path.iterdir())
