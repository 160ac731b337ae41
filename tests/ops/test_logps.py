import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlpref.ops.logps import compare, completion_logits, decayed_sum, read_completions, token_logps
from rlpref.rollout.sampler import sample
from rlpref.testbed.exact import sequence_kl
from rlpref.testbed.task import make_testbed
from rlpref.types import Prompts, Sequences

PROMPTS = [[3, 5], [7], [2, 2, 9, 4]]
ANSWERS = [[4, 8, 1, 0], [6, 0], [11, 3, 10]]


def gpt2(attn_implementation):
    config = GPT2Config(
        attn_implementation=attn_implementation,
        vocab_size=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).double().eval()


@pytest.fixture(params=["llama-sdpa", "llama-packed", "gpt2-sdpa", "gpt2-packed"])
def model(request, random_llama):
    name, attention = request.param.split("-")
    return random_llama(attn_implementation=attention) if name == "llama" else gpt2(attention)


def batch(rows, left=False, extra=0):
    """The given rows as Sequences, padded with tokens that mean something (id 7) on one side."""
    width = max(len(PROMPTS[i]) + len(ANSWERS[i]) for i in rows) + extra
    ids = torch.full((len(rows), width), 7)
    attention, mask = torch.zeros(2, len(rows), width, dtype=torch.bool).unbind()
    for r, i in enumerate(rows):
        tokens = PROMPTS[i] + ANSWERS[i]
        start = width - len(tokens) if left else 0
        ids[r, start : start + len(tokens)] = torch.tensor(tokens)
        attention[r, start : start + len(tokens)] = True
        mask[r, start + len(PROMPTS[i]) : start + len(tokens)] = True
    return Sequences(ids, attention, mask)


def scored(values, sequences):
    """The values of each row's completion tokens, without the padding."""
    return [row[kept] for row, kept in zip(values.detach(), sequences.mask)]


def by_hand(model, i, temperature=1.0):
    """(log-probs, entropies) of one answer: a plain pass, log_softmax, one token at a time."""
    tokens = torch.tensor([PROMPTS[i] + ANSWERS[i]])
    with torch.no_grad():
        table = (model(input_ids=tokens).logits[0] / temperature).log_softmax(-1)
    before = range(len(PROMPTS[i]) - 1, tokens.shape[1] - 1)
    logps = torch.stack([table[t, tokens[0, t + 1]] for t in before])
    return logps, torch.stack([-(table[t].exp() * table[t]).sum() for t in before])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies_are_the_definition(model, temperature):
    sequences = batch([0, 1, 2])
    logps, entropy = token_logps(model, sequences, temperature, entropy=True)
    for i in range(3):
        expected = by_hand(model, i, temperature)
        torch.testing.assert_close(scored(logps, sequences)[i], expected[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(scored(entropy, sequences)[i], expected[1], atol=1e-10, rtol=0)
    assert (logps[~sequences.mask] == 0).all()
    assert (entropy[~sequences.mask] == 0).all()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], [1]], ids=str)
def test_padding_side_width_and_company_change_nothing(model, left, extra, rows):
    sequences = batch(rows, left, extra)
    found = scored(token_logps(model, sequences)[0], sequences)
    for r, i in enumerate(rows):
        torch.testing.assert_close(found[r], by_hand(model, i)[0], atol=1e-10, rtol=0)


def test_lower_precision_is_scored_in_fp32(random_llama):
    logits, _ = completion_logits(random_llama(dtype=torch.bfloat16), batch([0]))
    assert logits.dtype == torch.float32


def test_a_batch_without_completions_scores_nothing(model):
    sequences = batch([0, 1])
    sequences.mask = torch.zeros_like(sequences.mask)
    logps, _ = token_logps(model, sequences)
    assert logps.shape == sequences.ids.shape
    assert (logps == 0).all()


def test_what_is_not_scored_may_hold_ids_that_the_model_reads_but_never_writes(task, testbed_models):
    """A second prompt token and padding of id 4 beside scored columns; the table writes 0 to 2."""
    model = testbed_models(task).policy
    ids = torch.tensor([[4, 1, 0, 4], [4, 4, 1, 0]])
    attention = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    sequences = Sequences(ids, attention, torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool())
    logps, _ = token_logps(model, sequences)
    assert torch.equal(logps[0, 1:3], logps[1, 2:])
    read = read_completions(model, sequences)
    assert torch.equal(compare(read, read).logps, logps)


def test_both_kl_estimates_have_the_exact_sequence_kl_as_their_mean(random_policy, testbed_models):
    """Per prompt, within 4 standard errors; and summing exact per-token KLs is the steadier of the two."""
    task = make_testbed(vocab=4, horizon=3, prompts=2, seed=0, reward="ngram")
    policy = random_policy(task, seed=1)
    models = testbed_models(task, policy)
    prompts = Prompts(torch.tensor([[4], [5]]), torch.ones(2, 1, dtype=torch.bool))
    n = 4000
    samples = sample(models.policy, prompts, n, 3, 1.0, 0, [torch.Generator().manual_seed(0)], batch_size=2 * n)
    with torch.no_grad():
        read, ref = (read_completions(one, samples.sequences) for one in (models.policy, models.initial.model))
    compared = compare(read, ref)
    exact = sequence_kl(task, policy, task.ref)
    spreads = []
    for per_token in (compared.kl, compared.logps - compared.ref_logps):
        estimates = per_token.sum(1).double().view(2, n)
        errors = estimates.std(1) / n**0.5
        assert ((estimates.mean(1) - exact).abs() < 4 * errors).all()
        spreads.append(errors)
    assert (spreads[0] < 0.8 * spreads[1]).all()
    assert (compared.kl >= -1e-6).all()


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_a_comparison_holds_what_the_log_prob_path_computes(random_llama, attention):
    policy, ref = (random_llama(seed, attn_implementation=attention) for seed in (0, 1))
    sequences = batch([0, 1, 2], left=True)
    with torch.no_grad():
        compared = compare(*(read_completions(one, sequences, 0.8) for one in (policy, ref)))
        logps, entropy = token_logps(policy, sequences, 0.8, entropy=True)
        ref_logps, _ = token_logps(ref, sequences, 0.8)
    torch.testing.assert_close(compared.logps, logps)
    torch.testing.assert_close(compared.ref_logps, ref_logps)
    torch.testing.assert_close(compared.entropy, entropy)
    assert (compared.kl[sequences.mask] > 0).all()
    assert (compared.kl[~sequences.mask] == 0).all()


def test_decayed_sum_weights_the_tail_and_nothing_else():
    logps = torch.tensor([[-9.0, -1.0, -2.0, -4.0], [-1.0, -2.0, -9.0, -9.0]], dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)  # padding on either side, whatever it holds
    shared = torch.tensor([1, 2])
    assert decayed_sum(logps, mask, shared, 0.1).tolist() == pytest.approx([-1.6, -3.0], rel=1e-12)
    assert torch.equal(decayed_sum(logps, mask, shared, 1.0), torch.where(mask, logps, 0.0).sum(1))
    assert decayed_sum(logps, mask, shared, 0.0).tolist() == [-1.0, -3.0]
