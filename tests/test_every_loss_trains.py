"""Every registered loss that trains on data does so by its name alone, on the testbed, at its defaults."""

import pytest

import runs
from rlpref.losses import LOSSES
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps, RewardLists, RewardPairs

KWISE = ["data.kind=kwise", "data.k=3"]
DATA = {PairLogps: [], AnswerLogps: [], ListLogps: KWISE}
REWARDS = {RewardPairs: [], RewardLists: KWISE}
SCORED = {"sppo_single": ["data.kind=unpaired"]}  # reads the score of an answer, which pairs do not pass on
SETTINGS = [*runs.TINY, "data.pairs=64", "data.test_pairs=20", "algorithm.batch_size=16", "algorithm.epochs=1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in LOSSES.values() if entry.takes in DATA])
def test_it_trains(name, tmp_path):
    entry = LOSSES[name]
    summary = runs.run(tmp_path, *SETTINGS, f"algorithm={name}", *SCORED.get(name, DATA[entry.takes]))
    assert summary["step"] == (8 if entry.takes is AnswerLogps and name not in SCORED else 4)
    assert summary["exact/kl"] > 0
    rows = runs.metrics(tmp_path)
    assert rows[1]["loss"] != rows[-2]["loss"]
    assert ("exact/regret" in summary) == (entry.regularisation is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in LOSSES.values() if entry.takes in REWARDS])
def test_it_trains_a_reward_model(name, tmp_path):
    chosen = ["algorithm=reward_model", f"algorithm/loss={name}", "algorithm.epochs=10"]
    runs.run(tmp_path, *SETTINGS, *chosen, *REWARDS[LOSSES[name].takes])
    first, *_, last = [row for row in runs.metrics(tmp_path) if "loss" in row]
    assert last["rewards/accuracies"] > max(0.6, first["rewards/accuracies"])
    assert last["loss"] < first["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_losses_of_single_answers_train_on_unpaired_data(name, tmp_path):
    summary = runs.run(tmp_path, *SETTINGS, f"algorithm={name}", "data.kind=unpaired")
    assert summary["step"] == 4
    assert "eval/accuracy" not in summary


@pytest.mark.slow
def test_pairs_are_formed_from_lists_by_a_named_rule(tmp_path):
    summary = runs.run(tmp_path, *SETTINGS, "algorithm=dpo", *KWISE, "data.pairs_by=all")
    assert summary["step"] == 12  # 64 lists of 3 answers: 3 pairs each, at most


@pytest.mark.slow
@pytest.mark.parametrize(
    "modifier",
    ["length_normalize=true", "divergence=js", "margin=0.5", "score_margin=0.1", "soft_labels=true", "wpo=true"],
)
def test_a_modifier_trains(modifier, tmp_path):
    summary = runs.run(tmp_path, *SETTINGS, "algorithm=dpo", f"algorithm.modifiers.{modifier}")
    assert summary["exact/kl"] > 0
