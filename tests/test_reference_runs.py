"""Whole runs under each rule of the reference: what the loss is compared with, and what reference.jsonl says of it."""

import json

import pytest
import torch
from safetensors.torch import load_file

import runs
from rlpref.binding import ConfigError
from rlpref.models.bundle import Models
from rlpref.models.hashing import state_hash
from rlpref.trainer import Trainer

DPO = [*runs.TESTBED, *runs.METHODS["dpo"]]  # 9 steps
SYNC = ["reference=sync", "reference.every=4"]
EMA = ["reference=ema", "reference.every=1", "reference.rate=0.3"]
CONVERGED = ["algorithm=dpo", "algorithm.epochs=300", "algorithm.batch_size=1000", "training.micro_batch_size=1000"]
CONVERGED += ["data.pairs=1000", "testbed.vocab=3", "testbed.horizon=1", "optimizer.schedule=constant"]
CONVERGED += ["training.log_every=300", "evaluation.times=1"]


def logged(folder) -> list[tuple[int, int, str]]:
    return [tuple(row.values()) for row in runs.read_rows(folder / "reference.jsonl")]


def reference_hash(folder) -> str:
    return json.loads((folder / "run.json").read_text())["reference_hash"]


def test_one_row_at_the_start_where_the_reference_stays(tmp_path):
    runs.run(tmp_path, *DPO)
    assert logged(tmp_path) == [(0, 0, reference_hash(tmp_path))]
    assert json.loads((tmp_path / "run.json").read_text())["reference"] == {"kind": "initial", "cache": True}


def test_a_row_for_each_sync_with_the_hash_of_the_policy_then(tmp_path, monkeypatch):
    hashes, update = {}, Trainer._update

    def remember(self, batch):
        row = update(self, batch)
        hashes[self.at.step] = state_hash(self.models.policy.state_dict())
        return row

    monkeypatch.setattr(Trainer, "_update", remember)
    runs.run(tmp_path, *DPO, *SYNC)
    assert logged(tmp_path) == [(0, 0, reference_hash(tmp_path)), (4, 0, hashes[4]), (8, 0, hashes[8])]
    (last,) = tmp_path.glob("checkpoints/step-00000009/ref.safetensors")
    assert state_hash(load_file(last)) == hashes[8]


def test_a_row_for_each_round_where_the_reference_is_the_policy_before_it(tmp_path):
    runs.run(tmp_path, *runs.TESTBED, *runs.METHODS["iterative_dpo"], "reference=previous")
    rows = logged(tmp_path)
    assert [round for _, round, _ in rows] == [0, 1, 2]
    assert [step for step, _, _ in rows] == [0, 2, 4]
    assert len({name for _, _, name in rows}) == 3


def test_a_row_for_each_evaluation_where_the_reference_always_moves(tmp_path):
    runs.run(tmp_path, *DPO, *EMA)
    rows = logged(tmp_path)
    assert [step for step, _, _ in rows] == [row["step"] for row in runs.metrics(tmp_path) if "exact/kl" in row]
    assert len({name for _, _, name in rows}) == len(rows) == 3


def test_after_a_sync_the_loss_sees_the_log_probs_of_the_policy_then(tmp_path, monkeypatch):
    """No stale log-prob survives: those of step n + 1 are the policy's of step n on the same pairs."""
    seen, update, synced = [], Trainer._update, {}

    def compared(self, batch):
        if self.at.step > 4:
            return update(self, batch)
        row = update(self, batch)
        synced[self.at.step] = self.models.policy.model.rows.weight.detach().clone()
        return row

    def passes(self, sequences, reference=None):
        if reference is None:
            seen.append(self.ref.model.model.rows.weight.clone())
        return ref_logps(self, sequences, reference)

    ref_logps = Models.ref_logps
    monkeypatch.setattr(Trainer, "_update", compared)
    monkeypatch.setattr(Models, "ref_logps", passes)
    runs.run(tmp_path, *DPO, *SYNC)
    start, *used = seen  # of check_start, then of each step
    assert len(used) == 9
    assert all(torch.equal(one, start) for one in used[:4])
    assert all(torch.equal(one, synced[4]) for one in used[4:8])
    assert not torch.equal(start, synced[4])


def test_right_after_a_sync_the_margins_are_those_of_no_change(tmp_path):
    """At step 5 the policy is the reference again: every implicit reward is zero, as at step 1."""
    runs.run(tmp_path, *DPO, *SYNC)
    margins = {row["step"]: row["rewards/margins"] for row in runs.metrics(tmp_path) if "rewards/margins" in row}
    assert [step for step, margin in margins.items() if abs(margin) < 1e-6] == [1, 5, 9]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "moves"),
    [(["reference=sync", "reference.every=100"], 1.0), (["reference=ema", "reference.every=100"], 0.6)],
    ids=["sync", "ema"],
)
def test_dpo_with_a_reference_that_follows_ends_where_a_smaller_beta_does(settings, moves, tmp_path):
    """Each of three phases adds the fitted reward over beta to the log-probs of its reference, and the reference takes
    over the share `moves` of that before the next: the end is that of beta / (1 + 2 moves), further from the start."""
    beta = 0.6
    follows = runs.run(tmp_path / "follows", *runs.TESTBED, *CONVERGED, *settings, f"beta={beta}")
    smaller = runs.run(tmp_path / "smaller", *runs.TESTBED, *CONVERGED, f"beta={beta / (1 + 2 * moves)}")
    stays = runs.run(tmp_path / "stays", *runs.TESTBED, *CONVERGED, f"beta={beta}")
    for key in ("exact/kl", "exact/reward"):
        assert follows[key] == pytest.approx(smaller[key], rel=5e-3)
    assert follows["exact/kl"] > 1.2 * stays["exact/kl"] > 0.5


def test_a_reference_that_would_never_move_stops_the_run_before_its_first_step(tmp_path):
    with pytest.raises(ConfigError, match="is 9, but the run has 9 steps"):
        runs.run(tmp_path, *DPO, "reference=sync", "reference.every=9")
    assert not (tmp_path / "metrics.jsonl").exists()
    assert runs.status(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("method", ["ppo", "reinforce", "iterative_dpo"])
def test_methods_with_fresh_answers_take_a_reference_that_moves(method, tmp_path):
    runs.run(tmp_path, *runs.TESTBED, *runs.METHODS[method], *EMA)
    assert len(set(logged(tmp_path))) == len(logged(tmp_path)) > 1
    assert runs.status(tmp_path)["status"] == "done"


@pytest.mark.parametrize("kind", ["none", "initial"])
def test_a_loss_that_reads_no_reference_makes_no_pass_for_it(kind, tmp_path, monkeypatch):
    asked = []
    ref_logps = Models.ref_logps

    def passes(self, sequences, reference=None):
        asked.append(reference)
        return ref_logps(self, sequences, reference)

    monkeypatch.setattr(Models, "ref_logps", passes)
    runs.run(tmp_path, *runs.TESTBED, "algorithm=simpo", "algorithm.batch_size=16", f"reference={kind}")
    assert None not in asked  # the evaluator asks for that before training
    assert logged(tmp_path) == [(0, 0, None if kind == "none" else reference_hash(tmp_path))]


def test_ipo_reports_no_regret_to_an_optimum_of_another_reference(tmp_path):
    still = runs.run(tmp_path / "still", *runs.TESTBED, *runs.METHODS["ipo"])
    moves = runs.run(tmp_path / "moves", *runs.TESTBED, *runs.METHODS["ipo"], *SYNC)
    assert still.keys() - moves.keys() == {"exact/own_regret"}
