"""Bradley-Terry pairs of the testbed: two answers of the reference, labelled by the gold reward."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.data.context import DataContext, RowSplit
from rlpref.data.rows import Row
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.task import Testbed, conditionals
from rlpref.testbed.tokenizer import answer_words, prompt_word


def testbed(context: DataContext, pairs: int, test_pairs: int) -> RowSplit:
    """`pairs` pairs to learn from and `test_pairs` held-out ones, drawn with `data.seed`.

    The testbed has few prompts, so both parts contain all of them: held out are the pairs, not the prompts.
    """
    if context.task is None:
        raise ConfigError("data 'testbed' needs a testbed model: set model=tabular or model=tiny.")
    with torch.no_grad():
        ref = conditionals(context.task, context.model, context.temperature).cpu()
    generator = torch.Generator().manual_seed(context.seed)
    rows = _rows(context.task, answer_logps(context.task, ref).flatten(1).exp(), pairs + test_pairs, generator)
    return RowSplit(train=rows[:pairs], test=rows[pairs:], skipped=0)


testbed.__test__ = False


def _rows(task: Testbed, mass: Tensor, n: int, generator: torch.Generator) -> list[Row]:
    tree = task.tree
    prompt = torch.randint(tree.prompts, (n,), generator=generator)
    # Inverse CDF on pre-drawn uniforms: multinomial over [n, answers] would build that whole matrix.
    edges = (mass / mass.sum(1, keepdim=True)).cumsum(1)
    uniform = torch.rand(tree.prompts, n, 2, generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(edges, uniform.view(tree.prompts, -1)).clamp(max=edges.shape[1] - 1)
    answers = drawn.view(tree.prompts, n, 2)[prompt, torch.arange(n)]
    rewards = task.rewards.flatten(1)[prompt[:, None], answers]
    wins = torch.rand(n, generator=generator, dtype=torch.float64) < (rewards[:, 0] - rewards[:, 1]).sigmoid()
    order = torch.where(wins[:, None], torch.tensor([0, 1]), torch.tensor([1, 0]))
    answers, rewards = answers.gather(1, order), rewards.gather(1, order)
    text = answer_texts(task)
    return [
        Row(
            id=f"testbed-{i}",
            prompt=prompt_word(x),
            chosen=text[w],
            rejected=text[r],
            chosen_score=rw,
            rejected_score=rr,
            annotator="bradley-terry",
            group=prompt_word(x),
        )
        for i, (x, (w, r), (rw, rr)) in enumerate(zip(prompt.tolist(), answers.tolist(), rewards.tolist()))
    ]


def answer_texts(task: Testbed) -> list[str]:
    """The words of each finished answer, without EOS, by its place in a flattened [inner, vocab] tensor."""
    words = answer_words(task.tree.vocab)
    texts = []
    for node in range(task.tree.inner):
        prefix = [words[t] for t in task.prefixes[node, : task.depth[node]].tolist()]
        texts += [" ".join(prefix + ([words[last]] if last else [])) for last in range(task.tree.vocab)]
    return texts
