import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlpref.binding import ConfigError
from rlpref.models.heads import ScalarHead, backbone_of, critic_from, last_token_scores, scalar_model
from rlpref.models.lm import apply_lora
from rlpref.models.tabular import TabularLM
from rlpref.models.tiny import tiny_llama
from rlpref.types import Sequences

LORA = {"r": 2, "alpha": 4, "dropout": 0, "target_modules": "all-linear"}
EOS = 0
IDS = torch.tensor([[4, 1, 2], [5, 3, EOS]])


def llama():
    return tiny_llama(vocab=4, horizon=2, prompts=4, hidden_size=16, layers=2, heads=2, seed=0)


def trained_lora_policy():
    torch.manual_seed(0)
    policy = apply_lora(llama(), LORA)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return policy


def gpt2():
    config = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=8, eos_token_id=0)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()


def tabular():
    torch.manual_seed(0)
    policy = TabularLM(vocab=4, horizon=2, prompts=4)
    torch.nn.init.normal_(policy.model.rows.weight)
    return policy


POLICIES = [llama, trained_lora_policy, gpt2, tabular]


def build(policy, lora=None, seed=1) -> ScalarHead:
    return scalar_model(policy, lora, torch.Generator().manual_seed(seed))


def sequences(ids, attention) -> Sequences:
    mask = torch.tensor(attention, dtype=torch.bool)
    return Sequences(torch.tensor(ids), mask, mask)


def read(model, batch: Sequences) -> torch.Tensor:
    return model(batch.ids, batch.attention_mask, batch.position_ids)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_copy_computes_what_the_policy_computes_and_is_its_own(policy):
    policy = policy()
    model = build(policy)
    hidden = [m(input_ids=IDS).last_hidden_state for m in (backbone_of(policy), model.backbone)]
    torch.testing.assert_close(*hidden)
    values = read(model, sequences(IDS.tolist(), [[1] * 3] * 2))
    assert values.shape == (2, 3)
    torch.testing.assert_close(values, model.head(hidden[1]).squeeze(-1))
    mine = {p.data_ptr() for p in policy.parameters()}
    assert not mine & {p.data_ptr() for p in model.parameters()}
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_starts_with_variance_one_over_width_plus_one():
    width = 4000
    model = ScalarHead(torch.nn.Linear(1, 1), width, torch.Generator().manual_seed(0))
    assert model.head.weight.std().item() == pytest.approx((width + 1) ** -0.5, rel=0.05)
    assert model.head.bias.item() == 0


@pytest.mark.parametrize("std", [0.0, 0.2])
def test_the_head_starts_with_the_deviation_asked_for(std):
    model = ScalarHead(torch.nn.Linear(1, 1), 4000, torch.Generator().manual_seed(0), std)
    assert model.head.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("lora", [None, LORA])
def test_every_draw_comes_from_the_given_generator(lora):
    torch.manual_seed(5)
    first = build(llama(), lora)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(6)
    second, other = build(llama(), lora), build(llama(), lora, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("policy", [llama, trained_lora_policy])
def test_with_lora_only_adapter_and_head_train_and_the_start_is_unchanged(policy):
    policy = policy()
    full, light = build(policy), build(policy, LORA)
    light.head.load_state_dict(full.head.state_dict())
    batch = sequences(IDS.tolist(), [[1] * 3] * 2)
    assert torch.equal(read(full, batch), read(light, batch))
    trained = {name for name, p in light.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name or name.startswith("head.") for name in trained)
    read(light, batch).sum().backward()
    assert light.head.weight.grad is not None


def test_over_a_bfloat16_base_adapter_head_and_values_are_float32():
    policy = apply_lora(llama().bfloat16(), LORA)
    model = build(policy, LORA)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert read(model, sequences(IDS.tolist(), [[1] * 3] * 2)).dtype == torch.float32
    with pytest.raises(ConfigError, match="without LoRA"):
        build(policy)


def test_a_float64_policy_gets_a_float64_head():
    model = build(llama().double())
    assert read(model, sequences(IDS.tolist(), [[1] * 3] * 2)).dtype == torch.float64


def test_lora_on_a_table_is_refused():
    with pytest.raises(ConfigError, match=r"model\.lora does not fit TabularBackbone"):
        build(tabular(), LORA)


def test_the_score_is_read_at_the_last_real_token_though_pad_is_eos():
    """A trained EOS ends the first row, padding with the same id follows; the second has no EOS at all."""
    values = torch.arange(10.0).view(2, 5)
    right = sequences([[4, 1, EOS, EOS, EOS], [5, 1, 2, 3, EOS]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    left = sequences([[EOS, EOS, 4, 1, EOS], [EOS, 5, 1, 2, 3]], [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    assert last_token_scores(values, right).tolist() == [2, 8]
    assert last_token_scores(values, left).tolist() == [4, 9]


@pytest.mark.parametrize("policy", POLICIES)
def test_scores_do_not_depend_on_padding(policy):
    model = build(policy())
    alone = sequences([[4, 1, EOS]], [[1, 1, 1]])
    padded = sequences([[4, 1, EOS, EOS, EOS], [EOS, EOS, 4, 1, EOS]], [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    expected = last_token_scores(read(model, alone), alone).expand(2)
    torch.testing.assert_close(last_token_scores(read(model, padded), padded), expected)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_critic_starts_as_the_reward_model_and_trains_apart(lora):
    reward = build(llama(), lora)
    expected_trainable = [p.requires_grad for p in reward.parameters()]
    reward.requires_grad_(False)
    critic = critic_from(reward)
    batch = sequences(IDS.tolist(), [[1] * 3] * 2)
    before = read(reward, batch)
    assert torch.equal(read(critic, batch), before)
    assert [p.requires_grad for p in critic.parameters()] == expected_trainable
    assert not any(p.requires_grad for p in reward.parameters())
    with torch.no_grad():
        critic.head.weight.add_(1.0)
    assert torch.equal(read(reward, batch), before)
