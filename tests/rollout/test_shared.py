"""Answers that read one copy of their prompt's keys and values are those of the padded path."""

import copy

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlpref.binding import ConfigError
from rlpref.data.tokenise import encode_prompts
from rlpref.models.gguf import smollm2_135m
from rlpref.models.lm import apply_lora
from rlpref.ops.logps import token_logps
from rlpref.ops.packing import PACKED
from rlpref.rollout import shared
from rlpref.rollout.sampler import sample
from rlpref.rollout.shared import BLOCK, SharedDecoder
from rlpref.types import Prompts

pytestmark = pytest.mark.slow

EOS, VOCAB = 0, 140  # two blocks of the draw, the second one short
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
}


def build(name="llama", seed=0, dtype=torch.float32):
    """The model under packed attention; EOS is likely, so that answers end at every length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]().to(dtype).eval()
    model.set_attn_implementation(PACKED)
    model.config.eos_token_id = EOS
    return model


def plain(model):
    other = copy.deepcopy(model)
    (other.get_base_model() if hasattr(other, "get_base_model") else other).set_attn_implementation("sdpa")
    return other


def prompts(lengths=(1, 9, 3, 10, 4), low=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    width = int(lengths.max()) + 2  # columns that are padding in every row
    mask = torch.arange(width) >= width - lengths[:, None]
    ids = torch.randint(low, VOCAB, mask.shape, generator=generator)
    return Prompts(torch.where(mask, ids, 7), mask)


def drawn(model, batch=None, k=12, n=BLOCK + 4, temperature=1.0, **options):
    generator = torch.Generator().manual_seed(1)
    return sample(model, batch or prompts(), k, n, temperature, options.pop("eos", EOS), [generator], **options)


def likely_eos(model):
    """An id that many answers come across, at different lengths."""
    found = drawn(model, eos=-1).sequences
    return int(found.ids[found.mask].mode().values)


def require_same(found, expected):
    assert torch.equal(found.prompt, expected.prompt)
    assert torch.equal(found.sequences.attention_mask, expected.sequences.attention_mask)
    assert torch.equal(found.sequences.mask, expected.sequences.mask)
    assert torch.equal(found.sequences.ids, expected.sequences.ids)
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("name", MODELS)
def test_same_answers_and_logps_as_the_padded_path(name, temperature):
    model = build(name)
    eos = likely_eos(model)
    found = drawn(model, temperature=temperature, eos=eos)
    require_same(found, drawn(plain(model), temperature=temperature, eos=eos))
    assert found.sequences.lengths.unique().numel() > 3  # rows end at many lengths and are dropped
    forced = token_logps(plain(model), found.sequences, temperature)[0].detach()
    torch.testing.assert_close(found.logps, forced, atol=1e-4, rtol=0)


def test_an_adapter_is_part_of_the_policy():
    torch.manual_seed(0)
    base = build()
    eos, before = likely_eos(base), drawn(base)
    model = apply_lora(base, {"r": 4}).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    found = drawn(model, eos=eos)
    require_same(found, drawn(plain(model), eos=eos))
    assert not torch.equal(drawn(model).sequences.ids[:, :20], before.sequences.ids[:, :20])


@pytest.mark.parametrize("batch_size", [1, 11, 1000])
def test_answers_do_not_depend_on_how_many_are_sampled_at_once(batch_size):
    model = build()
    eos = likely_eos(model)
    require_same(drawn(model, eos=eos, batch_size=batch_size), drawn(model, eos=eos))


def test_prompts_are_read_in_parts_alike(monkeypatch):
    model = build()
    eos = likely_eos(model)
    whole = drawn(model, eos=eos)
    monkeypatch.setattr(shared, "READ", 5)
    require_same(drawn(model, eos=eos), whole)


def test_equal_prompts_are_read_once():
    model, batch = build(), prompts()
    again = batch[torch.tensor([0, 1, 1, 3, 1, 0])]
    eos = likely_eos(model)
    require_same(drawn(model, again, eos=eos), drawn(plain(model), again, eos=eos))
    decoder = SharedDecoder(model, again, 2)
    with torch.no_grad():
        decoder.start()
    assert sum(len(group.padding) for group in decoder.layout.groups) == 3


def test_no_copy_of_a_prompt_for_each_answer():
    """Keys and values that a step reads: of each prompt once, of each answer once; nothing is copied between steps but
    once in a block of tokens."""
    decoder = SharedDecoder(build(), prompts((9, 9, 10)), 50)
    with torch.no_grad():
        logits, _ = decoder.start()
        (group,) = decoder.layout.groups
        assert group.keys[0].shape == (3, 2, 10, 8)
        places = []
        for _ in range(BLOCK + 1):
            logits = decoder.step(logits.argmax(1))
            places.append((decoder.layout.keys[0].data_ptr(), tuple(decoder.layout.keys[0].shape)))
    assert set(places[:BLOCK]) == {(places[0][0], (150, 2, BLOCK, 8))}
    assert places[BLOCK][1] == (150, 2, 2 * BLOCK, 8)
    assert decoder.layout.groups[0].keys[0] is group.keys[0]


def test_rows_can_be_dropped_in_any_pattern():
    """What is left goes on as it would have with all rows there."""
    model, batch = build(), prompts((3, 3, 4, 9))
    tokens, left = torch.arange(1, 13), torch.arange(12)
    with torch.no_grad():
        whole, part = SharedDecoder(model, batch, 3), SharedDecoder(model, batch, 3)
        for decoder in (whole, part):
            decoder.start()
            decoder.step(tokens)
        for kept in ([0, 1, 2, 4, 9, 10], [0, 3, 4], [2]):
            part.keep(torch.tensor(kept))
            left = left[kept]
            expected = whole.step(tokens)[left]
            torch.testing.assert_close(part.step(tokens[left]), expected, atol=1e-5, rtol=0)


def test_bfloat16_keeps_its_keys_in_bfloat16_and_its_logps_in_float32():
    model = build(dtype=torch.bfloat16)
    samples = drawn(model)
    assert samples.logps.dtype == torch.float32
    forced = token_logps(plain(model), samples.sequences)[0].detach()
    exact = token_logps(plain(model).double(), samples.sequences)[0].detach()
    error, its = ((logps - exact).abs().sum() / samples.sequences.mask.sum() for logps in (samples.logps, forced))
    assert error < 1.5 * its  # no less exact than a pass over whole rows
    decoder = SharedDecoder(model, prompts(), 1)
    with torch.no_grad():
        decoder.start()
    assert decoder.layout.keys[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("softcap", "message"), [(None, "sliding window"), (50.0, "knows no softcap: set model.attn")])
def test_a_model_that_wants_what_packed_attention_has_not_is_refused(softcap, message):
    sizes = SIZES | {"sliding_window": 4, "query_pre_attn_scalar": 8, "bos_token_id": 1, "pad_token_id": 0}
    sizes |= {"attn_logit_softcapping": softcap}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes)).eval()
    model.set_attn_implementation(PACKED)
    with pytest.raises(ValueError, match=message):
        drawn(model)


def test_a_model_whose_layers_do_not_get_the_layout_is_refused():
    model = build()
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, forward=forward, layout=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ValueError, match="0 of the 3 layers of LlamaForCausalLM read the layout"):
        drawn(model)


@pytest.mark.slow
def test_the_real_model_gives_the_same_answers_and_exact_logps():
    """SmolLM2-135M in float32, prompts of uneven length."""
    try:
        loaded = smollm2_135m("float32", PACKED, None)
    except ConfigError as error:
        pytest.skip(str(error))
    texts = ["Why is the sky blue?", "Tell me a story about a cat who sails around the world alone.", "Hi", "1, 2, 3,"]
    turns = [[{"role": "user", "content": text}] for text in texts]
    batch = encode_prompts(turns, loaded.tokenizer, 64)
    model, eos = loaded.policy, loaded.tokenizer.eos_token_id
    found = drawn(model, batch, k=3, n=12, eos=eos)
    require_same(found, drawn(plain(model), batch, k=3, n=12, eos=eos))
    with torch.no_grad():
        forced = token_logps(model, found.sequences)[0]
    torch.testing.assert_close(found.logps, forced, atol=1e-4, rtol=0)
