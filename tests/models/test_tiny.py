import pytest
import torch

from rlpref.models.tiny import imitate, tiny_llama
from rlpref.testbed.task import conditionals, make_testbed

SIZES = {"vocab": 4, "horizon": 3, "prompts": 2}


def llama(seed=0):
    return tiny_llama(**SIZES, hidden_size=16, layers=1, heads=2, seed=seed)


def test_it_reads_prompts_and_writes_answers():
    model = llama()
    ids = torch.tensor([[5, 3, 0]])  # prompt 1, token 3, EOS
    assert model(input_ids=ids).logits.shape == (1, 3, SIZES["vocab"])
    assert model.get_input_embeddings().num_embeddings == SIZES["vocab"] + SIZES["prompts"]
    assert not model.training


def test_its_weights_follow_its_seed_and_nothing_else():
    torch.manual_seed(1)
    first, after = llama(), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), llama().parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, llama(seed=1).lm_head.weight)


def test_imitation_lowers_the_kl_from_the_target():
    task = make_testbed(**SIZES, seed=0, reward="ngram")
    model = llama()

    def kl():
        with torch.no_grad():
            return float((task.ref.exp() * (task.ref - conditionals(task, model))).sum(-1).mean())

    before = kl()
    last = imitate(model, lambda m: conditionals(task, m), task.ref, steps=60, lr=0.01)
    assert kl() < 0.3 * before
    assert last == pytest.approx(kl(), rel=0.1)
