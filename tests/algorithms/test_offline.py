import math
from dataclasses import replace

import pytest
import torch

from rlpref.algorithms import make_algorithm, on_pairs
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.algorithms.objective import with_reference
from rlpref.binding import ConfigError
from rlpref.ops.logps import completion_logits, token_logps
from rlpref.ops.masked import masked_mean
from rlpref.types import Lists, Sequences, token_counts


def test_one_round_over_the_given_pairs_with_the_references_log_probs(task, testbed_models, testbed_data):
    models = testbed_models(task)
    data = testbed_data(task, models)
    settings = {"loss": {"name": "dpo", "beta": 0.5}, "epochs": 2, "batch_size": 16}
    algorithm = make_algorithm("offline", settings, "dpo")
    round = Round(0, [torch.Generator()], [Costs()])
    pairs = algorithm.collect(models, data, round)
    assert (algorithm.rounds, algorithm.epochs, algorithm.examples(data, 0)) == (1, 2, len(pairs))
    assert torch.equal(pairs.chosen.ids, data.train.chosen.ids)
    torch.testing.assert_close(pairs.ref_chosen, token_logps(models.initial.model, pairs.chosen)[0].sum(1))
    torch.testing.assert_close(pairs.ref_rejected, token_logps(models.initial.model, pairs.rejected)[0].sum(1))
    assert (round.costs[0].labels, round.costs[0].samples) == (len(pairs), 0)
    loss = algorithm.loss(models, pairs)
    torch.testing.assert_close(loss.value, torch.full_like(loss.value, math.log(2)))


def offline(name, batch_size=16, modifiers=None, **hyperparameters):
    settings = {"loss": {"name": name, **hyperparameters}, "epochs": 1, "batch_size": batch_size}
    return make_algorithm("offline", settings | ({"modifiers": modifiers} if modifiers else {}), name)


def collected(algorithm, models, data):
    return algorithm.collect(models, data, Round(0, [torch.Generator()], [Costs()]))


def test_single_answers_come_from_pairs_with_mismatched_ones(laboratory):
    models, data = laboratory
    algorithm = offline("kto", beta=0.3, desirable_weight=2.0, undesirable_weight=0.5)
    answers = collected(algorithm, models, data)
    n = len(data.train)
    assert len(answers) == algorithm.examples(data, 0) == 2 * n
    assert answers.label.tolist() == [True] * n + [False] * n
    found = algorithm.loss(models, answers)
    with torch.no_grad():
        h = token_logps(models.policy, answers.sequences)[0].sum(1) - answers.ref
        other = token_logps(models.policy, answers.mismatched)[0].sum(1)
        z = (other - token_logps(models.initial.model, answers.mismatched)[0].sum(1)).mean().clamp(min=0)
    right, wrong = 2.0 * torch.sigmoid(-0.3 * (h - z)), 0.5 * torch.sigmoid(-0.3 * (z - h))
    torch.testing.assert_close(found.value.detach(), torch.where(answers.label, right, wrong), rtol=1e-4, atol=1e-5)
    assert found.metrics["labels/desirable"].mean() == 0.5


def test_lists_are_ranked_without_the_answers_that_are_not_there(laboratory, task):
    models, _ = laboratory
    words = torch.tensor([[[1, 0], [2, 0], [0, 0]], [[2, 2], [1, 2], [1, 1]]]) + 0
    prompts = torch.full((2, 3, 1), task.tree.vocab)
    ids = torch.cat([prompts, words], 2)
    mask = torch.tensor([False, True, True]).expand(2, 3, 3).clone()
    present = torch.tensor([[True, True, False], [True, True, True]])
    mask[0, 2] = False
    attention = mask | torch.tensor([True, False, False])
    attention[0, 2] = False
    scores = torch.tensor([[0.0, 1.0, 0.0], [3.0, 1.0, 2.0]])
    lists = Lists(Sequences(ids, attention, mask), present, scores)
    algorithm = offline("plackett_luce", beta=0.5)
    rows = with_reference(models, algorithm.objective, lists)
    found = algorithm.loss(models, rows)
    flat = lists.flat()
    with torch.no_grad():
        h = token_logps(models.policy, flat)[0].sum(1) - token_logps(models.initial.model, flat)[0].sum(1)
    r = 0.5 * h
    first = (torch.stack([r[1], r[0]]).logsumexp(0) - r[1]).item()
    second = (r[2:].logsumexp(0) - r[2] + torch.stack([r[4], r[3]]).logsumexp(0) - r[4]).item()
    assert found.value.tolist() == pytest.approx([first, second], abs=1e-5)
    assert found.metrics["rewards/chosen"].tolist() == pytest.approx([r[1].item(), r[2].item()], abs=1e-5)
    assert found.metrics["rewards/rejected"].tolist() == pytest.approx([r[0].item(), r[3].item()], abs=1e-5)


def test_tail_confidence_and_kl_are_those_of_the_tokens(laboratory):
    models, data = laboratory
    pairs = data.train
    shared = torch.minimum(pairs.chosen.lengths, pairs.rejected.lengths)
    decayed = offline("dpo", beta=0.3, modifiers={"ld_alpha": 0.25})
    lp = on_pairs.logps(models, decayed.objective, collected(decayed, models, data))
    tokens = token_logps(models.policy, pairs.chosen)[0]
    weight = torch.where(pairs.chosen.mask.cumsum(1) > shared[:, None], 0.25, 1.0)
    torch.testing.assert_close(lp.chosen, (weight * tokens).sum(1))
    weighted, both = (offline(name, beta=0.3, modifiers={"wpo": True}) for name in ("dpo", "tdpo2"))
    lp = on_pairs.logps(models, weighted.objective, collected(weighted, models, data))
    logits, first = completion_logits(models.policy, pairs.rejected)
    logp = logits.log_softmax(-1)
    sure = logp.gather(-1, pairs.rejected.ids[:, first:, None])[..., 0] - (2 * logp).logsumexp(-1)
    torch.testing.assert_close(lp.rejected_confidence, masked_mean(sure, pairs.rejected.mask[:, first:], dim=1))
    again = on_pairs.logps(models, both.objective, collected(both, models, data))
    torch.testing.assert_close(again.chosen_confidence, lp.chosen_confidence)
    ref_logits, _ = completion_logits(models.initial.model, pairs.rejected)
    ref = ref_logits.log_softmax(-1)
    kl = ((ref.exp() * (ref - logp)).sum(-1) * pairs.rejected.mask[:, first:]).sum(1)
    torch.testing.assert_close(again.rejected_kl, kl)
    assert again.rejected_kl.requires_grad
    assert (again.rejected_kl > 0).all()


def test_what_a_bound_held_back_is_logged(laboratory):
    models, data = laboratory
    data.train.chosen_score[::2] = data.train.rejected_score[::2]  # no better than the rejected answer
    algorithm = offline("odpo", beta=0.3)
    found = algorithm.loss(models, collected(algorithm, models, data))
    assert 0 < found.metrics["loss/clamped"].mean() < 1
    plain = offline("dpo", beta=0.3)
    assert "loss/clamped" not in plain.loss(models, collected(plain, models, data)).metrics


def test_a_loss_without_a_reference_never_computes_one(laboratory, monkeypatch):
    models, data = laboratory
    monkeypatch.setattr(type(models), "ref_logps", lambda *_: pytest.fail("the reference was asked"))
    algorithm = offline("simpo")
    pairs = collected(algorithm, models, data)
    assert pairs.ref_chosen is None
    assert algorithm.loss(models, pairs).value.isfinite().all()


@pytest.mark.parametrize(
    ("column", "loss", "modifiers"),
    [("soft_label", "dpo", {"soft_labels": True}), ("soft_label", "sppo", None), ("chosen_score", "odpo", None)],
)
def test_a_column_that_the_data_lack_is_asked_for_by_name(laboratory, column, loss, modifiers):
    models, data = laboratory
    hyperparameters = {"labels": "soft"} if loss == "sppo" else {}
    algorithm = offline(loss, beta=0.3, modifiers=modifiers, **hyperparameters)
    lacking = replace(data, train=replace(data.train, **{column: None}))
    with pytest.raises(ConfigError, match=f"reads '{column}', which the data do not have: give every"):
        collected(algorithm, models, lacking)


def test_a_coupled_loss_refuses_weights_and_a_row_left_alone(laboratory):
    models, data = laboratory
    weighted = replace(data, train=replace(data.train, weight=torch.ones(len(data.train))))
    with pytest.raises(ConfigError, match="'aot' takes its minibatch as a whole: the data may have no 'weight'"):
        collected(offline("aot", beta=0.3), models, weighted)
    with pytest.raises(ConfigError, match=r"'aot' compares the rows of a minibatch.*one is left alone"):
        collected(offline("aot", batch_size=len(data.train) - 1, beta=0.3), models, data)


@pytest.mark.parametrize("missing", ["chosen_score", "rejected_score"])
def test_one_column_of_scores_alone_is_asked_for_by_name_or_not_needed(laboratory, missing):
    models, data = laboratory
    lacking = replace(data, train=replace(data.train, **{missing: None}))
    for algorithm in (offline("rebel", beta=0.3), offline("dpo", beta=0.3, modifiers={"score_margin": 0.1})):
        with pytest.raises(ConfigError, match=f"reads '{missing}', which the data do not have"):
            collected(algorithm, models, lacking)
    collected(offline("dpo", beta=0.3), models, lacking)


def test_mismatched_answers_that_nobody_reads_cost_nothing(laboratory):
    models, data = laboratory
    kto, apo = (collected(offline(name, beta=0.3), models, data) for name in ("kto", "apo_zero_unpaired"))
    assert apo.mismatched is None
    assert token_counts(kto).sum() > token_counts(apo).sum() == token_counts(data.train).sum()
