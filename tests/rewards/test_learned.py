import pytest
import torch

from rlpref.models.heads import answer_scores, scalar_model
from rlpref.rewards.learned import LearnedReward
from rlpref.types import Sequences

EOS = 0


@pytest.fixture
def model(random_llama):
    return scalar_model(random_llama(), None, torch.Generator().manual_seed(0))


def rows(tokens, left=False, extra=0):
    """Padding is EOS, as with models whose pad token is their EOS."""
    width = max(map(len, tokens)) + extra
    ids = torch.full((len(tokens), width), EOS)
    real = torch.zeros(len(tokens), width, dtype=torch.bool)
    for i, row in enumerate(tokens):
        start = width - len(row) if left else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        real[i, start : start + len(row)] = True
    return Sequences(ids, real, real)


ANSWERS = [[3, 5, 8, EOS], [4, 2], [7, EOS], [1, 9, 9]]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("extra", [0, 3])
def test_the_score_is_the_heads_number_after_the_last_real_token(model, left, extra):
    found = answer_scores(model, rows(ANSWERS, left, extra)).detach()
    for score, tokens in zip(found, ANSWERS):
        alone = torch.tensor([tokens])
        hidden = model.backbone(input_ids=alone).last_hidden_state[0, -1]
        torch.testing.assert_close(score, model.head(hidden)[0].detach(), atol=1e-6, rtol=0)


def test_an_answers_own_eos_is_read_and_padding_is_not(model):
    with_eos, without = rows([[3, 5, EOS], [3, 5]]), rows([[3, 5], [3, 5]])
    scores = answer_scores(model, with_eos)
    torch.testing.assert_close(scores[1], answer_scores(model, without)[0], atol=1e-6, rtol=0)
    assert abs(scores[0] - scores[1]) > 1e-3


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_give_the_same_scores_and_no_gradient(model, chunk):
    batch = rows(ANSWERS)
    found = LearnedReward(model, chunk)(batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, answer_scores(model, batch).detach(), atol=1e-6, rtol=0)
