"""Long tasks by recursion against the same tasks by enumeration, and at a size that nothing else reaches."""

import time

import pytest
import torch

from rlpref.binding import ConfigError
from rlpref.models.tiny import tiny_llama
from rlpref.rollout.sampler import sample
from rlpref.testbed import exact, measures, optima, windowed
from rlpref.testbed.task import conditionals
from rlpref.testbed.windowed import Automaton, make_windowed
from rlpref.types import Prompts

BETA = 0.4
SMALL = {"vocab": 3, "horizon": 4, "prompts": 2, "seed": 0}


def order(vocab, bonus=2.0):
    """Token 1 and later token 2: `bonus` at the end; half of it at once for each 1 before that."""
    moves = torch.zeros(3, vocab, dtype=torch.long) + torch.arange(3)[:, None]
    moves[0, 1], moves[1, 2] = 1, 2
    step = torch.zeros(3, vocab, dtype=torch.float64)
    step[0, 1] = bonus / 2
    return Automaton(moves, step, torch.tensor([0.0, 0.0, bonus], dtype=torch.float64))


def small(context=1, ngram=2, **sizes):
    sizes = SMALL | sizes
    length = 0.3 * torch.arange(1, sizes["horizon"] + 1, dtype=torch.float64)
    return make_windowed(**sizes, context=context, ngram=ngram, automaton=order(sizes["vocab"]), length=length)


def random_table(task, seed, steps=0):
    """A policy: one table for all steps, or `steps` of them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, *task.ref.shape) if steps else task.ref.shape
    return torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def as_conditionals(tree_task, states, policy):
    tables = [windowed.at(policy, int(depth))[:, state] for depth, state in zip(tree_task.depth, states)]
    return torch.stack(tables, 1)


KINDS = [(1, 2), (2, 2), (1, 3), (0, 1), (2, 0)]  # (context, ngram)


@pytest.mark.parametrize(("context", "ngram"), KINDS)
def test_the_optimum_is_that_of_the_enumeration(context, ngram):
    task = small(context, ngram)
    tree_task, states = windowed.enumerated(task)
    for beta in (0.1, BETA, 3.0):
        solved = windowed.solve(task, beta)
        expected = optima.optimum(tree_task, tree_task.ref, tree_task.rewards, beta)
        torch.testing.assert_close(solved.v0, expected.v[:, 0], atol=1e-10, rtol=0)
        found = as_conditionals(tree_task, states, solved.policy)
        torch.testing.assert_close(found, expected.policy, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("context", "ngram"), KINDS)
@pytest.mark.parametrize("steps", [0, 4])
def test_the_values_of_any_policy_are_those_of_the_enumeration(context, ngram, steps):
    task = small(context, ngram)
    tree_task, states = windowed.enumerated(task)
    policy = random_table(task, 1, steps)
    table = as_conditionals(tree_task, states, policy)
    found = windowed.evaluate(task, policy)
    expected = {
        "reward": exact.expectation(tree_task, table, tree_task.rewards),
        "kl": exact.sequence_kl(tree_task, table, tree_task.ref),
        "entropy": exact.entropy(tree_task, table),
        "length": exact.expectation(tree_task, table, (tree_task.depth[:, None] + 1.0).double()),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-10, rtol=0)
    mean, variance = windowed.moments(task, policy)
    second = exact.expectation(tree_task, table, tree_task.rewards**2)
    torch.testing.assert_close(mean, expected["reward"], atol=1e-10, rtol=0)
    torch.testing.assert_close(variance, second - mean**2, atol=1e-10, rtol=0)
    solved = windowed.solve(task, BETA)
    best = as_conditionals(tree_task, states, solved.policy)
    torch.testing.assert_close(
        windowed.regret_by_position(task, policy, solved, BETA),
        measures.regret_by_position(tree_task, table, best, BETA),
        atol=1e-10,
        rtol=0,
    )


def test_occupancies_are_the_reach_of_prefixes():
    task = small()
    tree_task, states = windowed.enumerated(task)
    policy = random_table(task, 1)
    reach = exact.log_reach(tree_task, as_conditionals(tree_task, states, policy)).exp()
    for t, found in enumerate(windowed.occupancy(task, policy)):
        at = tree_task.depth == t
        expected = torch.zeros_like(found).index_add_(1, states[at], reach[:, at])
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def answers(task):
    """(tokens [n, horizon] with 0 after the end, number of tokens) of all answers, by the rule alone."""
    unfinished, finished = [()], []
    while unfinished:
        answer = unfinished.pop()
        for token in range(task.vocab):
            longer = (*answer, token)
            (finished if token == 0 or len(longer) == task.horizon else unfinished).append(longer)
    padded = torch.tensor([[*answer, *[0] * (task.horizon - len(answer))] for answer in finished])
    return padded, torch.tensor([len(answer) for answer in finished])


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_the_reward_is_ngram_weights_and_automaton_and_length(ngram):
    """Up to shift and scale of each prompt it is linear in counts of n-grams, with the parts' own coefficients."""
    task = small(ngram=ngram, horizon=5)
    tokens, lengths = answers(task)
    started = torch.cat([torch.zeros(len(tokens), ngram - 1, dtype=torch.long), tokens], 1)
    grams = torch.zeros(len(tokens), task.vocab**ngram, dtype=torch.float64)
    for t in range(task.horizon):
        code = sum(started[:, t + i] * task.vocab ** (ngram - 1 - i) for i in range(ngram))
        grams[torch.arange(len(tokens)), code] += tokens[:, t] > 0
    first_one = (tokens == 1).double().cumsum(1) > 0
    ordered = ((tokens == 2) & first_one).any(1)
    bonus = 2.0 * ordered + 1.0 * (tokens == 1).any(1) + 0.3 * lengths.double()
    features = torch.cat([grams, bonus[:, None], torch.ones(len(tokens), 1)], 1).double()
    for x in range(2):
        rewards, _ = windowed.score(task, torch.full((len(tokens),), x), tokens)
        fit = torch.linalg.lstsq(features, rewards[:, None], driver="gelsd").solution
        torch.testing.assert_close(features @ fit, rewards[:, None], atol=1e-10, rtol=0)
        assert fit[-2] > 0.1
        without = torch.linalg.lstsq(features[:, :-2], rewards[:, None], driver="gelsd").solution
        assert (features[:, :-2] @ without - rewards[:, None]).abs().max() > 0.1


def test_scores_are_the_entries_of_the_enumeration():
    task = small()
    tree_task, _ = windowed.enumerated(task)
    tokens, lengths = answers(task)
    logps = exact.answer_logps(tree_task, tree_task.ref)
    tokens[torch.arange(len(tokens)), (lengths).clamp(max=task.horizon - 1)] += lengths < task.horizon  # not read
    for x in range(2):
        rewards, ref_logps = windowed.score(task, torch.full((len(tokens),), x), tokens)
        for i, length in enumerate(lengths.tolist()):
            prefix = torch.tensor([*tokens[i, : length - 1], *[-1] * (task.horizon - length + 1)])
            place = x, int((tree_task.prefixes == prefix).all(1).nonzero()), int(tokens[i, length - 1])
            assert rewards[i].item() == pytest.approx(tree_task.rewards[place].item(), abs=1e-12)
            assert ref_logps[i].item() == pytest.approx(logps[place].item(), abs=1e-12)
    with pytest.raises(ValueError, match="row 1 is not a finished answer"):
        windowed.score(task, torch.tensor([0, 0]), torch.tensor([[1, 0], [1, 2]]))


def test_rewards_are_standard_and_the_reference_reads_its_context_only():
    task = small(context=1, ngram=3)
    mean, variance = windowed.moments(task, task.ref)
    torch.testing.assert_close(mean, torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(variance, torch.ones(2).double())
    tree_task, _ = windowed.enumerated(task)
    last = tree_task.prefixes.gather(1, (tree_task.depth - 1).clamp(min=0)[:, None])[:, 0]
    for token in (1, 2):
        rows = tree_task.ref[:, last == token]
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert not torch.allclose(tree_task.ref[:, 1], tree_task.ref[:, 2])


def prompts_of(task, n):
    return torch.arange(task.prompts).repeat_interleave(n)


def test_sampled_answers_have_the_policys_own_log_probs_and_mean_reward():
    task = small()
    policy, prompt = random_table(task, 1, steps=4), prompts_of(task, 10_000)
    tokens, logps = windowed.draw(task, policy, prompt, torch.Generator().manual_seed(0))
    rewards, ref_logps = windowed.score(task, prompt, tokens)
    exactly = windowed.evaluate(task, policy)
    for sampled, expected in ((rewards, exactly.reward), (logps - ref_logps, exactly.kl), (-logps, exactly.entropy)):
        sampled = sampled.view(2, -1)
        assert ((sampled.mean(1) - expected).abs() < 4 * sampled.std(1) / 100).all()


def test_the_regret_estimate_is_the_regret_and_free_of_noise_at_the_optimum():
    task = small()
    solved, prompt = windowed.solve(task, BETA), prompts_of(task, 5000)
    errors = []
    for distance in (1.0, 0.1, 0.0):  # from a random policy to the optimum
        policy = ((1 - distance) * solved.policy + distance * random_table(task, 1)).log_softmax(-1)
        tokens, logps = windowed.draw(task, policy, prompt, torch.Generator().manual_seed(0))
        rewards, ref_logps = windowed.score(task, prompt, tokens)
        found, error = windowed.regret_estimate(solved.v0[prompt], rewards, logps, ref_logps, BETA)
        expected = windowed.regret_by_position(task, policy, solved, BETA).sum(1).mean().item()
        assert abs(found - expected) < 4 * error + 1e-12
        errors.append(error)
    assert errors[0] > 5 * errors[1] > 0
    assert errors[2] < 1e-14
    assert abs(found) < 1e-14


def test_the_regret_of_a_transformer_from_samples_is_the_enumerated_one():
    """The production sampler on a Llama, its answers scored by the recursion's task."""
    task = small(vocab=4, horizon=4, context=2)
    tree_task, _ = windowed.enumerated(task)
    model = tiny_llama(4, 4, 2, hidden_size=16, layers=1, heads=2, seed=0)
    with torch.no_grad():
        model.lm_head.weight *= 10
        table = conditionals(tree_task, model)
    prompts = Prompts(torch.tensor([[4], [5]]), torch.ones(2, 1, dtype=torch.bool))
    samples = sample(model, prompts, 3000, 4, 1.0, 0, [torch.Generator().manual_seed(0)], batch_size=6000)
    tokens = samples.sequences.ids[:, 1:]
    v0 = windowed.solve(task, BETA).v0
    rewards, ref_logps = windowed.score(task, samples.prompt, tokens)
    found, error = windowed.regret_estimate(v0[samples.prompt], rewards, samples.logps.sum(1), ref_logps, BETA)
    expected = exact.regret(tree_task, table, tree_task.ref, tree_task.rewards, BETA)
    assert abs(found - expected) < 4 * error
    assert error < 0.1 * expected


def long_task():
    vocab, states = 32, 8
    generator = torch.Generator().manual_seed(0)
    automaton = Automaton(
        torch.randint(states, (states, vocab), generator=generator),
        0.2 * torch.randn(states, vocab, generator=generator, dtype=torch.float64),
        torch.randn(states, generator=generator, dtype=torch.float64),
    )
    length = 0.05 * torch.arange(1, 65)
    return make_windowed(vocab, 64, 1, 0, context=2, ngram=3, automaton=automaton, length=length)


@pytest.mark.slow
def test_a_long_task_is_solved_exactly_in_seconds():
    """vocab 32, horizon 64, context 2, 8 automaton states: 8192 states. Under a second on an idle core; the
    bound leaves room for a busy one."""
    task = long_task()
    start = time.process_time()
    solved = windowed.solve(task, BETA)
    assert time.process_time() - start < 2
    values = windowed.evaluate(task, solved.policy)
    torch.testing.assert_close(values.reward - BETA * values.kl, solved.v0, atol=1e-9, rtol=0)
    assert solved.v0.item() > 0.5
    assert 5 < values.length.item() < 64
    at_ref = windowed.evaluate(task, task.ref)
    torch.testing.assert_close(at_ref.reward, torch.zeros(1).double(), atol=1e-9, rtol=0)
    regret = windowed.regret_by_position(task, task.ref, solved, BETA).sum(1)
    torch.testing.assert_close(regret, solved.v0 - at_ref.reward, atol=1e-9, rtol=0)
    prompt = torch.zeros(200, dtype=torch.long)
    tokens, logps = windowed.draw(task, solved.policy, prompt, torch.Generator().manual_seed(0))
    rewards, ref_logps = windowed.score(task, prompt, tokens)
    found, error = windowed.regret_estimate(solved.v0, rewards, logps, ref_logps, BETA)
    assert abs(found) < 1e-12
    assert error < 1e-12


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab": 1}, "vocab >= 2"),
        ({"ngram": -1}, "context and ngram >= 0"),
        ({"horizon": 10**6, "context": 3}, "table entries"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused(sizes, message):
    settings = SMALL | {"context": 1, "ngram": 2} | sizes
    with pytest.raises(ConfigError, match=message):
        make_windowed(**settings, automaton=order(settings["vocab"] + 2), length=torch.zeros(settings["horizon"]))


def test_a_reward_that_never_varies_is_refused():
    idle = Automaton(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3), torch.ones(1))
    with pytest.raises(ConfigError, match="the same for every answer"):
        make_windowed(3, 4, 2, 0, context=1, ngram=0, automaton=idle, length=torch.ones(4))
