import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.models.tabular import TabularLM
from rlpref.models.tiny import tiny_llama
from rlpref.testbed.exact import answer_logps, expectation, sequence_kl
from rlpref.testbed.models import tabular, tiny
from rlpref.testbed.task import TestbedScorer, conditionals, make_testbed
from rlpref.types import Sequences


def every_answer(vocab, horizon):
    """All answers by the rule alone: tokens until EOS (0) or until there are `horizon` of them."""
    unfinished, finished = [()], []
    while unfinished:
        answer = unfinished.pop()
        for token in range(vocab):
            longer = (*answer, token)
            (finished if token == 0 or len(longer) == horizon else unfinished).append(longer)
    return finished


def as_sequences(task, prompt, answers):
    width = 1 + max(map(len, answers))
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    real = torch.zeros(len(answers), width, dtype=torch.bool)
    for i, answer in enumerate(answers):
        ids[i, : len(answer) + 1] = torch.tensor([task.tree.vocab + prompt, *answer])
        real[i, : len(answer) + 1] = True
    return Sequences(ids, real, real & (torch.arange(width) > 0))


@torch.no_grad()
def log_prob(model, task, prompt, answer):
    """Log-prob of an answer by one plain pass of the model."""
    ids = torch.tensor([[task.tree.vocab + prompt, *answer]])
    logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(logps[t, token]) for t, token in enumerate(answer))


def place(task, answer):
    """Where a finished answer stands in [inner, vocab], found by its prefix."""
    prefix = [*answer[:-1], *[-1] * (task.tree.horizon - len(answer) + 1)]
    return int((task.prefixes == torch.tensor(prefix)).all(1).nonzero()), answer[-1]


def test_enumeration_agrees_with_a_walk_over_all_answers(task, random_policy):
    """Probabilities, rewards, mean reward and KL, each answer scored by itself."""
    policy, ref = (
        TabularLM(3, 3, 2).double().set_conditionals(table) for table in (random_policy(task, seed=1), task.ref)
    )
    answers, scorer = every_answer(3, 3), TestbedScorer(task)
    tables = [conditionals(task, model) for model in (policy, ref)]
    enumerated = [answer_logps(task, table) for table in tables]
    assert int(task.ends.sum()) == len(answers) == 15
    for x in range(2):
        rewards = scorer(as_sequences(task, x, answers)).tolist()
        logps, ref_logps = ([log_prob(model, task, x, answer) for answer in answers] for model in (policy, ref))
        for answer, logp, ref_logp, reward in zip(answers, logps, ref_logps, rewards):
            node, token = place(task, answer)
            assert enumerated[0][x, node, token].item() == pytest.approx(logp, abs=1e-10)
            assert enumerated[1][x, node, token].item() == pytest.approx(ref_logp, abs=1e-10)
            assert task.rewards[x, node, token].item() == pytest.approx(reward, abs=1e-5)
        p = torch.tensor(logps).double().exp()
        kl = (p * (torch.tensor(logps) - torch.tensor(ref_logps))).sum()
        assert sequence_kl(task, *tables)[x].item() == pytest.approx(kl.item(), abs=1e-5)
        mean = (p * torch.tensor(rewards)).sum()
        assert expectation(task, tables[0], task.rewards)[x].item() == pytest.approx(mean.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("sizes", "reward"),
    [((2, 1, 1), "ngram"), ((5, 4, 3), "ngram"), ((3, 2, 1), "order"), ((5, 4, 3), "order")],
)
def test_probabilities_sum_to_one_and_rewards_are_standard_under_the_reference(sizes, reward, random_policy):
    task = make_testbed(*sizes, seed=0, reward=reward)
    ones = torch.ones_like(task.rewards)
    for table in (task.ref, random_policy(task, seed=0)):
        torch.testing.assert_close(answer_logps(task, table).exp().sum((1, 2)), torch.ones(sizes[2]).double())
        torch.testing.assert_close(expectation(task, table, ones), torch.ones(sizes[2]).double())
    mean = expectation(task, task.ref, task.rewards)
    variance = expectation(task, task.ref, task.rewards**2) - mean**2
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_the_order_reward_sees_what_token_weights_cannot():
    """Two answers of the same tokens in another order differ by the bonus, over the prompt's own scale."""
    task = make_testbed(4, 3, 2, seed=0, reward="order")
    scorer = TestbedScorer(task)
    bonus = [scorer(as_sequences(task, x, [(1, 2, 3), (2, 1, 3), (3, 1, 2)])) for x in range(2)]
    for scores in bonus:
        assert scores[0] > scores[1] + 0.1
        assert scores[2] == pytest.approx(scores[0].item(), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_conditionals_of_a_table_are_the_table(task, random_policy, temperature):
    table = random_policy(task, seed=2)
    model = TabularLM(3, 3, 2).double().set_conditionals(table)
    found = conditionals(task, model, temperature)
    torch.testing.assert_close(found, (table / temperature).log_softmax(-1))
    torch.testing.assert_close(conditionals(task, model, temperature, batch_size=3), found)


def test_conditionals_of_a_transformer_are_those_of_single_passes(task):
    model = tiny_llama(3, 3, 2, hidden_size=16, layers=1, heads=2, seed=0)
    whole = answer_logps(task, conditionals(task, model).detach())
    for x in range(2):
        for answer in every_answer(3, 3):
            node, token = place(task, answer)
            assert whole[x, node, token].item() == pytest.approx(log_prob(model, task, x, answer), abs=1e-5)


def test_the_scorer_reads_masks_only(task):
    answers = every_answer(3, 3)
    plain = as_sequences(task, 1, answers)
    left = torch.nn.functional.pad
    padded = Sequences(*(left(t, (2, 1)) for t in (plain.ids, plain.attention_mask, plain.mask)))
    padded.ids[~padded.attention_mask] = 4
    assert torch.equal(TestbedScorer(task)(padded), TestbedScorer(task)(plain))


@pytest.mark.parametrize("tokens", [[3, 1], [3], [3, 2, 2], [0], [1, 2, 0]], ids=str)
def test_what_is_no_finished_answer_is_not_scored(task, tokens):
    """Cut short, no answer at all, or without a prompt."""
    ids = torch.tensor([[3, 1, 0, 0], tokens + [0] * (4 - len(tokens))])
    real = torch.arange(4) < torch.tensor([[3], [len(tokens)]])
    with pytest.raises(ValueError, match="row 1 is not a finished answer"):
        TestbedScorer(task)(Sequences(ids, real, real))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab": 50, "horizon": 6}, "table entries; at most"),
        ({"vocab": 1}, "vocab >= 2"),
        ({"horizon": 0}, "horizon >= 1"),
        ({"reward": "ngrams"}, "Did you mean 'ngram'"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_testbed(**{"vocab": 4, "horizon": 2, "prompts": 2, "seed": 0, "reward": "ngram"} | settings)


def test_a_reference_without_spread_is_uniform():
    task = make_testbed(3, 1, 2, seed=0, reward="ngram", reference_spread=0.0)
    torch.testing.assert_close(task.ref.exp(), torch.full((2, 1, 3), 1 / 3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="reference_spread must not be below 0"):
        make_testbed(3, 1, 2, seed=0, reward="ngram", reference_spread=-1.0)


def test_the_seed_makes_the_task():
    same, again, other = (make_testbed(4, 2, 3, seed=s, reward="ngram") for s in (1, 1, 2))
    assert torch.equal(same.ref, again.ref)
    assert torch.equal(same.rewards, again.rewards)
    assert not torch.allclose(same.ref, other.ref)


def test_both_models_of_the_testbed_start_near_its_reference(task):
    table = conditionals(task, tabular(task).policy)
    torch.testing.assert_close(table, task.ref, atol=1e-6, rtol=0)
    loaded = tiny(task, hidden_size=16, layers=1, heads=2, pretrain_steps=60, pretrain_lr=0.01)
    untrained = conditionals(task, tiny_llama(3, 3, 2, hidden_size=16, layers=1, heads=2, seed=task.seed))
    near, far = (sequence_kl(task, task.ref, t).mean() for t in (conditionals(task, loaded.policy), untrained))
    assert near < 0.3 * far
    assert loaded.card["pretrain_kl"] < 0.1
