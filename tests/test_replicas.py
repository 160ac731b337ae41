"""Runs that are trained side by side are the runs that they would have been alone."""

import json

import pytest
import torch
from safetensors.torch import load_file

import runs
from rlpref.run import Job, run_side_by_side, side_by_side
from rlpref.trainer import Trainer

SMALL = [*runs.TESTBED, "training.log_every=2"]
CASES = {
    **{name: [settings] for name, settings in runs.METHODS.items()},
    "iterative_previous_aggregated": [
        [*runs.METHODS["iterative_dpo"], "algorithm.reference=previous", "algorithm.data=aggregated"]
    ],
}
CASES = {name: cases[0] for name, cases in CASES.items()}
READS_BETA = {"dpo", "ipo", "iterative_dpo", "ppo", "iterative_previous_aggregated"}


def variants(case: str) -> list[list[str]]:
    """Three runs that differ in seed, learning rate, data, and beta where there is one."""
    settings = [["seed=0"], ["seed=1", "optimizer.lr=0.03", "data.seed=7"], ["seed=1"]]
    if case in READS_BETA:
        settings[2] += ["beta=0.2"]
    return [[*SMALL, *CASES[case], *more] for more in settings]


def jobs(folder, overrides: list[list[str]]) -> list[Job]:
    made = []
    for i, one in enumerate(overrides):
        config, keys = runs.compose(*one)
        made.append(Job(config, folder / str(i), "group", keys))
    return made


def assert_same_run(found, expected):
    rows, wanted = runs.metrics(found), runs.metrics(expected)
    assert [row.keys() for row in rows] == [row.keys() for row in wanted]
    for row, other in zip(rows, wanted):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    last = [max((folder / "checkpoints").glob("step-*")) for folder in (found, expected)]
    assert [file.name for file in sorted(last[0].iterdir())] == [file.name for file in sorted(last[1].iterdir())]
    for file in last[0].glob("*.safetensors"):
        torch.testing.assert_close(load_file(file), load_file(last[1] / file.name), rtol=1e-5, atol=1e-6)
    assert (found / "samples.jsonl").read_text() == (expected / "samples.jsonl").read_text()


@pytest.mark.parametrize("case", CASES)
def test_each_replica_is_the_run_that_it_would_have_been_alone(case, tmp_path):
    overrides = variants(case)
    together = jobs(tmp_path / "together", overrides)
    assert side_by_side(together) == [together]
    results = run_side_by_side(together)
    for i, one in enumerate(overrides):
        summary = runs.run(tmp_path / "alone" / str(i), *one)
        assert_same_run(tmp_path / "together" / str(i), tmp_path / "alone" / str(i))
        assert results[i].keys() == summary.keys()
        card = json.loads((tmp_path / "together" / str(i) / "run.json").read_text())
        assert card["replicas"] == 3
        assert runs.status(tmp_path / "together" / str(i))["status"] == "done"
    weights = [load_file(next((job.folder / "checkpoints").glob("step-*/*.safetensors"))) for job in together]
    assert all(not torch.equal(*(one[name] for one in weights[:2])) for name in weights[0] if "rows" in name)


def test_only_runs_that_differ_in_seed_beta_and_learning_rate_share_a_group(tmp_path, monkeypatch):
    variants = [
        ["algorithm=dpo", "seed=0"],
        ["algorithm=ppo", "seed=0"],
        ["algorithm=dpo", "seed=1", "beta=0.1"],
        ["algorithm=dpo", "seed=0", "data.pairs=30"],
        ["algorithm=dpo", "seed=2", "model.lr=0.1"],
        ["model=tiny", "seed=0"],
        ["model=tiny", "seed=1"],
        ["algorithm=dpo", "seed=3"],
    ]

    def groups():
        return [[int(job.folder.name) for job in group] for group in side_by_side(jobs(tmp_path, variants))]

    assert groups() == [[0, 2, 4, 7], [1], [3], [5], [6]]
    monkeypatch.setattr("rlpref.run.MOST", 3)
    assert groups() == [[0, 2, 4], [7], [1], [3], [5], [6]]


def test_where_one_run_fails_the_others_are_finished_one_by_one(tmp_path, capsys):
    overrides = [[*SMALL, *CASES["ppo"], f"optimizer.lr={lr}"] for lr in ("0.1", "1e30")]
    first, second = run_side_by_side(jobs(tmp_path / "together", overrides))
    assert isinstance(second, FloatingPointError)
    assert "one by one: FloatingPointError" in capsys.readouterr().err
    assert runs.status(tmp_path / "together" / "1")["status"] == "failed"
    runs.run(tmp_path / "alone", *overrides[0])
    assert_same_run(tmp_path / "together" / "0", tmp_path / "alone")
    assert first["cost/steps"] > 0


def test_a_refused_job_does_not_stop_the_others(tmp_path):
    good = [*SMALL, *CASES["dpo"]]
    refused, done, also = run_side_by_side(jobs(tmp_path, [[*good, "+algorithm.k=2"], good, [*good, "seed=1"]]))
    assert "does not use 'k'" in str(refused)
    assert {done["cost/steps"], also["cost/steps"]} == {9}


def test_pairs_that_ties_leave_uneven_are_trained_one_by_one(tmp_path, capsys):
    tied = [*SMALL, *CASES["iterative_dpo"], "algorithm.pairing=best_worst", "algorithm.k=2"]
    results = run_side_by_side(jobs(tmp_path, [[*tied, f"seed={seed}"] for seed in range(3)]))
    assert "one by one: Unstackable: pairing dropped ties" in capsys.readouterr().err
    assert all(isinstance(result, dict) for result in results)


@pytest.mark.parametrize("side", ["together", "alone"])
@pytest.mark.parametrize("case", ["dpo", "ppo", "iterative_previous_aggregated"])
def test_interrupted_replicas_go_on_together_or_alone(case, side, tmp_path, monkeypatch):
    overrides = [[*one, "training.checkpoint_every=3"] for one in variants(case)]
    update = Trainer._update

    def cut(self, batch):
        if self.at.step == 5:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(Trainer, "_update", cut)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(jobs(tmp_path / "cut", overrides))
    assert runs.status(tmp_path / "cut" / "2")["status"] == "interrupted"
    monkeypatch.setattr(Trainer, "_update", update)
    again = jobs(tmp_path / "cut", overrides)
    steps = []
    monkeypatch.setattr(Trainer, "_update", lambda self, batch: steps.append(self.at.step) or update(self, batch))
    for group in [again] if side == "together" else [[job] for job in again]:
        run_side_by_side(group)
    assert min(steps) == 4
    run_side_by_side(jobs(tmp_path / "whole", overrides))
    for i in range(3):
        assert_same_run(tmp_path / "cut" / str(i), tmp_path / "whole" / str(i))
