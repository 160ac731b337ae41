"""The pairs that both sides train on, and the FLOPs that they need, counted by hand and by torch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_dpo import require_same_ids
from work import PairTokens, as_text, encode, first_pairs, lengths, needed_flops


@pytest.fixture
def tokenizer(work):
    return AutoTokenizer.from_pretrained(work.model)


def test_pairs_are_the_first_that_fit(work, tokenizer):
    rows = first_pairs(work)
    assert [row.id for row in rows] == ["row-0", "row-1", "row-2", "row-3"]
    pairs = encode(work, tokenizer, rows)
    tokens = [len(tokenizer(as_text(tokenizer, row)["prompt"])["input_ids"]) for row in rows]
    assert [pair.prompt for pair in lengths(pairs)] == tokens
    assert [pair.chosen for pair in lengths(pairs)] == [6, 7, 8, 9]  # "great" with EOS, and more exclamation marks


def test_too_long_pairs_are_refused(work):
    from dataclasses import replace

    with pytest.raises(ValueError, match="0 pairs of at most 10 tokens"):
        first_pairs(replace(work, max_length=10))


def test_other_tokens_than_ours_are_an_error(work, tokenizer):
    rows = first_pairs(work)
    pairs = encode(work, tokenizer, rows)
    same = [
        {f"{side}_ids": ids.tolist() for side, ids in each.items()}
        for each in (
            {
                "prompt": pairs.chosen.ids[i][pairs.chosen.attention_mask[i] & ~pairs.chosen.mask[i]],
                "chosen": pairs.chosen.ids[i][pairs.chosen.mask[i]],
                "rejected": pairs.rejected.ids[i][pairs.rejected.mask[i]],
            }
            for i in range(len(rows))
        )
    ]
    require_same_ids(same, pairs)
    same[1]["rejected_ids"].append(5)
    with pytest.raises(RuntimeError, match=r"pair 1 \(rejected\)"):
        require_same_ids(same, pairs)


def test_flops_are_those_that_torch_counts(work):
    """A pair whose answers are one token each is a single sequence: the prompt, whose last token is scored twice."""
    model = AutoModelForCausalLM.from_pretrained(work.model, attn_implementation="eager")
    prompt = torch.randint(1, 200, (1, 20))
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(input_ids=prompt).last_hidden_state
        logits = model.lm_head(torch.cat([hidden[:, -1:], hidden[:, -1:]]))
        logits.logsumexp(-1).sum().backward()
    needed = needed_flops(work.model, [PairTokens(20, 1, 1)])
    full = needed["attention"] * 20 / (21 / 2)  # the eager layers compute all 20 x 20 scores, of which half are needed
    # the first layer's inputs are embeddings, whose gradient torch needs too: nothing is left out
    assert counter.get_total_flops() == pytest.approx(needed["layers"] + needed["head"] + full, rel=1e-6)
