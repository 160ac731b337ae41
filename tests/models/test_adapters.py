"""Each kind of adapter read by the package's own paths and by peft's own forward pass."""

import copy

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.models.adapters import adapter_is_zero, add_virtual_tokens, is_adapter_weight, merged
from rlpref.models.hashing import base_hash, weights_hash
from rlpref.models.heads import answer_scores, scalar_model, state_values
from rlpref.models.lm import apply_lora
from rlpref.models.reference import freeze
from rlpref.ops.logps import token_logps
from rlpref.rollout.sampler import sample
from rlpref.types import Prompts, Sequences

KINDS = {
    "lora": {"r": 2},
    "dora": {"r": 2, "dora": True},
    "rslora": {"r": 3, "rslora": True},
    "prompt": None,
}
TOKENS = 5
ROWS = [([1, 2, 3], [4, 5, 0]), ([1, 2, 3], [6]), ([7], [8, 9, 10, 0]), ([3, 4, 5, 6, 7, 8], [9, 1])]
LAYOUTS = ["packed", "sdpa", "eager"]


def adapted(base, kind, trained=True):
    """The base under an adapter whose every weight has moved away from its start."""
    torch.manual_seed(3)
    model = add_virtual_tokens(base, TOKENS) if kind == "prompt" else apply_lora(base, KINDS[kind])
    if trained:
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def sequences(left):
    width = max(len(prompt) + len(answer) for prompt, answer in ROWS) + 1
    ids, real, scored = (torch.zeros(len(ROWS), width, dtype=kind) for kind in (torch.long, torch.bool, torch.bool))
    for i, (prompt, answer) in enumerate(ROWS):
        start = width - len(prompt) - len(answer) if left else 0
        stop = start + len(prompt) + len(answer)
        ids[i, start:stop] = torch.tensor(prompt + answer)
        real[i, start:stop] = True
        scored[i, start + len(prompt) : stop] = True
    return Sequences(ids, real, scored)


def by_peft(model, rows=ROWS):
    """Log-probs of each answer's tokens from peft's own forward pass over the row alone, without padding."""
    found = []
    with torch.no_grad():
        for prompt, answer in rows:
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
            says = logits[-len(answer) - 1 : -1].log_softmax(-1)
            found.append(says.gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_pefts_own_forward_pass(random_llama, kind, attention, left):
    model = adapted(random_llama(dtype=torch.float32, attn_implementation=attention), kind)
    base = random_llama(dtype=torch.float32)
    batch = sequences(left)
    found = token_logps(model, batch)[0].detach()
    assert found.shape == batch.ids.shape
    torch.testing.assert_close(found[batch.mask], by_peft(model), atol=1e-5, rtol=0)
    assert (found[batch.mask] - by_peft(base)).abs().max() > 0.05  # the adapter says something


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_draws_from_the_adapted_policy(random_llama, kind, attention):
    model = adapted(random_llama(dtype=torch.float32, attn_implementation=attention), kind)
    ids = torch.tensor([[9, 9, 1, 2], [5, 4, 3, 2]])
    prompts = Prompts(ids, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool))
    drawn = sample(model, prompts, 6, 5, 1.0, 0, [torch.Generator().manual_seed(0)])
    rows = drawn.sequences
    assert int(rows.ids.max()) < 12  # no virtual token is ever seen
    texts = [(row[real & ~own].tolist(), row[own].tolist()) for row, real, own in zip(*vars(rows).values())]
    assert texts[0][0] == [1, 2]
    torch.testing.assert_close(drawn.logps[rows.mask], by_peft(model, texts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_base_bit_for_bit_and_back_again(random_llama, kind, attention):
    base = random_llama(dtype=torch.float32, attn_implementation=attention)
    expected, known = token_logps(base, sequences(False))[0].detach(), weights_hash(base)
    model = adapted(base, kind)
    before = token_logps(model, sequences(False))[0].detach()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(token_logps(model, sequences(False))[0], expected)
    assert torch.equal(token_logps(model, sequences(False))[0].detach(), before)
    assert base_hash(model) == known


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_alone_trains(random_llama, kind):
    model = adapted(random_llama(dtype=torch.float32, attn_implementation="packed"), kind)
    token_logps(model, sequences(False))[0].sum().backward()
    assert trainable(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_adapter_weight(name), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_adapter_weight(name), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_virtual_tokens_start_as_drawn_words_whatever_peft_starts_them_as(random_llama, dtype, monkeypatch):
    from peft.tuners.prompt_tuning import PromptEmbedding

    start = PromptEmbedding.__init__

    def other(self, *args, **settings):
        start(self, *args, **settings)
        torch.nn.init.normal_(self.embedding.weight)

    monkeypatch.setattr(PromptEmbedding, "__init__", other)
    base = random_llama(dtype=dtype)
    words = base.get_input_embeddings().weight.detach().float()
    (vectors,) = trainable(adapted(base, "prompt", trained=False)).values()
    torch.manual_seed(3)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, words[torch.randint(len(words), (TOKENS,))])


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_policy_at_the_start_and_stays(random_llama, kind):
    model = adapted(random_llama(dtype=torch.float32), kind, trained=False)
    reference = freeze(model)
    assert reference.adapter_off is adapter_is_zero(model) is (kind != "prompt")
    before = token_logps(model, sequences(False))[0].detach()
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    with reference.active() as ref:
        assert torch.equal(token_logps(ref, sequences(False))[0], before)
    assert not torch.equal(token_logps(model, sequences(False))[0], before)
    assert not adapter_is_zero(model)


def test_a_moved_magnitude_is_no_zero_adapter(random_llama):
    model = adapted(random_llama(dtype=torch.float32), "dora", trained=False)
    name = next(name for name in trainable(model) if "magnitude" in name)
    with torch.no_grad():
        trainable(model)[name][0] *= 1.01
    assert not adapter_is_zero(model)


def test_rslora_divides_by_the_root_of_the_rank(random_llama):
    scales = {}
    for kind in ("lora", "rslora"):
        model = apply_lora(random_llama(dtype=torch.float32), {"r": 4, "alpha": 8, "rslora": kind == "rslora"})
        scales[kind] = next(part.scaling["default"] for part in model.modules() if hasattr(part, "lora_B"))
    assert scales == {"lora": 8 / 4, "rslora": 8 / 4**0.5}


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_merged_weights_are_the_adapted_policy(random_llama, kind):
    model = adapted(random_llama(dtype=torch.float32), kind)
    whole, expected = merged(model), by_peft(model)
    assert not any(is_adapter_weight(name) for name, _ in whole.named_parameters())
    torch.testing.assert_close(by_peft(whole), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_peft(model), expected, atol=0, rtol=0)  # a copy was merged


def test_virtual_tokens_cannot_be_merged(random_llama):
    with pytest.raises(ConfigError, match=r"model\.prompt_tokens.*cannot be merged"):
        merged(adapted(random_llama(dtype=torch.float32), "prompt"))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_read_what_the_policy_reads(random_llama, kind):
    """Values and scores of the three ways of attending agree, and are those of peft's decoder under the head."""
    found = []
    for attention in LAYOUTS:
        policy = adapted(random_llama(dtype=torch.float32, attn_implementation=attention), kind)
        model = scalar_model(policy, None, torch.Generator().manual_seed(0))
        batch = sequences(left=attention == "sdpa")
        values = state_values(model, batch)
        assert values.shape == batch.ids.shape
        found.append((values[batch.mask].detach(), answer_scores(model, batch).detach()))
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if kind == "prompt":
            assert trained == {"head.weight", "head.bias", "backbone.embed_tokens.virtual.embedding.weight"}
        else:
            assert len(trained) == len(list(model.named_parameters()))
    for values, scores in found[1:]:
        torch.testing.assert_close(values, found[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores, found[0][1], atol=1e-5, rtol=0)
    ids = torch.tensor([[*ROWS[2][0], *ROWS[2][1]]])
    with torch.no_grad():
        hidden = policy(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
        expected = model.numbers(hidden[-1][0])
    torch.testing.assert_close(found[0][1][2], expected[-1], atol=1e-5, rtol=0)


def test_a_copy_of_a_policy_has_virtual_tokens_of_its_own(random_llama):
    model = adapted(random_llama(dtype=torch.float32), "prompt")
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(trainable(other).values())).add_(1.0)
    assert not torch.allclose(by_peft(model), by_peft(other))
    torch.testing.assert_close(token_logps(other, sequences(True))[0][sequences(True).mask].detach(), by_peft(other))
