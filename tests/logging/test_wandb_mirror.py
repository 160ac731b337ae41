"""What wandb holds of a sweep, read back with its own tools, is what the run folders hold: row by row, and so after
`wandb sync` and after a run was cut short."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import runs
from rlpref.jobs import Job
from rlpref.run import run, run_side_by_side
from stub_wandb import stub_wandb

pytestmark = pytest.mark.slow

WANDB = str(Path(sys.executable).parent / "wandb")
SETTINGS = [setting for setting in runs.TESTBED if not setting.startswith("logger")]
SHORT = [*SETTINGS, *runs.METHODS["dpo"], "training.checkpoint_every=3"]
METHODS = ("dpo", "ppo", "reward_model")
MEDIA = ("frontier", "samples", "reward_kl_table")


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory):
    """Nothing of the user's wandb is read, and nothing is written to his home."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith("WANDB_")]:
            patch.delenv(key)
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, own_home):
    """The folders of three runs of one process."""
    root = tmp_path_factory.mktemp("sweep")
    for method in METHODS:
        config, keys = runs.compose(*SETTINGS, *runs.METHODS[method])
        run(config, root / f"{method}-run", "the-sweep", keys)
    return [root / f"{method}-run" for method in METHODS]


@pytest.fixture(scope="module")
def held(sweep):
    return {folder: inspect(folder) for folder in sweep}


def the_log(folder):
    (log,) = folder.glob("wandb/*run-*/*.wandb")
    return log


def inspect(folder):
    """The records of the one wandb run in a run folder, by type."""
    words = [WANDB, "leet", "inspect", "--json", str(the_log(folder))]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    records = {}
    for line in said.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


def metrics(rows):
    """Rows of wandb without its own keys and the media beside them."""
    return [{k: v for k, v in row.items() if k[0] != "_" and k.split(".")[0] not in MEDIA} for row in rows]


def history(records):
    return metrics(record["item"] for record in records["history"])


def table(folder, key, item):
    """Rows of the Table that a history row names."""
    (file,) = folder.glob(f"wandb/*run-*/files/{item[f'{key}.path']}")
    found = json.loads(file.read_text())
    return [dict(zip(found["columns"], row)) for row in found["data"]]


def truth(folder):
    return runs.read_rows(folder / "metrics.jsonl")


def samples(folder):
    file = folder / "samples.jsonl"
    return runs.read_rows(file) if file.exists() else []


def test_every_row_of_metrics_jsonl_in_its_order(held):
    for folder, records in held.items():
        assert history(records) == truth(folder)
        assert [record["item"]["_step"] for record in records["history"]] == list(range(len(truth(folder))))


def test_the_table_of_samples_is_samples_jsonl(held):
    for folder, records in held.items():
        last = records["history"][-1]["item"]
        assert ("samples.path" in last) == bool(samples(folder))
        if samples(folder):
            assert table(folder, "samples", last) == samples(folder)
    assert sum(bool(samples(folder)) for folder in held) == 2


def test_the_path_is_a_chart_over_a_table(held):
    for folder, records in held.items():
        rows = [row for row in truth(folder) if "exact/kl" in row]
        charts = [key for record in records.get("config", []) for key in record["update"] if "visualize" in key]
        assert charts == ["_wandb.visualize.reward_kl"]
        lines = {}
        for row in table(folder, "reward_kl_table", records["history"][-1]["item"]):
            lines.setdefault(row["line"], []).append((row["step"], row["kl"], row["reward"]))
        assert lines["exact"] == [(row["step"], row["exact/kl"], row["exact/reward"]) for row in rows]
        sampled = [(row["step"], row["eval/kl"], row["eval/reward"]) for row in rows if "eval/kl" in row]
        assert lines.get("sampled", []) == sampled
        frontier = json.loads((folder / "frontier.json").read_text())
        assert lines["exact frontier"] == list(zip([None] * 999, frontier["kl"], frontier["reward"]))


def test_the_figure_is_an_image_beside_the_last_row(held):
    folder, records = next(iter(held.items()))
    logged = [record["item"] for record in records["history"] if "frontier.path" in record["item"]]
    assert logged == [records["history"][-1]["item"]]
    (file,) = folder.glob(f"wandb/offline-run-*/files/{logged[0]['frontier.path']}")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_summary_is_the_last_row_and_the_best(held):
    for folder, records in held.items():
        summary = {}
        for record in records["summary"]:
            summary |= record["update"]
        rows = truth(folder)
        for key in {key for row in rows for key in row}:
            values = [row[key] for row in rows if key in row]
            if isinstance(summary[key], dict):
                best = {"max": max, "min": min}
                others = {name: best[name](values) for name in summary[key].keys() - {"last"}}
                assert summary[key] == {"last": values[-1], **others}
                assert others
            else:
                assert summary[key] == values[-1]
    dpo = {key: value for record in held[next(iter(held))]["summary"] for key, value in record["update"].items()}
    assert {key for key in dpo if isinstance(dpo[key], dict) and key[0] != "_"} == {
        *("eval/reward", "exact/reward", "eval/win_rate", "eval/accuracy", "exact/regret")
    }


def test_rewards_stand_against_their_kl_and_all_else_against_the_step(held):
    for records in held.values():
        axes = {one.get("name", one.get("glob_name")): one["step_metric"] for one in records["metric"]}
        assert axes["*"] == "step"
        assert axes["eval/reward"] == axes["eval/proxy_reward"] == "eval/kl"
        assert axes["exact/reward"] == "exact/kl"
        assert axes["exact/regret"] == axes["eval/win_rate"] == "step"


def test_name_sweep_method_tags_and_configuration(held):
    for folder, records in held.items():
        (started,) = records["run"]
        method = folder.name.removesuffix("-run")
        assert started["display_name"] == folder.name
        assert (started["run_group"], started["job_type"], started["project"]) == ("the-sweep", method, "rlpref")
        assert started["tags"] == ["tabular", "testbed", "gold"]
        kept = started["config"]["update"]
        written = yaml.safe_load((folder / "config.yaml").read_text())
        assert {key: kept[key] for key in kept.keys() - {"_wandb", "card"}} == written
        card = json.loads((folder / "run.json").read_text())
        assert kept["card"].items() <= card.items()
        assert started["run_id"].startswith(card["config_hash"])
    assert len({records["run"][0]["run_id"] for records in held.values()}) == 3
    assert all([record["exit_code"] for record in records["exit"]] == [0] for records in held.values())


def test_nothing_about_the_machine_or_outside_the_folder(held, own_home):
    for folder, records in held.items():
        assert not {"environment", "stats", "output", "output_raw"} & records.keys()
        assert "host" not in records["run"][0]
        staged = [entry["local_path"] for one in records.get("artifact", []) for entry in one["manifest"]["contents"]]
        assert all(Path(path).is_relative_to(folder) and Path(path).exists() for path in staged)
    assert not list(own_home.rglob("*staging*"))


def sync(server, *folders):
    logs = [str(the_log(folder).parent) for folder in folders]
    environment = os.environ | server.environment()
    said = subprocess.run([WANDB, "sync", *logs], capture_output=True, text=True, env=environment, timeout=120)
    assert said.returncode == 0, said.stderr


def test_sync_sends_every_row_file_and_setting(sweep, held):
    with stub_wandb() as server:
        sync(server, *sweep)
    assert len(server.runs) == 3
    for folder, records in held.items():
        sent = server.runs[records["run"][0]["run_id"]]
        assert metrics(sent.rows("wandb-history.jsonl")) == truth(folder)
        assert sent.exit_code == 0
        assert (sent.said["groupName"], sent.said["displayName"]) == ("the-sweep", folder.name)
        files = next(folder.glob("wandb/offline-run-*/files"))
        media = {str(file.relative_to(files)): file.read_bytes() for file in (files / "media").rglob("*.*")}
        assert media.items() <= sent.files.items()
        config = {key: one["value"] for key, one in yaml.safe_load(sent.files["config.yaml"]).items()}
        written = yaml.safe_load((folder / "config.yaml").read_text())
        assert without_empty({key: config[key] for key in written}) == without_empty(written)


def without_empty(config):
    """wandb sends no empty mapping."""
    if not isinstance(config, dict):
        return config
    return {key: without_empty(value) for key, value in config.items() if value != {}}


def run_until(monkeypatch, folder, step, *settings):
    with runs.interrupted_at(monkeypatch, step):
        runs.run(folder, *SHORT, *settings)


def test_a_resumed_run_is_one_run_with_every_row_once(tmp_path, monkeypatch):
    for step in (2, 5, 8):  # before the first checkpoint and after two
        run_until(monkeypatch, tmp_path, step)
        cut_short = inspect(tmp_path)
        assert history(cut_short) == truth(tmp_path)
        assert [record["exit_code"] for record in cut_short["exit"]] == [1]
    runs.run(tmp_path, *SHORT)
    resumed = inspect(tmp_path)
    assert history(resumed) == truth(tmp_path)
    assert table(tmp_path, "samples", resumed["history"][-1]["item"]) == samples(tmp_path)
    assert resumed["run"][0]["run_id"] == cut_short["run"][0]["run_id"]
    assert [record["exit_code"] for record in resumed["exit"]] == [0]


CHILD = """
import os, signal, sys
from pathlib import Path
import pytest, runs
from test_wandb_mirror import SHORT
folder, step, signum, *settings = sys.argv[1:]
runs.interrupt_at(pytest.MonkeyPatch(), int(step), lambda: os.kill(os.getpid(), int(signum)))
runs.run(Path(folder), *SHORT, *settings)
"""


def in_a_process(folder, *settings, cut=(-1, 0), **environment):
    """A run in a process of its own, with a wandb of its own, that gets a signal before a step."""
    path = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    words = [sys.executable, "-c", CHILD, str(folder), *map(str, cut), *settings]
    kept = runs.clean_environment() | environment | {"PYTHONPATH": path}
    return subprocess.run(words, env=kept, capture_output=True, text=True)


def test_a_killed_run_goes_on_as_one_run_with_every_row_once(tmp_path):
    killed = in_a_process(tmp_path, cut=(5, int(signal.SIGKILL)))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = the_log(tmp_path).stem
    runs.run(tmp_path, *SHORT)
    assert the_log(tmp_path).stem == before
    assert history(inspect(tmp_path)) == truth(tmp_path)


def test_what_was_synced_half_way_goes_on_as_a_new_whole_run(tmp_path, monkeypatch):
    """`wandb sync` puts rows behind those that the server has: under the old id they would be there twice."""
    with stub_wandb() as server:
        run_until(monkeypatch, tmp_path, 5)
        half = truth(tmp_path)
        sync(server, tmp_path)
        runs.run(tmp_path, *SHORT)
        sync(server, tmp_path)
    first, second = (metrics(sent.rows("wandb-history.jsonl")) for sent in server.runs.values())
    assert first == half
    assert second == truth(tmp_path)


def without_times(rows):
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def test_an_online_run_that_goes_on_sends_no_row_twice(tmp_path):
    with stub_wandb() as server:
        online = ["logger.mode=online"]
        cut = in_a_process(tmp_path, *online, cut=(5, int(signal.SIGINT)), **server.environment())
        assert "KeyboardInterrupt" in cut.stderr
        (sent,) = server.runs.values()
        rows = len(sent.rows("wandb-history.jsonl"))
        assert rows == len(truth(tmp_path))
        done = in_a_process(tmp_path, *online, **server.environment())
        assert done.returncode == 0, done.stderr
    assert len(server.runs) == 1
    found = metrics(sent.rows("wandb-history.jsonl"))
    assert len(found) > rows
    assert without_times(found) == without_times(truth(tmp_path))


def test_another_configuration_in_the_folder_is_another_run(tmp_path, monkeypatch):
    run_until(monkeypatch, tmp_path, 2)  # no checkpoint yet: the folder may be taken
    before = the_log(tmp_path).stem
    runs.run(tmp_path, *SHORT, "optimizer.lr=0.01")
    assert the_log(tmp_path).stem != before
    assert history(inspect(tmp_path)) == truth(tmp_path)


def test_a_failed_run_is_a_failed_wandb_run(tmp_path):
    with pytest.raises(FloatingPointError):
        runs.run(tmp_path, *SETTINGS, *runs.METHODS["ppo"], "optimizer.lr=1e30")
    records = inspect(tmp_path)
    assert history(records) == truth(tmp_path)
    assert [record["exit_code"] for record in records["exit"]] == [1]


def test_runs_that_are_trained_side_by_side_are_runs_of_their_own(tmp_path):
    jobs = []
    for seed in (0, 1):
        config, keys = runs.compose(*SETTINGS, *runs.METHODS["dpo"], f"seed={seed}")
        jobs.append(Job(config, tmp_path / str(seed), "pair", keys))
    assert all(isinstance(summary, dict) for summary in run_side_by_side(jobs))
    for job in jobs:
        assert json.loads((job.folder / "run.json").read_text())["replicas"] == 2
        records = inspect(job.folder)
        assert history(records) == truth(job.folder)
        assert records["run"][0]["config"]["update"]["seed"] == job.config["seed"]
        assert table(job.folder, "samples", records["history"][-1]["item"]) == samples(job.folder)
