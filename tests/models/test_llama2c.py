import gzip
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.models.llama2c import read_model, read_pieces, read_tokenizer, stories260k

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tinystories"
HEADER = {"dim": 16, "hidden": 24, "layers": 2, "heads": 4, "kv": 2, "vocab": 11, "length": 8}


@pytest.fixture(scope="module")
def stories():
    if not (DATA / "stories260K.bin").is_file():
        pytest.skip("stories260K.bin is not in ../shared/data/tinystories beside the repository")
    return stories260k(str(DATA / "stories260K.bin"), str(DATA / "tok512.bin"), "float32", "sdpa", None)


def stored_stories(count: int) -> list[str]:
    with gzip.open(DATA / "tinystories_1000.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(count))]


def random_checkpoint(path: Path, tied: bool) -> dict[str, np.ndarray]:
    """Writes a run.c checkpoint with random weights; returns its tensors."""
    h, rng = HEADER, np.random.default_rng(0)
    head, half = h["dim"] // h["heads"], h["dim"] // h["heads"] // 2
    kv, layers, dim, hidden = h["kv"] * head, h["layers"], h["dim"], h["hidden"]
    angles = np.arange(h["length"])[:, None] * 10000.0 ** (-2 * np.arange(half) / head)
    shapes = {
        "embedding": (h["vocab"], dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv, dim),
        "wv": (layers, kv, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final": (dim,),
    }
    tensors = {name: rng.normal(0, 0.4, shape) for name, shape in shapes.items()}
    tensors |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    if not tied:
        tensors["wcls"] = rng.normal(0, 0.4, (h["vocab"], dim))
    header = list(HEADER.values())
    header[5] *= 1 if tied else -1
    with path.open("wb") as file:
        file.write(struct.pack("<7i", *header))
        for tensor in tensors.values():
            file.write(tensor.astype("<f4").tobytes())
    return tensors


def run_c(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits [T, vocab] as run.c computes them: rotation of neighbouring pairs, grouped heads, SwiGLU."""
    heads, group, size = HEADER["heads"], HEADER["heads"] // HEADER["kv"], HEADER["dim"] // HEADER["heads"]

    def norm(x, weight):
        return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def rotate(x):  # [T, heads, size]
        cos, sin = w["cos"][: len(tokens), None], w["sin"][: len(tokens), None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    x = w["embedding"][tokens]
    for layer in range(HEADER["layers"]):
        h = norm(x, w["rms_att"][layer])
        q, k, v = ((h @ w[name][layer].T).reshape(len(tokens), -1, size) for name in ("wq", "wk", "wv"))
        q, k = rotate(q), rotate(k)
        attended = np.empty_like(q)
        for i in range(heads):
            scores = q[:, i] @ k[:, i // group].T / np.sqrt(size)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            p = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, i] = p / p.sum(-1, keepdims=True) @ v[:, i // group]
        x = x + attended.reshape(len(tokens), -1) @ w["wo"][layer].T
        h = norm(x, w["rms_ffn"][layer])
        gate = h @ w["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
    return norm(x, w["rms_final"]) @ w.get("wcls", w["embedding"]).T


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_computes_what_run_c_computes(tmp_path, tied):
    weights = random_checkpoint(tmp_path / "model.bin", tied)
    model = read_model(tmp_path / "model.bin", "eager")
    tokens = [1, 7, 3, 3, 10, 0]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    np.testing.assert_allclose(logits.numpy(), run_c(weights, tokens), atol=1e-4)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("change", [lambda b: b[:-4], lambda b: b + b"\0\0\0\0"])
def test_a_float_too_few_or_too_many_is_refused(tmp_path, change):
    path = tmp_path / "model.bin"
    random_checkpoint(path, tied=True)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"model\.bin: its header asks for"):
        read_model(path, "eager")


@pytest.mark.parametrize("content", [b"", b"{}", bytes(28), struct.pack("<7i", 16, 24, 2, 3, 2, 11, 8)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ConfigError, match=r"no run\.c checkpoint"):
        read_model(tmp_path / "model.bin", "eager")


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path .*absent\.bin cannot be read"):
        stories260k(str(tmp_path / "absent.bin"), str(tmp_path / "tok.bin"), "float32", "sdpa", None)
    with pytest.raises(ConfigError, match=r"model\.tokenizer_path .*tok\.bin cannot be read"):
        read_tokenizer(tmp_path / "tok.bin", 8)


def write_pieces(path: Path, pieces: list[tuple[bytes, float]]) -> Path:
    content = [struct.pack("<i", max(len(piece) for piece, _ in pieces))]
    content += [struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces]
    path.write_bytes(b"".join(content))
    return path


def small_tokenizer(path: Path) -> Path:
    special = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    fallback = [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    learned = [b"ab", b" a", b"abc", b" ", b"a", b"b", b"c"]
    return write_pieces(path, special + fallback + [(p, -float(i)) for i, p in enumerate(learned)])


def test_merges_follow_the_scores_and_unknown_characters_fall_back_to_bytes(tmp_path):
    tokenizer = read_tokenizer(small_tokenizer(tmp_path / "tok.bin"), 64)

    def tokens(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

    assert tokens("abc") == ["<s>", "▁", "abc"]  # "ab" outranks " a"
    assert tokens("ac") == ["<s>", "▁a", "c"]
    assert tokens("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("text", ["abc", " abc", "ab  c ", "naïve 🙂\n\tabc"])
def test_decoding_undoes_encoding(tmp_path, text):
    tokenizer = read_tokenizer(small_tokenizer(tmp_path / "tok.bin"), 64)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_a_damaged_tokenizer_is_refused(tmp_path):
    path = small_tokenizer(tmp_path / "tok.bin")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"tok\.bin is no run\.c tokenizer: piece 265"):
        read_tokenizer(path, 64)
    twice = write_pieces(tmp_path / "twice.bin", [(b"x", 0.0)] * 3 + [(b"a", 0.0)] * 2)
    with pytest.raises(ConfigError, match="occurs twice"):
        read_tokenizer(twice, 64)


def test_stories260k_has_its_parameters_and_speaks_english(stories):
    assert stories.card["parameters"] == 260_032
    assert stories.tokenizer.pad_token_id == stories.tokenizer.eos_token_id == 2
    prompt = stories.tokenizer("Once upon a time", return_tensors="pt")
    answer = stories.policy.generate(**prompt, max_new_tokens=30, do_sample=False)[0]
    text = stories.tokenizer.decode(answer, skip_special_tokens=True)
    assert text.startswith("Once upon a time, there was a little girl named")


def test_stories260k_predicts_stories(stories):
    total = tokens = 0
    for story in stored_stories(4):
        ids = stories.tokenizer(story, return_tensors="pt").input_ids[:, :512]
        with torch.no_grad():
            logps = stories.policy(ids).logits[0, :-1].log_softmax(-1)
        total -= logps.gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    assert 1.2 < total / tokens < 1.7


def test_stories260k_tokens_are_those_of_run_c(stories):
    scores = read_pieces(DATA / "tok512.bin")
    ids = {piece: i for i, piece in enumerate(scores)}
    for story in stored_stories(20):
        pieces = list(("▁" + story).replace(" ", "▁").replace("\n", "\0"))
        while True:  # run.c: merge the best-scored neighbours, the leftmost of equals, until none is left.
            joined = [left + right for left, right in pairwise(pieces)]
            pairs = [(scores[piece], -i) for i, piece in enumerate(joined) if piece in scores]
            if not pairs:
                break
            at = -max(pairs)[1]
            pieces[at : at + 2] = [joined[at]]
        expected = [ids.get(piece, ids["<0x0A>"] if piece == "\0" else None) for piece in pieces]
        actual = stories.tokenizer(story, add_special_tokens=False).input_ids
        assert actual == expected
        assert stories.tokenizer.decode(actual) == story
