import pytest
import torch

from rlpref.models.tabular import AnswerTree, TabularLM

VOCAB, HORIZON, PROMPTS = 3, 3, 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    table = TabularLM(VOCAB, HORIZON, PROMPTS)
    torch.nn.init.normal_(table.model.rows.weight)
    return table


def rows(*answers):
    """Prompt 0 or 1 by turns, then the answer; padded on the right with a real token's id."""
    width = 1 + max(len(answer) for answer in answers)
    ids = torch.full((len(answers), width), 1)
    mask = torch.zeros(len(answers), width, dtype=torch.bool)
    for i, answer in enumerate(answers):
        ids[i, : len(answer) + 1] = torch.tensor([VOCAB + i % PROMPTS, *answer])
        mask[i, : len(answer) + 1] = True
    return ids, mask


def test_every_prefix_has_a_state_of_its_own():
    tree = AnswerTree(VOCAB, HORIZON, PROMPTS)
    seen = set()

    def walk(state, depth):
        assert int(state) not in seen
        seen.add(int(state))
        if depth == HORIZON:
            return
        for token in range(VOCAB):
            after = tree.step(state, torch.tensor([token]))
            if token == 0:
                assert int(after) not in seen
                seen.add(int(after))
            else:
                walk(after, depth + 1)

    for prompt in range(PROMPTS):
        walk(tree.open(torch.tensor([VOCAB + prompt])), 0)
    assert max(seen) < tree.states
    assert min(seen) > 0


@pytest.mark.parametrize("answer", [[0], [2, 0], [1, 2, 1], [2, 2, 0]])
def test_a_finished_answer_stays_where_it_is(answer):
    tree = AnswerTree(VOCAB, HORIZON, PROMPTS)
    state = tree.open(torch.tensor([VOCAB + 1]))
    for token in answer:
        state = tree.step(state, torch.tensor([token]))
    for token in range(VOCAB):
        assert torch.equal(tree.step(state, torch.tensor([token])), state)


def test_reading_token_by_token_through_the_cache_is_reading_at_once(model):
    ids, mask = rows([1, 2], [2, 1], [1, 1])
    full = model(input_ids=ids, attention_mask=mask.long()).logits
    cache, steps = None, []
    for t in range(ids.shape[1]):
        out = model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1].long(), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert torch.equal(torch.cat(steps, 1), full)


def test_a_cache_repeats_and_selects_its_rows(model):
    ids, mask = rows([1, 2], [2, 1])
    cache = model(ids[:, :2], attention_mask=mask[:, :2]).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    found = model(ids[[1, 0], 2:], attention_mask=mask[[1, 0]], past_key_values=cache).logits[:, 0]
    assert torch.equal(found, model(ids, attention_mask=mask).logits[[1, 0], 2])


@pytest.mark.parametrize("left", [True, False])
def test_padding_leaves_the_state_alone(model, left):
    ids, mask = rows([1, 2], [2], [1, 1, 2])
    pads = (2, 0) if left else (0, 2)
    wide = torch.nn.functional.pad(ids, pads, value=2), torch.nn.functional.pad(mask, pads)
    found, alone = model(*wide).logits, model(ids, mask).logits
    assert torch.equal(found[wide[1]], alone[mask])


def test_logits_to_keep_are_the_last_columns(model):
    ids, mask = rows([1, 2], [2, 1])
    full = model(ids, mask).logits
    assert torch.equal(model(ids, mask, logits_to_keep=2).logits, full[:, -2:])
    assert full.shape == (2, 3, VOCAB)


def test_one_prefix_one_row_of_the_table(model):
    """The gradient of one next-token log-prob touches one row only: nothing is shared."""
    ids, mask = rows([1, 2])
    model(ids, mask).logits[0, 1].logsumexp(0).backward()
    assert (model.model.rows.weight.grad != 0).any(1).sum() == 1
