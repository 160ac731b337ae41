import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlpref.rewards.gold import VaderScorer
from rlpref.rewards.scorer import completion_ids, completion_texts
from rlpref.types import Sequences

WORDS = ["<eos>", "the", "film", "was", "great", "terrible", "not", "table"]
EOS, THE, FILM, WAS, GREAT, TERRIBLE, NOT, TABLE = range(8)


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def sequences(*rows):
    """Rows of (prompt, completion), padded on the right to a common width with the id of 'terrible'."""
    width = max(len(p) + len(c) for p, c in rows)
    ids, real, mask = [], [], []
    for prompt, completion in rows:
        pad = width - len(prompt) - len(completion)
        ids.append(prompt + completion + [TERRIBLE] * pad)
        real.append([True] * (width - pad) + [False] * pad)
        mask.append([False] * len(prompt) + [True] * len(completion) + [False] * pad)
    return Sequences(torch.tensor(ids), torch.tensor(real), torch.tensor(mask))


def test_only_the_completion_is_scored(tokenizer):
    scores = VaderScorer(tokenizer)(
        sequences(([THE, FILM, WAS], [GREAT, EOS]), ([TERRIBLE], [GREAT, EOS]), ([GREAT], [TERRIBLE, FILM, EOS]))
    )
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert scores[0] == scores[1] == pytest.approx(3.1 / (3.1**2 + 15) ** 0.5, abs=1e-4)  # lexicon valence of "great"
    assert scores[2] < 0


def test_scores_follow_vader_rules_and_lie_in_the_unit_interval(tokenizer):
    great, great_thrice, negated, neutral, longest = VaderScorer(tokenizer)(
        sequences(*(([THE], row) for row in ([GREAT], [GREAT] * 3, [NOT, GREAT], [TABLE], [GREAT] * 40)))
    ).tolist()
    assert negated < 0 == neutral < great < great_thrice < longest <= 1


def test_an_answer_without_text_scores_zero(tokenizer):
    assert VaderScorer(tokenizer)(sequences(([GREAT], [EOS]), ([GREAT], []))).tolist() == [0.0, 0.0]


def test_left_padding_and_row_order_change_nothing(tokenizer):
    batch = sequences(([THE], [GREAT]), ([THE, FILM], [TERRIBLE, EOS]), ([THE], [NOT, GREAT]))
    scorer = VaderScorer(tokenizer)
    padded = batch.map(lambda t: torch.cat([torch.zeros_like(t[:, :2]), t], 1))
    assert scorer(padded).equal(scorer(batch))
    order = torch.tensor([2, 0, 1])
    assert scorer(batch[order]).equal(scorer(batch)[order])


def test_texts_and_ids_are_read_by_the_mask(tokenizer):
    batch = sequences(([THE, FILM], [WAS, GREAT, EOS]), ([THE], [GREAT]))
    assert completion_ids(batch) == [[WAS, GREAT, EOS], [GREAT]]
    assert completion_texts(tokenizer, batch) == ["was great", "great"]


def test_the_name_is_stable(tokenizer):
    assert VaderScorer(tokenizer).name == "vader"
