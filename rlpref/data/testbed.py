"""Pairs of the testbed: two answers from a chosen distribution, labelled by a chosen model of preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlpref.binding import ConfigError
from rlpref.data.context import DataContext, RowSplit
from rlpref.data.rows import Row
from rlpref.testbed.coverage import NearPairs, draw_pairs, pair_distribution
from rlpref.testbed.preferences import Preference, preference_model
from rlpref.testbed.task import Testbed, conditionals
from rlpref.testbed.tokenizer import answer_words, prompt_word


def testbed(
    context: DataContext,
    pairs: int,
    test_pairs: int,
    preference: str,
    preference_options: Mapping[str, Any] | None,
    pairs_from: str,
    pairs_from_options: Mapping[str, Any] | None,
) -> RowSplit:
    """`pairs` pairs to learn from and `test_pairs` held-out ones, drawn with `data.seed`.

    `pairs_from` names the distribution of the answers (rlpref.testbed.coverage), made from the run's reference, and
    `preference` the model that labels them (rlpref.testbed.preferences). Pairs that the model leaves undecided
    are drawn, dropped and counted as skipped. The testbed has few prompts, so both parts contain all of them: held
    out are the pairs, not the prompts. Raises ConfigError for options that the two do not use.
    """
    task = context.task
    if task is None:
        raise ConfigError("data 'testbed' needs a testbed model: set model=tabular or model=tiny.")
    with torch.no_grad():
        ref = conditionals(task, context.model, context.temperature).cpu()
    source = pair_distribution(pairs_from, pairs_from_options)(task, ref)
    judged = preference_model(preference, preference_options)(task)
    generator = torch.Generator().manual_seed(context.seed)
    rows = _rows(task, source, judged, preference.replace("_", "-"), pairs + test_pairs, generator)
    train, test = ([row for row in part if row is not None] for part in (rows[:pairs], rows[pairs:]))
    if not train or not test:
        raise ConfigError(f"data.preference '{preference}' leaves no pair decided; use another option or more pairs.")
    return RowSplit(train, test, skipped=len(rows) - len(train) - len(test), drawn_from=source)


testbed.__test__ = False


def _rows(
    task: Testbed,
    source: torch.Tensor | NearPairs,
    preference: Preference,
    annotator: str,
    n: int,
    generator: torch.Generator,
) -> list[Row | None]:
    """n rows; None where the pair stays undecided."""
    prompt, answers = draw_pairs(task, source, n, generator)
    rewards = task.rewards.flatten(1)[prompt[:, None], answers]
    first, second = answers.T
    wins = torch.rand(n, generator=generator, dtype=torch.float64) < preference(prompt, first, second)
    decided = torch.ones(n, dtype=torch.bool)
    if preference.decided:
        decided = torch.rand(n, generator=generator, dtype=torch.float64) < preference.decided(prompt, first, second)
    order = torch.where(wins[:, None], torch.tensor([0, 1]), torch.tensor([1, 0]))
    answers, rewards = answers.gather(1, order), rewards.gather(1, order)
    text = answer_texts(task)
    columns = (column.tolist() for column in (prompt, answers, rewards, decided))
    return [
        Row(
            id=f"testbed-{i}",
            prompt=prompt_word(x),
            chosen=text[w],
            rejected=text[r],
            chosen_score=rw,
            rejected_score=rr,
            annotator=annotator,
            group=prompt_word(x),
        )
        if clear
        else None
        for i, (x, (w, r), (rw, rr), clear) in enumerate(zip(*columns))
    ]


def answer_texts(task: Testbed) -> list[str]:
    """The words of each finished answer, without EOS, by its place in a flattened [inner, vocab] tensor."""
    words = answer_words(task.tree.vocab)
    texts = []
    for tokens, depth in zip(task.prefixes.tolist(), task.depth.tolist()):
        prefix = [words[t] for t in tokens[:depth]]
        texts += [" ".join(prefix + ([words[last]] if last else [])) for last in range(task.tree.vocab)]
    return texts
