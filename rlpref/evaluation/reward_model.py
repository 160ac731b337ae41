"""How good a reward model is on held-out pairs: its order, its calibration, what it makes of length, and whether it
agrees with the truth where there is one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.evaluation.estimates import share_right, with_se
from rlpref.models.bundle import in_chunks
from rlpref.models.heads import ScalarHead, answer_scores
from rlpref.types import Pairs, Sequences

BINS = 10  # of the confidence in the answer with the higher score, from 1/2 to 1


def judge_pairs(model: ScalarHead, pairs: Pairs, chunk: int, groups: Tensor | None) -> dict[str, float]:
    """Accuracy, calibration and length bias of the model on the pairs; names without their prefix. What is not defined
    (a correlation with what does not vary, a bin without pairs) is left out. Pairs of one of the `groups` [B] hang
    together; None: none do."""
    chosen, rejected = (scored(model, side, chunk) for side in (pairs.chosen, pairs.rejected))
    table = reliability(chosen - rejected)
    found = pair_quality(chosen - rejected, groups) | {"ece": expected_calibration_error(table)}
    found |= length_bias(chosen, rejected, pairs.chosen.lengths, pairs.rejected.lengths, groups)
    columns = ("pairs", "confidence", "accuracy")
    return found | {f"reliability_{row['bin']}/{name}": row[name] for row in table for name in columns}


def scored(model: ScalarHead, sequences: Sequences, chunk: int) -> Tensor:
    """[B], without gradient."""
    return in_chunks(lambda part: answer_scores(model, part), sequences, chunk)


def pair_quality(margins: Tensor, groups: Tensor | None = None) -> dict[str, float]:
    """Of margins [B] chosen - rejected, with p = sigmoid(margin) the chance given to the label: accuracy (a tie is half
    right), negative log-likelihood in nats, Brier score (1 - p)^2; each with its standard error (estimates.with_se)."""
    margins = margins.double()
    return (
        share_right("accuracy", margins, groups)
        | with_se("nll", -logsigmoid(margins), groups)
        | with_se("brier", (1 - margins.sigmoid()) ** 2, groups)
    )


def reliability(margins: Tensor) -> list[dict[str, float]]:
    """The reliability table of margins [B]: pairs fall into BINS equal bins of the confidence sigmoid(|margin|); of
    each bin that has any its number, its `pairs`, their mean `confidence` and their `accuracy`. Guo et al. 2017
    (1706.04599), for two answers, of which one has at least 1/2."""
    margins = margins.double().cpu()
    confidence, right = margins.abs().sigmoid(), (margins > 0).double() + 0.5 * (margins == 0).double()
    place = ((2 * confidence - 1) * BINS).long().clamp(max=BINS - 1)
    rows = []
    for number in range(BINS):
        if (here := place == number).any():
            means = {"confidence": float(confidence[here].mean()), "accuracy": float(right[here].mean())}
            rows.append({"bin": number, "pairs": int(here.sum()), **means})
    return rows


def expected_calibration_error(table: list[dict[str, float]]) -> float:
    """Mean over pairs of |accuracy - confidence| of their bin. Guo et al. 2017 (1706.04599), eq. 5."""
    total = sum(row["pairs"] for row in table)
    return sum(row["pairs"] * abs(row["accuracy"] - row["confidence"]) for row in table) / total


def length_bias(
    chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, groups: Tensor | None = None
) -> dict[str, float]:
    """Of scores and lengths [B] in tokens: `length_corr`, Spearman's correlation of score and length over all answers;
    and over the pairs of unequal lengths `prefers_longer`, how often the longer one has the higher score, beside
    `longer_wins`, how often it is the chosen one: the accuracy of preferring length."""
    scores, lengths = torch.cat([chosen, rejected]), torch.cat([chosen_length, rejected_length])
    correlation = float(spearman(scores[None], lengths[None]))
    longer = (chosen_length - rejected_length).sign()
    unequal = longer != 0
    found = {"length_corr": correlation} if correlation == correlation else {}
    if unequal.any():
        groups = None if groups is None else groups[unequal]
        found |= share_right("prefers_longer", ((chosen - rejected) * longer)[unequal], groups)
        found |= share_right("longer_wins", longer[unequal], groups)
    return found


def gold_agreement(scores: Tensor, gold: Tensor) -> dict[str, float]:
    """`gold_corr`: the mean over prompts of Spearman's correlation between scores and gold rewards [prompts, k] of the
    answers to each. A prompt whose answers are all alike to one of the two says nothing."""
    each = spearman(scores, gold)
    each = each[each == each]
    return with_se("gold_corr", each) if len(each) else {}


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """[rows] Spearman's rank correlation along each row of two tensors [rows, n]; NaN where a row does not vary."""
    from scipy.stats import rankdata  # a run that trains no reward model need not wait for it

    ranks = [torch.from_numpy(rankdata(x.detach().cpu().double().numpy(), axis=1)) for x in (one, other)]
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
