import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpref.data.tokenise import pad_sequences
from rlpref.data.unpaired import mismatched, unpair
from rlpref.types import Pairs, cat


def batch(prompts, mark=100):
    """Row i: a prompt of prompts[i] % 3 + 1 tokens, and a completion of i % 2 + 1 tokens that tells the row."""
    rows = range(len(prompts))
    return pad_sequences([[p + 1] * (p % 3 + 1) for p in prompts], [[mark + i] * (i % 2 + 1) for i in rows])


def parts(sequences):
    """(prompt tokens, completion tokens) of each row."""
    prompt = sequences.attention_mask & ~sequences.mask
    return [(ids[p].tolist(), ids[c].tolist()) for ids, p, c in zip(sequences.ids, prompt, sequences.mask)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_a_completion_comes_whole_from_a_row_with_another_prompt(prompts):
    own = parts(batch(prompts))
    found = parts(mismatched(batch(prompts)))
    assert [prompt for prompt, _ in found] == [prompt for prompt, _ in own]
    for i, (_, completion) in enumerate(found):
        source = completion[0] - 100
        assert completion == own[source][1]
        if len(set(prompts)) > 1:
            assert prompts[source] != prompts[i]
        elif len(prompts) > 1:
            assert source == (i + 1) % len(prompts)


def test_completions_of_different_prompts_are_rolled_by_one():
    found = mismatched(batch([0, 1, 2, 3]))
    assert [completion[0] for _, completion in parts(found)] == [101, 102, 103, 100]
    assert (found.ids[~found.attention_mask] == 0).all()
    assert found.attention_mask.int().diff(dim=1).max() <= 0, "padded on the right"


def test_a_stretch_of_one_prompt_takes_its_completions_in_turn_from_the_next():
    found = parts(mismatched(batch([0, 0, 1, 1, 1, 0])))
    assert [completion[0] - 100 for _, completion in found] == [2, 3, 5, 5, 5, 2]


def test_padding_may_stand_on_the_left():
    right = batch([0, 1, 2, 1])
    left = right.map(torch.clone)
    for row, size in enumerate(right.attention_mask.sum(1).tolist()):
        shift = right.ids.shape[1] - size
        left.ids[row], left.attention_mask[row], left.mask[row] = (
            tensor[row].roll(shift) for tensor in (right.ids, right.attention_mask, right.mask)
        )
    assert parts(mismatched(left)) == parts(mismatched(right))


def pairs(prompts, mark=0, **columns):
    return Pairs(batch(prompts, 100 + mark), batch(prompts, 200 + mark), **columns)


def test_each_pair_gives_a_desirable_and_an_undesirable_answer():
    columns = {"weight": torch.tensor([1.0, 0.5]), "soft_label": torch.tensor([0.6, 0.9])}
    columns |= {"ref_chosen": torch.tensor([-1.0, -2.0]), "ref_rejected": torch.tensor([-3.0, -4.0])}
    columns |= {"chosen_score": torch.tensor([5.0, 6.0])}
    answers = unpair(pairs([0, 1], **columns))
    assert [completion[0] for _, completion in parts(answers.sequences)] == [100, 101, 200, 201]
    assert answers.label.tolist() == [True, True, False, False]
    assert answers.ref.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert answers.weight.tolist() == [1.0, 0.5, 1.0, 0.5]
    assert answers.score is None, "only one side has scores"
    assert [prompt for prompt, _ in parts(answers.mismatched)] == [prompt for prompt, _ in parts(answers.sequences)]
    assert answers.ref_mismatched is None


def test_runs_side_by_side_have_the_answers_they_would_have_alone():
    own = [pairs([0, 1, 1]), pairs([2, 2, 3], mark=50)]
    alone, together = [unpair(run) for run in own], unpair(cat(own), runs=2)
    for name in ("sequences", "mismatched"):
        expected = [row for run in alone for row in parts(getattr(run, name))]
        assert parts(getattr(together, name)) == expected
    assert together.label.tolist() == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3
