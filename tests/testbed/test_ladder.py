"""The error ladder: its segments, and each rung against a closed form or a limit."""

import pytest
import torch
from torch import nn

from rlpref.losses import make_loss
from rlpref.models.tabular import TabularLM
from rlpref.testbed import duels, ladder, optima
from rlpref.testbed.exact import answer_logps, regret, sequence_kl
from rlpref.testbed.ladder import SOURCES, CountedPairs, Learner
from rlpref.testbed.preferences import bradley_terry, deterministic, matrix
from rlpref.testbed.task import TestbedScorer, answer_places, make_testbed
from rlpref.types import Sequences

pytestmark = pytest.mark.slow

BETA = 0.5
DPO = make_loss("dpo", beta=BETA)
IPO = make_loss("ipo", tau=BETA, normalize="sum")
TABLE = Learner(None)


def expected_pairs(task, mu, preference):
    """All pairs, as often as they come in the limit of infinitely many."""
    places = answer_places(task)
    mass = answer_logps(task, mu).flatten(1)[:, places].exp()
    count = mass[:, :, None] * mass[:, None] * matrix(task, preference) * 2
    x, won, lost = (index.flatten() for index in torch.meshgrid(*map(torch.arange, count.shape), indexing="ij"))
    return CountedPairs(x, places[won], places[lost], count.flatten())


def drawn_pairs(task, n, seed=0):
    """n Bradley-Terry pairs of the reference."""
    expected = expected_pairs(task, task.ref, bradley_terry(task))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(expected.count, n, replacement=True, generator=generator).bincount()
    seen = drawn.nonzero()[:, 0]
    return CountedPairs(expected.prompt[seen], expected.chosen[seen], expected.rejected[seen], drawn[seen].double())


def widths(task, found):
    return ladder.widths(task, task.ref, BETA, found.rungs)


def offline(task, loss, pairs, learner=TABLE):
    return ladder.pair_ladder(task, task.ref, task.ref, bradley_terry(task), loss, pairs, learner)


def test_the_segments_are_the_steps_of_the_regret_and_sum_to_the_last(task, random_policy):
    rungs = {source: random_policy(task, seed) for seed, source in enumerate(SOURCES)}
    found = ladder.widths(task, task.ref, BETA, rungs)
    regrets = [regret(task, rungs[source], task.ref, task.rewards, BETA) for source in SOURCES]
    assert list(found) == list(SOURCES)
    assert found["reward model"] == pytest.approx(regrets[0], abs=1e-12)
    assert found["statistics"] == pytest.approx(regrets[2] - regrets[1], abs=1e-12)
    assert sum(found.values()) == pytest.approx(regrets[-1], abs=1e-12)
    assert min(found.values()) < 0, "a policy can be better than the one before"


def test_a_source_that_is_not_named_adds_nothing(task, random_policy):
    found = ladder.widths(task, task.ref, BETA, {"statistics": random_policy(task, 0)})
    assert {source for source, width in found.items() if width} == {"statistics"}
    with pytest.raises(ValueError, match="'luck'"):
        ladder.widths(task, task.ref, BETA, {"luck": task.ref})


def test_dpo_aims_at_the_optimum_and_ipo_at_its_own(task):
    pairs = drawn_pairs(task, 500)
    assert abs(widths(task, offline(task, DPO, pairs))["objective"]) < 1e-8
    own = duels.ipo_optimum(task, task.ref, task.ref, bradley_terry(task), BETA)
    expected = regret(task, own, task.ref, task.rewards, BETA)
    assert expected > 0.1
    assert widths(task, offline(task, IPO, pairs))["objective"] == pytest.approx(expected, abs=1e-8)


def test_other_labels_are_another_objective_for_dpo():
    """Deterministic labels: the loss falls without end towards the best answer alone."""
    task = make_testbed(vocab=3, horizon=2, prompts=1, seed=5, reward="ngram")
    sharp = deterministic(task)
    found = ladder.pair_ladder(task, task.ref, task.ref, sharp, DPO, expected_pairs(task, task.ref, sharp), TABLE)
    best = answer_logps(task, found.rungs["objective"]).flatten(1)
    assert (best.argmax(1) == task.rewards.flatten(1).masked_fill(~task.ends.flatten(), -1e9).argmax(1)).all()
    assert widths(task, found)["objective"] > 0.01
    assert best.exp().amax(1).min() > 0.99


@pytest.mark.parametrize("loss", [DPO, IPO], ids=["dpo", "ipo"])
def test_with_data_without_end_statistics_add_nothing(task, loss):
    few, many = (abs(widths(task, offline(task, loss, drawn_pairs(task, n)))["statistics"]) for n in (1000, 10**6))
    exact = widths(task, offline(task, loss, expected_pairs(task, task.ref, bradley_terry(task))))["statistics"]
    assert abs(exact) < 1e-8
    assert many < 0.1 * few


def test_sft_imitates_the_frequencies_of_chosen_answers(task):
    pairs = drawn_pairs(task, 400)
    found = ladder.chosen_ladder(task, task.ref, task.ref, bradley_terry(task), pairs, TABLE)
    mass = answer_logps(task, found.rungs["statistics"]).flatten(1).exp()
    for x in range(2):
        mine = pairs.prompt == x
        for place in answer_places(task):
            share = pairs.count[mine & (pairs.chosen == place)].sum() / pairs.count[mine].sum()
            assert float(mass[x, place]) == pytest.approx(float(share), abs=1e-12)
    limit = expected_pairs(task, task.ref, bradley_terry(task))
    exact = ladder.chosen_ladder(task, task.ref, task.ref, bradley_terry(task), limit, TABLE)
    assert abs(widths(task, exact)["statistics"]) < 1e-10
    assert widths(task, exact)["objective"] > 0.1


def test_a_wrong_reward_costs_the_regret_of_its_optimum(task, random_policy):
    wrong = task.rewards + torch.where(task.ends, random_policy(task, 4), 0.0)
    best = optima.optimum(task, task.ref, wrong, BETA).policy
    off = BETA * float(sequence_kl(task, best, optima.optimum(task, task.ref, task.rewards, BETA).policy).mean())
    for found in (
        ladder.reward_ladder(task, task.ref, wrong, BETA, TABLE),
        ladder.iterative_ladder(task, task.ref, wrong, BETA, DPO, None, TABLE),
    ):
        added = widths(task, found)
        assert added["reward model"] == pytest.approx(off, abs=1e-10)
        assert added["reward model"] > 0.01
        assert not any(added[source] for source in SOURCES[1:])
    gold = widths(task, ladder.reward_ladder(task, task.ref, task.rewards, BETA, TABLE))
    assert abs(gold["reward model"]) < 1e-12


def test_iterative_dpo_answers_for_the_pairs_it_collected(task):
    """As DPO on the same pairs, from whatever policy they came."""
    pairs = drawn_pairs(task, 20_000)
    found = widths(task, ladder.iterative_ladder(task, task.ref, task.rewards, BETA, DPO, pairs, TABLE))
    assert found["statistics"] == pytest.approx(widths(task, offline(task, DPO, pairs))["statistics"], abs=1e-6)


def test_a_model_that_can_be_any_policy_excludes_nothing(task):
    """A table as the model: the same minimum by way of the model's own parameters."""
    table = TabularLM(3, 3, 2).set_conditionals(task.ref)
    added = widths(task, offline(task, IPO, drawn_pairs(task, 500), Learner(table)))
    assert abs(added["function class"]) < 1e-3
    assert abs(added["statistics"]) > 1e-3
    on_policy = ladder.reward_ladder(task, task.ref, task.rewards, BETA, Learner(table))
    assert abs(widths(task, on_policy)["function class"]) < 1e-5


class Blind(nn.Module):
    """A table that cannot tell the prompts apart."""

    def __init__(self, task):
        super().__init__()
        self.first_prompt = task.tree.vocab
        self.table = TabularLM(task.tree.vocab, task.tree.horizon, 1)

    def forward(self, input_ids, **rest):
        return self.table(input_ids=input_ids.clamp(max=self.first_prompt), **rest)


def test_a_model_too_small_for_the_policy_is_charged_for_it(task):
    """The best policy for all prompts at once has log-probs mean_x(log ref + r / beta), up to a constant."""
    model = Blind(task)
    before = [p.clone() for p in model.parameters()]
    found = ladder.reward_ladder(task, task.ref, task.rewards, BETA, Learner(model))
    best = (answer_logps(task, task.ref) + task.rewards / BETA).mean(0, keepdim=True)
    best = optima.conditionals_of(task, best.expand_as(task.ref))
    expected = regret(task, best, task.ref, task.rewards, BETA)
    assert expected > 0.01
    assert widths(task, found)["function class"] == pytest.approx(expected, abs=1e-8)
    assert found.fits["model_excess"] == pytest.approx(expected, abs=1e-8)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before)), "the run's model stays as it is"


def test_counts_are_those_of_the_sequences(task):
    ids = torch.tensor([[3, 1, 0, 0], [3, 1, 0, 0], [4, 2, 2, 1]])
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    answer = real & (torch.arange(4) > 0)
    short = torch.zeros(3, 4, dtype=torch.long)
    short[:, 0] = torch.tensor([3, 3, 4])
    pairs = ladder.counted_pairs(
        task, Sequences(ids, real, answer), Sequences(short, torch.arange(4).expand(3, 4) < 2, answer)
    )
    assert pairs.count.tolist() == [2, 1]
    assert pairs.prompt.tolist() == [0, 1]
    assert pairs.rejected.tolist() == [0, 0]  # EOS at once
    assert ladder.unseen(task, pairs) == 2 * len(answer_places(task)) - 4


def test_answers_at_infinity_are_those_outside_the_largest_circle_of_wins():
    task = make_testbed(vocab=4, horizon=1, prompts=1, seed=0, reward="ngram")

    def separated(*pairs):
        won, lost = torch.tensor(pairs).T
        return ladder.separated(task, CountedPairs(torch.zeros_like(won), won, lost, torch.ones(len(won))))

    assert separated((0, 1), (1, 2), (2, 0)) == 0
    assert separated((0, 1), (1, 2), (2, 0), (0, 3)) == 1  # 3 never wins
    assert separated((0, 1), (1, 2), (2, 3)) == 3


def test_scores_of_all_answers_are_the_scorers(task):
    found = ladder.scored_answers(task, TestbedScorer(task))
    torch.testing.assert_close(found, torch.where(task.ends, task.rewards, 0.0), atol=1e-6, rtol=0)
