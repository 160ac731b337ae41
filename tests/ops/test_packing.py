"""Rows that are packed are read as they are read alone: the same numbers, the same gradients, fewer tokens."""

from itertools import pairwise

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlpref.binding import ConfigError
from rlpref.models.attention import check_packed
from rlpref.models.heads import answer_scores, backbone_of, scalar_model, state_values
from rlpref.models.lm import apply_lora
from rlpref.ops.logps import compare, read_completions, token_confidence, token_forward_kl, token_logps
from rlpref.ops.packing import by_prompt, pack
from rlpref.types import Sequences

LONG = [5, 1, 8, 2, 9, 3, 6]
ROWS = [  # prompt, answer; two pairs, answers of one token, a prompt that opens another, and many answers to one prompt
    (LONG, [4, 8, 1, 0]),
    (LONG, [7]),
    ([3], [6, 2, 11]),
    ([3], [10, 0]),
    ([3, 5], [9]),
    *((LONG[:2], [a, b, 0]) for a in range(1, 5) for b in (2, 7)),
]


def sequences(rows=ROWS, left=False):
    width = max(len(prompt) + len(answer) for prompt, answer in rows) + 2
    ids = torch.full((len(rows), width), 7)
    real, mask = torch.zeros(2, len(rows), width, dtype=torch.bool).unbind()
    for r, (prompt, answer) in enumerate(rows):
        start = width - len(prompt) - len(answer) if left else 0
        ids[r, start : start + len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        real[r, start : start + len(prompt) + len(answer)] = True
        mask[r, start + len(prompt) : start + len(prompt) + len(answer)] = True
    return Sequences(ids, real, mask)


def qwen(attn_implementation, seed=0, dtype=torch.float64):
    """Biases, and three query heads to one key head."""
    sizes = {"vocab_size": 12, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    config = Qwen2Config(
        **sizes,
        attn_implementation=attn_implementation,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).to(dtype).eval()


def both(build, **settings):
    return build(attn_implementation="packed", **settings), build(attn_implementation="sdpa", **settings)


def gradients(model):
    """Equal to about 1e-6: HF's norms are in float32 whatever the model is in, and add up in another order."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_long_rows_are_cut_into_blocks_and_read_as_before(random_llama, monkeypatch):
    monkeypatch.setattr("rlpref.ops.packing.QUERIES", 2)
    batch = sequences()
    assert len(pack(batch).spans) > 12
    found = []
    for model in both(random_llama):
        logps, _ = token_logps(model, batch)
        logps.sum().backward()
        found.append((logps.detach(), gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-12, rtol=0)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 255, 512, 513, 1300])
def test_blocks_hold_every_query_once_and_all_that_it_sees(length):
    rows = [([1] * length, [2] * length), ([1] * length, [3] * length)]
    spans = pack(sequences(rows)).spans
    assert [span.own.start for span in spans] == [0, *(span.own.stop for span in spans[:-1])]
    assert spans[-1].own.stop == 3 * length - 2
    assert max(span.own.stop - span.own.start for span in spans) <= max(512, length - 1)
    seen = sum(int(span.sees.sum()) for span in spans)
    assert seen == length * (length + 1) // 2 + 2 * (length * (length - 1) // 2 + length * (length - 1))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_log_probs_and_gradients_are_those_of_padded_rows(random_llama, kind, left):
    batch = sequences(left=left)
    weight = torch.linspace(-1, 1, batch.ids.numel(), dtype=torch.float64).view_as(batch.ids)
    found = []
    for model in both(random_llama if kind == "llama" else qwen):
        logps, entropy = token_logps(model, batch, 0.8, entropy=True)
        (weight * (logps + 0.3 * entropy)).sum().backward()
        found.append((logps.detach(), entropy.detach(), gradients(model)))
    (packed, packed_entropy, packed_grads), (padded, padded_entropy, padded_grads) = found
    torch.testing.assert_close(packed, padded, atol=1e-12, rtol=0)
    torch.testing.assert_close(packed_entropy, padded_entropy, atol=1e-12, rtol=0)
    assert packed_grads.keys() == padded_grads.keys()
    for name, gradient in padded_grads.items():
        torch.testing.assert_close(packed_grads[name], gradient, atol=1e-5, rtol=0, msg=name)


def test_in_float32_they_are_equal_to_1e_4_and_gradients_point_the_same_way():
    batch, flat = sequences(), []
    for model in both(qwen, dtype=torch.float32):
        logps, _ = token_logps(model, batch)
        logps.sum().backward()
        flat.append((logps.sum(1).detach(), torch.cat([g.flatten() for g in gradients(model).values()])))
    torch.testing.assert_close(flat[0][0], flat[1][0], atol=1e-4, rtol=0)
    assert torch.cosine_similarity(flat[0][1], flat[1][1], 0) > 0.9999


def test_what_else_is_read_of_completions_is_the_same(random_llama):
    batch, (policy, padded) = sequences(), both(random_llama)
    ref, padded_ref = both(random_llama, seed=1)
    for ours, plain in zip(token_confidence(policy, batch), token_confidence(padded, batch)):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    reads = [[read_completions(one, batch) for one in two] for two in ((policy, ref), (padded, padded_ref))]
    for function in (token_forward_kl, lambda *two: [value for _, value in compare(*two).items()]):
        for ours, plain in zip(function(*reads[0]), function(*reads[1])):
            torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("left", [False, True])
def test_critics_and_reward_models_say_the_same(random_llama, left):
    batch, found = sequences(left=left), []
    for policy in both(random_llama):
        model = scalar_model(policy, None, torch.Generator().manual_seed(0))
        values, scores = state_values(model, batch), answer_scores(model, batch)
        (values.sum() + scores.square().sum()).backward()
        found.append((values.detach(), scores.detach(), gradients(model)))
    for ours, plain in zip(found[0][:2], found[1][:2]):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    for name, gradient in found[1][2].items():
        torch.testing.assert_close(found[0][2][name], gradient, atol=1e-5, rtol=0, msg=name)


def test_an_adapter_is_read_with_its_base(random_llama):
    batch, found = sequences(), []
    for base in both(random_llama):
        torch.manual_seed(0)
        model = apply_lora(base, {"r": 2, "alpha": None, "dropout": 0.0, "target_modules": None})
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3)
        logps, _ = token_logps(model, batch)
        logps.sum().backward()
        found.append((logps.detach(), gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)  # the adapter is in float32
    assert found[0][1].keys() == found[1][1].keys()
    assert all(".lora_" in name for name in found[0][1])


def test_a_prompt_is_packed_once_and_last_tokens_that_score_nothing_not_at_all():
    answers = sum(len(answer) for _, answer in ROWS)
    prompts = len(LONG) + 1 + 2 + 2
    assert pack(sequences()).ids.shape == (1, prompts + answers - len(ROWS))
    assert pack(sequences(), last=True).ids.shape == (1, prompts + answers)


def test_cost_grows_with_the_answers_not_with_their_square():
    """Scores held for 64 answers to one prompt: each sees the prompt and itself."""
    batch = sequences([([1, 2, 3], [4 + i % 8, i // 8 + 1, 5, 6]) for i in range(64)])
    assert sum(span.sees.numel() for span in pack(batch).spans) == 3 * 3 + 64 * 3 * (3 + 3)


def test_a_row_without_a_prompt_is_refused():
    batch = sequences()
    batch.mask[2] = batch.attention_mask[2]
    with pytest.raises(ValueError, match="row 2 has no prompt"):
        pack(batch)


def test_rows_of_one_prompt_stand_together():
    batch = sequences(left=True)
    order = by_prompt(batch).tolist()
    prompts = [tuple(ROWS[row][0]) for row in order]
    assert sorted(order) == list(range(len(ROWS)))
    assert [len(prompt) for prompt in prompts] == sorted(len(prompt) for prompt, _ in ROWS)
    assert len([1 for one, other in pairwise(prompts) if one != other]) == len(set(prompts)) - 1


def test_a_layer_with_a_window_is_refused_and_so_are_logits_that_are_no_linear_map(random_llama):
    check_packed(random_llama(attn_implementation="packed"))
    capped = random_llama(attn_implementation="packed")
    capped.lm_head.register_forward_hook(lambda module, inputs, output: output.tanh())
    with pytest.raises(ConfigError, match=r"attn_implementation=sdpa.*off by"):
        check_packed(capped)
    windowed = random_llama(attn_implementation="packed")
    for layer in backbone_of(windowed).layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"sliding_window": 4}), with_kwargs=True
        )
    with pytest.raises(ConfigError, match="no sliding window"):
        check_packed(windowed)
    adapted = random_llama(attn_implementation="packed")
    lora = {"r": 2, "alpha": None, "dropout": 0.0, "target_modules": ["lm_head"]}
    with pytest.raises(ConfigError, match="no plain linear map"):
        check_packed(apply_lora(adapted, lora))
