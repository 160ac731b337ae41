"""The bad tokens of the credit exhibit, against a search through all answers by hand."""

import torch

import runs
from rlpref.testbed.optima import optimum
from rlpref.testbed.task import answer_tokens, make_testbed

credit = runs.experiment("f21_credit")


def test_each_bad_answer_differs_in_one_token_the_costliest():
    task = make_testbed(vocab=4, horizon=3, prompts=2, seed=0, reward="ngram")
    rows = [tuple(tokens) for tokens in answer_tokens(task).flatten(0, 1).tolist()]
    bad = credit.corrupted(task, optimum(task, task.ref, task.rewards, 0.5).policy, 5)
    assert bad.shape == (2, 5, 3, 3)
    for prompt in range(2):
        worth = dict(zip(rows, task.rewards[prompt].flatten().tolist()))
        for answers in bad[prompt].tolist():
            good = [answers[1][0], answers[0][1], answers[0][2]]
            for position in range(3):
                others = [token for token in (1, 2, 3) if token != good[position]]
                tried = [(*good[:position], token, *good[position + 1 :]) for token in others]
                assert tuple(answers[position]) == min(tried, key=worth.get)


def test_a_table_is_read_along_an_answer():
    task = make_testbed(vocab=4, horizon=3, prompts=2, seed=0, reward="ngram")
    found = credit.along(task.ref, torch.tensor([[[2, 1, 0]], [[3, 3, 1]]]))
    node = {tuple(prefix): i for i, prefix in enumerate(task.prefixes.tolist())}
    assert found[0, 0, 2] == task.ref[0, node[2, 1, -1], 0]
    assert found[1, 0, 1] == task.ref[1, node[3, -1, -1], 3]
