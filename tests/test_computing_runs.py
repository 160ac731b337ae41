"""Whole runs on a language model: however it is computed and cut, the method is the same."""

import json

import pytest
import torch

import runs
from rlpref.binding import ConfigError
from rlpref.checkpoint import latest
from rlpref.models import computing
from rlpref.models.computing import Computing

pytestmark = pytest.mark.slow

METHODS = {
    "dpo": ["algorithm=dpo", "algorithm.epochs=2"],
    "sft": ["algorithm=sft"],
    "reward_model": ["algorithm=reward_model"],
    "ppo": ["algorithm=ppo", "algorithm.rounds=2", "algorithm.prompts_per_round=4", "algorithm.k=4"],
    "tdpo2": ["algorithm=tdpo2", "algorithm.modifiers.wpo=true"],
    "kto": ["algorithm=kto", "training.micro_batch_tokens=null"],
}
SWITCHES = {
    "packed": ["training.micro_batch_tokens=60"],
    "layers made again": ["model.checkpoint_layers=true"],
    "bfloat16": ["model.compute_dtype=bfloat16"],
}


@pytest.fixture
def model(tmp_path):
    runs.save_llama(tmp_path / "model")
    runs.write_jsonl(tmp_path / "rows.jsonl")
    data = [f"data.path={tmp_path}/rows.jsonl", "data.max_completion_length=4", "data.max_prompt_length=8"]
    here = [*runs.TINY, "model=hf", f"model.name={tmp_path}/model", "data=jsonl", *data, "model.lr=1e-3"]
    return [*here, "algorithm.batch_size=8", "evaluation.k=1", "reference.cache=false"]


def logged(folder):
    return [row for row in runs.metrics(folder) if "loss" in row]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("method", runs.slow_but(METHODS, ["dpo"]))
def test_a_run_is_that_of_padded_rows(tmp_path, model, method, switch, monkeypatch):
    if method == "ppo":
        monkeypatch.setattr("rlpref.build.GOLD", {"None": lambda task, tokenizer: Length()})
        monkeypatch.setattr("rlpref.check.GOLD", {"None": None})
        monkeypatch.setattr("rlpref.check.check_reward", lambda *_: None)
        model = [*model, "reward=gold"]
    else:
        model = [*model, "reward=none"]
    close = 0.05 if switch == "bfloat16" else 2e-4
    plain = ["model.attn_implementation=sdpa", *METHODS[method]]
    fast = [*SWITCHES[switch], *METHODS[method]]
    for folder, settings in (("plain", plain), ("fast", fast)):
        runs.run(tmp_path / folder, *model, *settings)
    expected, found = logged(tmp_path / "plain"), logged(tmp_path / "fast")
    assert len(expected) == len(found) > 2
    for one, other in zip(expected, found):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], abs=close)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=10 * close, abs=close)


class Length:
    """The number of tokens of an answer."""

    name = "length"

    def __call__(self, sequences):
        return sequences.lengths.float() / 4


def test_a_killed_run_in_bfloat16_goes_on_as_if_nothing_had_happened(tmp_path, model, monkeypatch):
    settings = [*model, "reward=none", "model.compute_dtype=bfloat16", "training.micro_batch_tokens=60"]
    settings += [*METHODS["dpo"], "training.checkpoint_every=3"]
    runs.run(tmp_path / "whole", *settings)
    with runs.interrupted_at(monkeypatch, 6):
        runs.run(tmp_path / "cut", *settings)
    runs.run(tmp_path / "cut", *settings)
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")
    assert runs.weights(tmp_path / "cut") == runs.weights(tmp_path / "whole")


def test_checkpoints_are_in_float32_whatever_computes(tmp_path, model):
    from safetensors.torch import load_file

    runs.run(tmp_path / "run", *model, "reward=none", "algorithm=sft", "model.compute_dtype=bfloat16")
    path, _ = latest(tmp_path / "run" / "checkpoints")
    assert {str(tensor.dtype) for tensor in load_file(path / "policy.safetensors").values()} == {"torch.float32"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["dtype"] == "float32"


def test_layers_are_made_again_and_compiled_where_that_is_asked_for(random_llama, monkeypatch):
    made = []

    def counted(function, *given, use_reentrant, **named):
        made.append(function)
        return function(*given, **named)

    monkeypatch.setattr(computing, "checkpoint", counted)
    ids = torch.ones(1, 3, dtype=torch.long)
    for again, model in ((False, random_llama()), (True, random_llama())):
        Computing(None, compile=False, checkpoint_layers=again).prepare_layers(model)
        model(ids, use_cache=False)
        assert len(made) == again * len(computing.layers(model))
    Computing(None, compile=True, checkpoint_layers=False).prepare_layers(model)
    assert all(layer._compiled_call_impl is not None for layer in computing.layers(model))


@pytest.mark.parametrize("switch", ["compile", "checkpoint_layers"])
def test_a_model_without_layers_to_find_is_refused(switch):
    switches = {"compile": False, "checkpoint_layers": False} | {switch: True}
    with pytest.raises(ConfigError, match=f"Linear has no layers that model.{switch} could find"):
        Computing(None, **switches).prepare_layers(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_compiled_layers_compute_the_same(tmp_path, model):
    for folder, compiled in (("plain", "false"), ("fast", "true")):
        runs.run(tmp_path / folder, *model, "reward=none", "algorithm=dpo", f"model.compile={compiled}")
    for one, other in zip(logged(tmp_path / "plain"), logged(tmp_path / "fast"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=2e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
