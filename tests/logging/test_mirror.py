"""wandb's own file, read back with wandb's own tool, holds what metrics.jsonl holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import runs
from rlpref.logging.mirror import NoMirror, make_mirror
from rlpref.run import run

pytestmark = pytest.mark.slow

WANDB = str(Path(sys.executable).parent / "wandb")


def inspect(folder):
    """The records of the one offline run in a run folder, by type."""
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    said = subprocess.run([WANDB, "leet", "inspect", "--json", str(log)], capture_output=True, text=True, check=True)
    records = {}
    for line in said.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs in one process, one after the other: folder -> records."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith("WANDB_")]:
            patch.delenv(key)
        patch.setenv("HOME", str(root / "home"))
        for method in ("dpo", "ppo"):
            settings = [s for s in runs.TESTBED if not s.startswith("logger")]
            config, keys = runs.compose(*settings, *runs.METHODS[method], "training.max_steps=4")
            run(config, root / f"{method}-run", "the-sweep", keys)
    return {root / f"{method}-run": inspect(root / f"{method}-run") for method in ("dpo", "ppo")}


def history(records):
    """The logged rows without wandb's own keys and media."""
    rows = [{key: value for key, value in item["item"].items() if key[0] != "_"} for item in records["history"]]
    return [row for row in rows if "step" in row]


def test_wandb_holds_the_rows_of_metrics_jsonl(two):
    for folder, records in two.items():
        assert history(records) == runs.read_rows(folder / "metrics.jsonl")


def test_wandb_knows_the_run_by_name_method_and_sweep(two):
    for folder, records in two.items():
        started = records["run"][0]
        assert started["display_name"] == folder.name
        assert started["run_group"] == "the-sweep"
        assert started["job_type"] == folder.name.split("-")[0]
        assert started["project"] == "rlpref"


def test_wandb_holds_the_configuration(two):
    for folder, records in two.items():
        held = records["run"][0]["config"]["update"]
        written = yaml.safe_load((folder / "config.yaml").read_text())
        assert {key: held[key] for key in written} == written


def test_two_runs_of_a_process_are_two_wandb_runs(two):
    assert len({records["run"][0]["run_id"] for records in two.values()}) == 2
    assert all(records["exit"][0]["exit_code"] == 0 for records in two.values())


def test_reward_is_charted_against_kl(two):
    for records in two.values():
        axes = {metric["name"]: metric.get("step_metric") for metric in records["metric"]}
        assert axes["eval/reward"] == "eval/kl"
        assert axes["exact/reward"] == "exact/kl"


def test_the_final_figure_is_an_image_of_the_run(two):
    for folder, records in two.items():
        (logged,) = [row["item"] for row in records["history"] if "frontier.path" in row["item"]]
        assert logged["frontier._type"] == "image-file"
        (file,) = folder.glob(f"wandb/offline-run-*/files/{logged['frontier.path']}")
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_failed_run_is_a_failed_wandb_run(tmp_path):
    settings = [s for s in runs.TESTBED if not s.startswith("logger")]
    with pytest.raises(FloatingPointError):
        runs.run(tmp_path / "run", *settings, *runs.METHODS["ppo"], "optimizer.lr=1e30")
    assert inspect(tmp_path / "run")["exit"][0]["exit_code"] == 1


def test_disabled_writes_nothing(tmp_path):
    runs.run(tmp_path / "run", *runs.TESTBED, *runs.METHODS["dpo"], "training.max_steps=1")
    assert not (tmp_path / "run" / "wandb").exists()
    assert isinstance(make_mirror("disabled", "rlpref", tmp_path), NoMirror)


def identity(folder):
    return {"folder": folder, "group": "g", "job_type": "dpo", "name": "n", "config": {}}


def test_a_wandb_that_cannot_start_does_not_stop_the_run(tmp_path, monkeypatch):
    import wandb

    modes = []

    def broken(mode, **_):
        modes.append(mode)
        raise RuntimeError("no wandb today")

    monkeypatch.setattr(wandb, "init", broken)
    with pytest.warns(UserWarning, match=r"metrics.jsonl has everything"):
        assert isinstance(make_mirror("offline", "rlpref", **identity(tmp_path)), NoMirror)
    with pytest.warns(UserWarning, match="could not go online"):
        assert isinstance(make_mirror("online", "rlpref", **identity(tmp_path)), NoMirror)
    assert modes == ["offline", "online", "offline"]


def test_a_wandb_that_dies_on_the_way_does_not_stop_the_run(tmp_path, monkeypatch):
    import wandb

    class Dying:
        calls = 0

        def define_metric(self, *_, **__):
            pass

        def log(self, row):
            self.calls += 1
            if self.calls == 2:
                raise BrokenPipeError("wandb-core is gone")

    run = Dying()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    mirror = make_mirror("offline", "rlpref", **identity(tmp_path))
    mirror.log({"loss": 1.0})
    with pytest.warns(UserWarning, match="wandb-core is gone.*metrics.jsonl has everything"):
        mirror.log({"loss": 0.9})
    mirror.log({"loss": 0.8})
    mirror.finish(failed=False)
    assert run.calls == 2
