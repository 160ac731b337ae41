"""Models in the run.c format of karpathy/llama2.c ("version 0") as HF Llamas; stories260K is the smallest."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.models.attention import register
from rlpref.models.lm import DTYPES, LoadedModel, check_precision, finish

SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2
SPACE = "▁"


def stories260k(
    path: str,
    tokenizer_path: str,
    dtype: str,
    attn_implementation: str,
    lora: Mapping[str, Any] | None,
    prompt_tokens: int | None = None,
) -> LoadedModel:
    """The run.c checkpoint at `path` with the run.c tokenizer at `tokenizer_path`, converted in memory.

    Raises ConfigError for a file that is missing or does not have the format to the last byte.
    """
    check_precision(dtype, attn_implementation, lora, prompt_tokens)
    register()
    model = read_model(Path(path), attn_implementation).to(DTYPES[dtype])
    tokenizer = read_tokenizer(Path(tokenizer_path), model.config.max_position_embeddings)
    return finish(model, tokenizer, "stories260k", lora, prompt_tokens)


def read_model(path: Path, attn_implementation: str) -> transformers.LlamaForCausalLM:
    """The float32 Llama in a run.c checkpoint: a header of 7 int32, then float32 tensors, each used."""
    content = _content(path, "model.path")
    header = struct.unpack_from("<7i", content) if len(content) >= 28 else (0,) * 7
    dim, hidden, layers, heads, kv_heads, vocab, length = header
    if min(dim, hidden, layers, heads, kv_heads, abs(vocab), length) < 1 or dim % heads or heads % kv_heads:
        raise ConfigError(f"model.path {path} is no run.c checkpoint: its header reads {header}.")
    config = transformers.LlamaConfig(
        vocab_size=abs(vocab),
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=vocab > 0,  # The format marks an output matrix of its own by a negative vocab size.
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
        attn_implementation=attn_implementation,
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(_state(_tensors(content[28:], config, path), config))
    return model.eval()


def _shapes(config: transformers.LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a run.c checkpoint in file order."""
    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = dim // config.num_attention_heads
    kv = config.num_key_value_heads * head
    output = {} if config.tie_word_embeddings else {"wcls": (config.vocab_size, dim)}
    return {
        "token_embedding": (config.vocab_size, dim),
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
        "freq_cis_real": (config.max_position_embeddings, head // 2),
        "freq_cis_imag": (config.max_position_embeddings, head // 2),
        **output,
    }


def _tensors(content: bytes, config: transformers.LlamaConfig, path: Path) -> dict[str, Tensor]:
    shapes = _shapes(config)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if len(content) != 4 * sum(sizes):
        raise ConfigError(
            f"model.path {path}: its header asks for {sum(sizes)} float32 weights,"
            f" {len(content)} bytes follow it instead of {4 * sum(sizes)}."
        )
    floats = torch.from_numpy(np.frombuffer(content, "<f4").copy())
    return {name: part.view(shapes[name]) for name, part in zip(shapes, floats.split(sizes))}


def _state(tensors: dict[str, Tensor], config: transformers.LlamaConfig) -> dict[str, Tensor]:
    """HF names. The rotary tables are left out: HF computes them."""
    state = {
        "model.embed_tokens.weight": tensors["token_embedding"],
        "model.norm.weight": tensors["rms_final"],
        "lm_head.weight": tensors.get("wcls", tensors["token_embedding"]),
    }
    per_layer = {
        "input_layernorm": tensors["rms_att"],
        "self_attn.q_proj": _rope_halves(tensors["wq"], config.num_attention_heads),
        "self_attn.k_proj": _rope_halves(tensors["wk"], config.num_key_value_heads),
        "self_attn.v_proj": tensors["wv"],
        "self_attn.o_proj": tensors["wo"],
        "post_attention_layernorm": tensors["rms_ffn"],
        "mlp.gate_proj": tensors["w1"],
        "mlp.down_proj": tensors["w2"],
        "mlp.up_proj": tensors["w3"],
    }
    for name, stacked in per_layer.items():
        state |= {f"model.layers.{i}.{name}.weight": weight for i, weight in enumerate(stacked)}
    return state


def _rope_halves(weight: Tensor, heads: int) -> Tensor:
    """run.c rotates rows (2i, 2i + 1) of a head together, HF rows (i, i + half): [L, rows, dim] reordered."""
    layers, rows, dim = weight.shape
    pairs = weight.view(layers, heads, rows // heads // 2, 2, dim)
    return pairs.transpose(2, 3).reshape(layers, rows, dim)


def read_tokenizer(path: Path, model_max_length: int) -> transformers.PreTrainedTokenizerFast:
    """The sentencepiece BPE in a run.c tokenizer file: byte fallback, a space put before the text and taken
    off after decoding, BOS (id 1) added at the front, EOS id 2."""
    scores = read_pieces(path)
    vocab = {piece: i for i, piece in enumerate(scores)}
    bpe = BPE(vocab=vocab, merges=_merges(scores), unk_token=SPECIAL[0], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def read_pieces(path: Path) -> dict[str, float]:
    """Piece -> score in id order, spaces written as sentencepiece does; the file: int32 longest piece, then
    per piece a float32 score, an int32 length and the bytes."""
    content = _content(path, "model.tokenizer_path")
    pieces: list[tuple[str, float]] = []
    at = 4
    try:
        while at < len(content):
            score, length = struct.unpack_from("<fi", content, at)
            raw = struct.unpack_from(f"<{length}s", content, at + 8)[0]
            pieces.append((raw.decode().replace(" ", SPACE), score))
            at += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise ConfigError(f"model.tokenizer_path {path} is no run.c tokenizer: piece {len(pieces)}: {error}") from error
    # The exporter writes BOS and EOS with line breaks around them, for printing.
    scores = dict.fromkeys(SPECIAL, 0.0) | dict(pieces[len(SPECIAL) :])
    if len(scores) != len(pieces):
        raise ConfigError(f"model.tokenizer_path {path}: a piece occurs twice, or there are fewer than 3.")
    return scores


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best-scored piece first: the order in which
    sentencepiece merges."""
    made = [piece for i, piece in enumerate(scores) if i >= len(SPECIAL) and len(piece) > 1]
    made.sort(key=lambda piece: -scores[piece])
    splits = ((piece[:cut], piece[cut:]) for piece in made for cut in range(1, len(piece)))
    return [(left, right) for left, right in splits if left in scores and right in scores]


def _content(path: Path, key: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} {path} cannot be read: {error.strerror}.") from error
