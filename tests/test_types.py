import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpref.types import (
    Answers,
    Lists,
    Pairs,
    Rollouts,
    Sequences,
    cat,
    from_nested,
    pad_to_same_width,
    to_nested,
    token_counts,
)


def sequences(rows, width, seed=0):
    """Rows of random ids with uneven masks: row i has 2 prompt tokens and i % 3 + 1 completion tokens."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(width)
    lengths = (torch.arange(rows) % 3 + 3)[:, None]
    attention = columns < lengths
    return Sequences(torch.randint(1, 9, (rows, width), generator=generator), attention, attention & (columns >= 2))


def pairs(rows, width, **known):
    return Pairs(sequences(rows, width, 1), sequences(rows, width, 2), **known)


def lists(sizes, width, seed=0, **known):
    """A row of so many answers for each of `sizes`."""
    sizes = torch.tensor(sizes)
    present = torch.arange(int(sizes.max())) < sizes[:, None]
    flat = sequences(int(sizes.sum()), width, seed)
    padded = flat.map(lambda t: t.new_zeros(*present.shape, width).masked_scatter(present[..., None], t))
    return Lists(padded, present, torch.randn(present.shape) * present, **known)


def leaves(batch):
    found = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def test_rows_are_chosen_alike_in_every_field_and_none_stays_none():
    batch = pairs(5, 6, ref_chosen=torch.arange(5.0))
    part = batch[torch.tensor([4, 0])]
    assert len(batch) == 5
    assert len(part) == 2
    assert part.ref_chosen.tolist() == [4.0, 0.0]
    assert torch.equal(part.rejected.mask, batch.rejected.mask[[4, 0]])
    assert part.ref_rejected is None
    assert len(batch[torch.tensor([True, False, True, False, False])]) == 2


def test_cat_pads_on_the_right_with_what_no_mask_reads():
    a, b = sequences(2, 5), sequences(3, 7, seed=1)
    both = cat([a, b])
    assert both.ids.shape == (5, 7)
    assert torch.equal(both.ids[:2, :5], a.ids)
    assert not both.attention_mask[:2, 5:].any()
    assert not both.mask[:2, 5:].any()
    assert torch.equal(both[2:].ids, b.ids)
    assert both.lengths.tolist() == a.lengths.tolist() + b.lengths.tolist()


def test_cat_of_nested_batches_and_a_field_that_only_some_have():
    known = {"ref_chosen": torch.zeros(2), "ref_rejected": torch.ones(2)}
    both = cat([pairs(2, 5, **known), pairs(2, 8, **known)])
    assert both.chosen.ids.shape == (4, 8)
    assert both.ref_rejected.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="None in some"):
        cat([pairs(2, 5), pairs(2, 5, **known)])


def test_one_dimensional_tensors_are_not_padded():
    first, second = pad_to_same_width([torch.ones(2), torch.ones(3)])
    assert (len(first), len(second)) == (2, 3)


@pytest.mark.parametrize(
    "batch",
    [
        pairs(3, 5, ref_chosen=torch.randn(3)),
        Rollouts(sequences(3, 5), *(torch.randn(3, 5) for _ in range(5)), torch.randn(3)),
        sequences(2, 4),
        lists([2, 3], 5, ref=torch.zeros(2, 3)),
        Answers(sequences(3, 5), torch.tensor([True, False, True]), mismatched=sequences(3, 6)),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_survives_a_checkpoint_file(batch):
    file = io.BytesIO()
    torch.save(to_nested(batch), file)
    file.seek(0)
    back = from_nested(torch.load(file, weights_only=True))
    assert type(back) is type(batch)
    assert [n for n, v in back.items() if v is None] == [n for n, v in batch.items() if v is None]
    assert all(torch.equal(a, b) for a, b in zip(leaves(back), leaves(batch), strict=True))


def test_no_batch_survives_too():
    assert from_nested(to_nested(None)) is None


def test_positions_count_real_tokens_whatever_the_padding():
    attention = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    batch = Sequences(torch.zeros(2, 5, dtype=torch.long), attention, attention)
    assert batch.position_ids[0, 2:].tolist() == [0, 1, 2]
    assert batch.position_ids[1, :2].tolist() == [0, 1]
    assert (batch.position_ids >= 0).all()


def test_trimmed_drops_only_columns_that_no_row_uses():
    attention = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]], dtype=torch.bool)
    batch = Sequences(torch.arange(10).view(2, 5), attention, attention)
    trimmed = batch.trimmed()
    assert trimmed.ids.tolist() == [[1, 2, 3], [6, 7, 8]]
    assert torch.equal(trimmed.lengths, batch.lengths)


def test_trimmed_rollouts_stay_aligned_in_every_field():
    attention = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    columns = torch.arange(8.0).view(2, 4)
    rollouts = Rollouts(
        Sequences(columns.long(), attention, attention),
        *(columns + 10 * field for field in range(5)),
        scores=torch.tensor([1.0, 2.0]),
    )
    trimmed = rollouts.trimmed()
    assert trimmed.sequences.ids.tolist() == [[1, 2], [5, 6]]
    assert torch.equal(trimmed.returns, columns[:, 1:3] + 40)
    assert torch.equal(trimmed.scores, rollouts.scores)


@given(st.lists(st.integers(2, 4), min_size=1, max_size=5), st.integers(5, 7))
def test_flat_holds_the_answers_that_are_there_and_unflat_puts_values_back(sizes, width):
    batch = lists(sizes, width)
    flat = batch.flat()
    assert len(flat) == sum(sizes)
    assert flat.attention_mask.any(1).all()
    assert torch.equal(batch.unflat(batch.scores[batch.present]), batch.scores)
    number = batch.unflat(torch.arange(1.0, sum(sizes) + 1))
    assert number[batch.present].tolist() == list(range(1, sum(sizes) + 1))
    assert not number[~batch.present].any()
    at = [(row, k) for row, size in enumerate(sizes) for k in range(size)]
    assert all(torch.equal(flat.ids[n], batch.answers.ids[row, k]) for n, (row, k) in enumerate(at))


def test_gradients_go_back_through_unflat_to_each_answer_once():
    batch = lists([2, 3], 5)
    values = torch.randn(5, requires_grad=True)
    (batch.unflat(values) * torch.arange(6.0).view(2, 3)).sum().backward()
    assert values.grad.tolist() == [0.0, 1.0, 3.0, 4.0, 5.0]


def test_cat_of_lists_pads_answers_and_columns():
    small, large = lists([2, 1], 5, ref=torch.ones(2, 2)), lists([3], 7, seed=1, ref=torch.ones(1, 3))
    both = cat([small, large])
    assert both.answers.ids.shape == (3, 3, 7)
    assert both.present.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert both.ref[:2].tolist() == [[1.0, 1.0, 0.0]] * 2
    assert not both.answers.attention_mask[:2, 2:].any()
    assert torch.equal(both.flat().ids[:3, :5], small.flat().ids)
    assert torch.equal(both.flat().ids[3:], large.flat().ids)
    assert torch.equal(both[torch.tensor([2])].flat().lengths, large.flat().lengths)


def test_token_counts_are_the_real_tokens_of_all_sequences_of_a_row():
    batch = lists([2, 3], 6)
    assert token_counts(batch).tolist() == [3 + 4, 5 + 3 + 4]
    both = Answers(sequences(3, 5), torch.ones(3, dtype=torch.bool), mismatched=sequences(3, 8))
    assert token_counts(both).tolist() == [6, 8, 10]
    assert token_counts(Answers(sequences(3, 5), both.label)).tolist() == [3, 4, 5]


def test_answers_of_lists_have_lengths_positions_and_unused_columns():
    answers = lists([1, 2], 8).answers
    assert answers.lengths.tolist() == [[1, 0], [2, 3]]
    assert answers.position_ids[1, 1, :5].tolist() == [0, 1, 2, 3, 4]
    assert answers.trimmed().ids.shape == (2, 2, 5)
