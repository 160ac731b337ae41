import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlpref.models.tabular import TabularLM
from rlpref.ops.logps import token_logps
from rlpref.rollout.sampler import sample
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.task import make_testbed
from rlpref.types import Prompts

EOS = 0


def random_llama():
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def random_gpt2():
    config = GPT2Config(vocab_size=12, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1)
    return GPT2LMHeadModel(config).eval()


def uneven_prompts(low=1, high=12):
    lengths = torch.tensor([1, 5, 3, 4])
    mask = torch.arange(5) >= 5 - lengths[:, None]
    return Prompts(torch.where(mask, torch.randint(low, high, (4, 5)), 0), mask)


@pytest.mark.parametrize("make_model", [random_llama, random_gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_sampled_logps_equal_a_teacher_forced_pass(make_model, temperature):
    torch.manual_seed(0)
    model, prompts = make_model(), uneven_prompts()
    samples = sample(model, prompts, 5, 8, temperature, EOS, [torch.Generator().manual_seed(1)])
    forced, _ = token_logps(model, samples.sequences, temperature)
    assert (samples.sequences.lengths < 8).any()  # some rows finish early and leave the batch
    assert (samples.sequences.lengths == 8).any()
    torch.testing.assert_close(samples.logps, forced.detach(), atol=1e-4, rtol=0)


def test_answers_stop_at_eos_and_follow_their_prompt():
    torch.manual_seed(0)
    model, prompts = random_llama(), uneven_prompts()
    samples = sample(model, prompts, 3, 6, 1.0, EOS, [torch.Generator().manual_seed(1)])
    assert samples.prompt.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for row, prompt in enumerate(samples.prompt):
        real = samples.sequences.ids[row][samples.sequences.attention_mask[row]]
        expected = prompts.ids[prompt][prompts.attention_mask[prompt]]
        assert real[: len(expected)].tolist() == expected.tolist()
        answer = samples.sequences.ids[row][samples.sequences.mask[row]].tolist()
        assert real[len(expected) :].tolist() == answer
        assert EOS not in answer[:-1]
        assert answer[-1] == EOS or len(answer) == 6


def test_answers_do_not_depend_on_how_prompts_are_batched_in_distribution():
    """Samples of the tabular model follow its exact distribution (chi-squared at 5 sigma), batched unevenly."""
    task = make_testbed(3, 2, 2, seed=1, reward="ngram")
    model = TabularLM(3, 2, 2).set_conditionals(task.ref)
    prompts = Prompts(torch.tensor([[3], [4]]), torch.ones(2, 1, dtype=torch.bool))
    n = 4000
    samples = sample(model, prompts, n, 2, 1.0, EOS, [torch.Generator().manual_seed(0)], batch_size=1000)
    tree = task.tree
    state = tree.read(samples.sequences.ids, samples.sequences.attention_mask, torch.zeros(2 * n).long())[:, -1]
    leaf = (state - 1) % tree.per_prompt - tree.inner
    for x in range(2):
        observed = torch.bincount(leaf[samples.prompt == x], minlength=tree.inner * 3).double()
        expected = n * answer_logps(task, task.ref)[x].exp().flatten()
        possible = expected > 0
        assert observed[~possible].sum() == 0
        chi2 = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
        freedom = possible.sum() - 1
        assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_same_generator_same_answers():
    torch.manual_seed(0)
    model, prompts = random_llama(), uneven_prompts()
    a = sample(model, prompts, 2, 6, 1.0, EOS, [torch.Generator().manual_seed(3)])
    b = sample(model, prompts, 2, 6, 1.0, EOS, [torch.Generator().manual_seed(3)])
    assert torch.equal(a.sequences.ids, b.sequences.ids)


def test_a_temperature_below_zero_is_refused():
    with pytest.raises(ValueError, match="temperature >= 0"):
        sample(random_llama(), uneven_prompts(), 1, 2, -1.0, EOS, [torch.Generator()])


def test_temperature_zero_takes_the_likeliest_token_each_time(random_llama):
    model, prompts = random_llama(), uneven_prompts()
    greedy = sample(model, prompts, 2, 6, 0.0, EOS, [torch.Generator()])
    assert (greedy.logps == 0).all()
    answers = greedy.sequences
    for ids, real, scored in zip(answers.ids, answers.attention_mask, answers.mask):
        logits = model(ids[real][None]).logits[0]
        assert torch.equal(logits[:-1].argmax(-1)[scored[real][1:]], ids[scored])


def test_answers_do_not_depend_on_how_many_are_sampled_at_once(random_llama):
    model, prompts = random_llama(), uneven_prompts()
    whole = sample(model, prompts, 3, 6, 1.0, EOS, [torch.Generator().manual_seed(3)])
    parts = sample(model, prompts, 3, 6, 1.0, EOS, [torch.Generator().manual_seed(3)], batch_size=4)
    assert torch.equal(whole.sequences.mask, parts.sequences.mask)
    assert torch.equal(whole.sequences.ids[whole.sequences.mask], parts.sequences.ids[parts.sequences.mask])
