"""The regret to the optimum of a method's own loss, against sums over all pairs of answers."""

import pytest
import torch

from rlpref.testbed.duels import chosen_policy, ipo_optimum
from rlpref.testbed.exact import answer_logps
from rlpref.testbed.own import own_regret
from rlpref.testbed.preferences import bradley_terry
from rlpref.testbed.task import answer_places

IPO = {"name": "any", "kind": "offline", "loss": {"name": "ipo", "tau": 0.3, "normalize": "sum"}}
SFT = {"name": "any", "kind": "sft"}
PAIRS = {"source": "testbed", "preference": "bradley_terry", "preference_options": {}}
PAIRS |= {"pairs_from": "reference", "pairs_from_options": {}}
TEMPERED = PAIRS | {"pairs_from": "tempered", "pairs_from_options": {"temperature": 2.0}}
TEMPERED |= {"preference": "length_biased", "preference_options": {"bias": 0.4}}
HOLES = PAIRS | {"pairs_from": "holes", "pairs_from_options": {"factor": [1]}}


def by_hand(task, data):
    """(mass of the reference [prompts, A], of the pairs [prompts, A], P(row beats column) [prompts, A, A])"""
    answers = answer_places(task)
    rewards = task.rewards.flatten(1)[:, answers]
    logits = task.ref
    if data is TEMPERED:
        lengths = task.depth[:, None] + (torch.arange(task.tree.vocab) > 0).double()
        rewards = rewards + 0.4 * lengths.flatten()[answers]
        logits = (task.ref / 2).log_softmax(-1)
    ref, mu = (answer_logps(task, logps).flatten(1)[:, answers].exp() for logps in (task.ref, logits))
    return ref, mu, (rewards[:, :, None] - rewards[:, None]).sigmoid()


def mass_of(task, logps):
    return answer_logps(task, logps).flatten(1)[:, answer_places(task)].exp()


@pytest.mark.parametrize("data", [PAIRS, TEMPERED], ids=["reference", "tempered"])
def test_ipos_regret_is_the_objective_that_is_missing(task, random_policy, data):
    ref, mu, beats = by_hand(task, data)
    wins, tau = (beats * mu[:, None]).sum(2), IPO["loss"]["tau"]
    best = (ref.log() + wins / tau).softmax(1)

    def objective(p):
        return (p * wins).sum(1) - tau * (p * (p / ref).log()).sum(1)

    policy = random_policy(task, 3)
    missing = objective(best) - objective(mass_of(task, policy))
    assert missing.mean() > 0.05
    assert own_regret(IPO, data, task, task.ref)(policy) == pytest.approx(missing.mean().item(), abs=1e-10)


@pytest.mark.parametrize("data", [PAIRS, TEMPERED], ids=["reference", "tempered"])
def test_sfts_regret_is_the_cross_entropy_above_its_smallest(task, random_policy, data):
    _, mu, beats = by_hand(task, data)
    chosen = 2 * mu * (beats * mu[:, None]).sum(2)
    assert torch.allclose(chosen.sum(1), torch.ones(len(mu), dtype=torch.float64))
    policy = random_policy(task, 3)
    excess = (chosen * (chosen.log() - mass_of(task, policy).log())).sum(1)
    assert own_regret(SFT, data, task, task.ref)(policy) == pytest.approx(excess.mean().item(), abs=1e-10)


@pytest.mark.parametrize("algorithm", [IPO, SFT], ids=["ipo", "sft"])
@pytest.mark.parametrize("data", [PAIRS, TEMPERED, HOLES], ids=["reference", "tempered", "holes"])
def test_the_regret_is_finite_and_above_zero_elsewhere(task, random_policy, algorithm, data):
    for policy in (task.ref, random_policy(task, 1)):
        assert 0 < own_regret(algorithm, data, task, task.ref)(policy) < 100


@pytest.mark.parametrize("algorithm", [IPO, SFT], ids=["ipo", "sft"])
def test_it_is_zero_at_the_own_optimum(task, algorithm):
    pairs = task.ref, bradley_terry(task)
    best = chosen_policy(task, *pairs) if algorithm is SFT else ipo_optimum(task, task.ref, *pairs, 0.3)
    assert own_regret(algorithm, PAIRS, task, task.ref)(best) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "data"),
    [
        ({"name": "any", "kind": "offline", "loss": {"name": "dpo", "beta": 0.3}}, PAIRS),
        ({"name": "any", "kind": "ppo", "beta": 0.3}, PAIRS),
        ({"name": "any", "kind": "reinforce", "beta": 0.3}, PAIRS),
        ({"name": "any", "kind": "iterative", "loss": IPO["loss"]}, PAIRS),
        (IPO | {"loss": IPO["loss"] | {"normalize": "mean"}}, PAIRS),
        (SFT, PAIRS | {"source": "jsonl"}),
        (SFT, PAIRS | {"pairs_from": "near", "pairs_from_options": {"distance": 1}}),
        (IPO, PAIRS | {"kind": "kwise", "k": 4, "pairs_by": "best_worst"}),
        (IPO, PAIRS | {"preference": "ties", "preference_options": {"band": 0.2, "rule": "drop"}}),
    ],
    ids=[
        "dpo",
        "ppo",
        "reinforce",
        "iterative",
        "ipo by length",
        "no testbed",
        "near pairs",
        "pairs of lists",
        "dropped ties",
    ],
)
def test_nothing_where_it_is_the_ordinary_regret_or_unknown(task, algorithm, data):
    assert own_regret(algorithm, data, task, task.ref) is None


@pytest.mark.parametrize("modifier", [{"margin": 0.5}, {"nll": {"coef": 1.0, "over": "chosen", "reduce": "token"}}])
def test_a_modified_loss_has_an_optimum_of_its_own_that_nobody_knows(task, modifier):
    assert own_regret(IPO | {"modifiers": {"margin": 0.0}}, PAIRS, task, task.ref) is not None
    assert own_regret(IPO | {"modifiers": modifier}, PAIRS, task, task.ref) is None
