import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpref.models.bundle import distinct
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
