"""TensorBoard's event file, read back with its own reader, holds what metrics.jsonl holds, once each: of a run that was
cut short and resumed, too."""

import json

import pytest

import runs

pytestmark = pytest.mark.slow
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    """{key: [(step, value)]} of the one event file in a run folder."""
    assert len(list((folder / "tensorboard").iterdir())) == 1
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    tensors = {key: events.Tensors(key) for key in events.Tags()["tensors"]}
    found = {
        key: [(one.step, float(one.tensor_proto.double_val[0])) for one in values]
        for key, values in tensors.items()
        if values[0].tensor_proto.double_val
    }
    texts = {key: values for key, values in tensors.items() if key not in found}
    return found, texts, events


def logged(folder):
    found = {}
    for row in runs.read_rows(folder / "metrics.jsonl"):
        for key, value in row.items():
            found.setdefault(key, []).append((row["step"], float(value)))
    return found


SETTINGS = [setting for setting in runs.TESTBED if not setting.startswith("logger")]
SETTINGS += ["logger=tensorboard", "training.checkpoint_every=3", *runs.METHODS["dpo"]]


def test_tensorboard_holds_every_number(tmp_path, monkeypatch):
    with runs.interrupted_at(monkeypatch, 5):
        runs.run(tmp_path, *SETTINGS)
    runs.run(tmp_path, *SETTINGS)
    found, texts, events = scalars(tmp_path)
    assert found == logged(tmp_path)
    assert events.Tags()["images"] == ["frontier"]
    said = "".join(
        line[4:]
        for one in texts["samples/text_summary"]
        for line in one.tensor_proto.string_val[0].decode().splitlines()
    )
    every = [row for part in said.replace("][", "]\n[").split("\n") for row in json.loads(part)]
    assert every == runs.read_rows(tmp_path / "samples.jsonl")
    assert b'"name": "dpo"' in texts["config/text_summary"][0].tensor_proto.string_val[0]
