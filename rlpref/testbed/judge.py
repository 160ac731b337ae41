"""A linear reward model of the testbed, fitted exactly: the AI that labels instead of people."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from rlpref.binding import ConfigError
from rlpref.testbed.coverage import draw_pairs, reference
from rlpref.testbed.rewards import ngram_worth
from rlpref.testbed.task import Testbed, answer_tokens


def judge_scores(
    task: Testbed, label: Callable[..., Tensor], labels: int, generator: torch.Generator, l2: float
) -> Tensor:
    """[prompts, inner, vocab] scores of a model fitted to `labels` pairs of the task's reference, each won by its
    first answer with probability `label(prompt, y, y')`. Raises ConfigError for labels < 1 or l2 <= 0."""
    if labels < 1 or not l2 > 0:
        raise ConfigError(f"data.preference 'judge' needs labels >= 1 and l2 > 0; got {labels} and {l2}.")
    prompt, answers = draw_pairs(task, reference(task, task.ref), labels, generator)
    uniform = torch.rand(labels, generator=generator, dtype=torch.float64)
    first = uniform < label(prompt, answers[:, 0], answers[:, 1])
    chosen, rejected = torch.where(first, answers.T, answers.T.flip(0))
    return ngram_worth(task, *fit_linear(task, prompt, chosen, rejected, l2))


def fit_linear(task: Testbed, prompt: Tensor, chosen: Tensor, rejected: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """(token weights [prompts, vocab], neighbour weights [vocab, vocab]) at the minimum of
    mean -log sigma(s(chosen) - s(rejected)) + l2/2 |weights|^2, found by L-BFGS in fp64; rows and columns of EOS are 0.

    The indices [n] are of prompts and of flat places in [inner, vocab]. The penalty makes the minimum finite and
    unique: few pairs are nearly always separable. Raises RuntimeError where the gradient does not vanish.
    """
    tree = task.tree
    unigrams, bigrams = (counts[0] - counts[1] for counts in zip(_counts(task, chosen), _counts(task, rejected)))
    features = unigrams.new_zeros(len(prompt), tree.prompts, tree.vocab)
    features[torch.arange(len(prompt)), prompt] = unigrams
    features = torch.cat([features.flatten(1), bigrams.flatten(1)], 1)
    weights = features.new_zeros(features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=1000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -logsigmoid(features @ weights).mean() + 0.5 * l2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()  # the gradient at the point where the line search ended
    if weights.grad.abs().max() > 1e-7:
        raise RuntimeError(f"the judge's fit did not converge: gradient {weights.grad.abs().max():.1e}")
    unigram, bigram = weights.detach().split([tree.prompts * tree.vocab, tree.vocab**2])
    return unigram.view(tree.prompts, tree.vocab), bigram.view(tree.vocab, tree.vocab)


def _counts(task: Testbed, answers: Tensor) -> tuple[Tensor, Tensor]:
    """[n, vocab] and [n, vocab, vocab] how often each token and each two neighbours occur in an answer; EOS never."""
    vocab = task.tree.vocab
    tokens = answer_tokens(task).flatten(0, 1)[answers].clamp(min=0)  # what follows the end counts as EOS: not at all
    seen = one_hot(tokens, vocab).double()
    seen[..., 0] = 0
    return seen.sum(1), torch.einsum("nti,ntj->nij", seen[:, :-1], seen[:, 1:])
