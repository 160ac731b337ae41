import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpref.models import bundle
from rlpref.models.bundle import distinct, in_chunks
from rlpref.types import Sequences


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_rows_that_come_again_are_one(rows):
    """Rows differ where their ids, their padding or their completions do."""
    ids = torch.tensor([[0, number] for number, _, _ in rows])
    real = torch.tensor([[True, kept or scored] for _, kept, scored in rows])
    mask = torch.tensor([[False, scored] for _, _, scored in rows])
    sequences = Sequences(ids, real, mask)
    once, again = distinct(sequences)
    assert len(once) == len({(number, kept or scored, scored) for number, kept, scored in rows})
    for (_, whole), (_, back) in zip(sequences.items(), once[again].items()):
        assert torch.equal(whole, back)


def test_the_reference_reads_an_answer_once(task, testbed_models, testbed_data, monkeypatch):
    models = testbed_models(task)
    pairs, read, forward = testbed_data(task, models).train, [], models.ref.model.forward

    def counting(input_ids, **rest):
        read.append(len(input_ids))
        return forward(input_ids, **rest)

    expected = models.ref_logps(pairs.chosen)
    monkeypatch.setattr(models.ref.model, "forward", counting)
    assert torch.equal(models.ref_logps(pairs.chosen), expected)
    assert sum(read) == len(distinct(pairs.chosen)[0]) < len(pairs)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 30))
def test_passes_hold_so_many_rows_and_tokens_and_no_row_is_lost(lengths, rows, tokens):
    real = torch.arange(9) < torch.tensor(lengths)[:, None]
    sequences = Sequences(torch.arange(len(lengths))[:, None].expand(-1, 9), real, real)
    passes = []

    def seen(part):
        passes.append(int(part.attention_mask.sum()))
        assert len(part) <= rows
        assert len(part) == 1 or passes[-1] <= tokens
        return part.ids[:, 0]

    kept, bundle.TOKENS = bundle.TOKENS, tokens
    try:
        assert in_chunks(seen, sequences, rows).tolist() == [*range(len(lengths))]
    finally:
        bundle.TOKENS = kept
    if rows > len(lengths):  # as few as there can be, one after the other
        for before, first in zip(passes, [sum(passes[:i]) for i in range(1, len(passes))]):
            ends = [sum(lengths[:i]) for i in range(1, len(lengths) + 1)]
            assert before + lengths[ends.index(first) + 1] > tokens
