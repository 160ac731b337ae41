import pytest
import torch

from rlpref.evaluation.estimates import grouped_se
from rlpref.evaluation.evaluator import Evaluator
from rlpref.evaluation.exact import make_exact
from rlpref.evaluation.reward_model import scored
from rlpref.models.heads import scalar_model
from rlpref.ops.logps import token_logps
from rlpref.testbed import exact
from rlpref.testbed.task import make_testbed

SIZES = {"prompts": 64, "k": 400, "pairs": 100, "samples": 2}


@pytest.fixture
def build(testbed_models, testbed_data):
    """(evaluator, models) of a policy on a task; the task is enumerated where `enumerate` asks for it."""

    def make(task, policy=None, enumerate=True, seed=0, chunk=512, trains=("policy",), **sizes):
        models = testbed_models(task, chunk=chunk)
        data = testbed_data(task, models, test_pairs=100)
        solved = make_exact(task, models, 0.5) if enumerate else None
        if policy is not None:
            models.policy.set_conditionals(policy)
        return Evaluator(models, data, solved, trains, **SIZES | sizes, seed=seed), models

    return make


@pytest.fixture
def case():
    return make_testbed(vocab=4, horizon=2, prompts=3, seed=0, reward="ngram")


def exact_win_rate(task, policy):
    """Probability that the policy's answer has a higher reward than the reference's, ties one half."""
    total = 0.0
    for x in range(task.tree.prompts):
        rewards = task.rewards[x][task.ends]
        p, q = (exact.answer_logps(task, table)[x].exp()[task.ends] for table in (policy, task.ref))
        difference = rewards[:, None] - rewards[None, :]
        total += float((p[:, None] * q[None, :] * ((difference > 0) + 0.5 * (difference == 0))).sum())
    return total / task.tree.prompts


@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_values_are_the_exact_ones_within_four_standard_errors(build, case, random_policy, seed):
    policy = random_policy(case, 1)
    row, _ = build(case, policy, seed=seed)[0](0)
    expected = {
        "reward": exact.expectation(case, policy, case.rewards).mean().item(),
        "ref_reward": 0.0,
        "kl": exact.sequence_kl(case, policy, case.ref).mean().item(),
        "kl_mc": exact.sequence_kl(case, policy, case.ref).mean().item(),
        "win_rate": exact_win_rate(case, policy),
        "length": row["exact/length"],
    }
    for name, value in expected.items():
        assert 0 < row[f"eval/{name}_se"] < 0.1
        assert abs(row[f"eval/{name}"] - value) < 4 * row[f"eval/{name}_se"], name
    assert abs(expected["win_rate"] - 0.5) > 0.02
    assert row["eval/kl_se"] < row["eval/kl_mc_se"]
    assert row["exact/reward"] == pytest.approx(expected["reward"], abs=1e-5)
    assert row["exact/kl"] == pytest.approx(expected["kl"], abs=1e-5)


def test_standard_errors_are_the_spread_over_seeds(build, case, random_policy):
    """Each claimed error against the standard deviation of the estimate over 120 evaluations."""
    evaluator, _ = build(case, random_policy(case, 1), k=16, samples=0)
    rows = []
    for seed in range(120):
        evaluator.seed, evaluator._reference = seed, {}
        rows.append(evaluator(0)[0])
    for name in ("reward", "ref_reward", "kl", "kl_mc", "win_rate", "length"):
        spread = torch.tensor([row[f"eval/{name}"] for row in rows]).std().item()
        claimed = torch.tensor([row[f"eval/{name}_se"] for row in rows]).pow(2).mean().sqrt().item()
        assert claimed == pytest.approx(spread, rel=0.25), name


def test_no_samples_are_no_texts(build, case):
    assert build(case, k=2, samples=0)[0](0)[1] == []


def test_at_the_start_nothing_has_moved(build, case):
    row, _ = build(case)[0](0)
    assert row["eval/kl"] == row["eval/kl_se"] == row["eval/kl_mc"] == 0
    assert row["eval/accuracy"] == 0.5
    assert row["eval/accuracy_se"] == 0
    assert abs(row["eval/win_rate"] - 0.5) < 4 * row["eval/win_rate_se"]
    assert 0 < row["eval/ties"] < 1  # policy and reference answer with different random numbers
    assert row["exact/kl"] == pytest.approx(0, abs=1e-12)


def test_the_accuracy_counts_pairs_and_not_batches(build, case, random_policy):
    """Sum over pairs / number of pairs, however many go through the model at once."""
    policy = random_policy(case, 1)
    rows = []
    for chunk in (512, 7, 1):
        evaluator, _ = build(case, policy, chunk=chunk, k=1)
        rows.append(evaluator(0)[0])
    for row in rows[1:]:
        assert row["eval/accuracy"] == rows[0]["eval/accuracy"]
        assert row == pytest.approx(rows[0], abs=1e-5)
    pairs = evaluator.data.test
    tables = exact.answer_logps(case, policy), exact.answer_logps(case, case.ref)
    margins = [
        sum(sign * (tables[0] - tables[1])[place(case, ids)] for sign, ids in ((1, chosen), (-1, rejected)))
        for chosen, rejected in zip(pairs.chosen.ids, pairs.rejected.ids)
    ]
    right = [0.5 if abs(m) < 1e-9 else float(m > 0) for m in margins]
    assert rows[0]["eval/accuracy"] == pytest.approx(sum(right) / len(right))


def place(task, ids):
    """(prompt, prefix, last token) of a pair's answer of at most two tokens."""
    prompt, first, last = ids[0] - task.tree.vocab, ids[1], ids[2]
    return (prompt, 0, 0) if first == 0 else (prompt, first, last)


def test_evaluations_with_one_seed_are_one_number(build, case, random_policy):
    evaluator, models = build(case, random_policy(case, 1), k=8)
    first, texts = evaluator(0)
    assert evaluator(5)[0] == first
    assert len(texts) == SIZES["samples"]
    assert {"step", "prompt", "answer", "reward", "ref_answer", "ref_reward"} <= texts[0].keys()
    models.policy.set_conditionals(random_policy(case, 2))
    assert evaluator(6)[0]["eval/ref_reward"] == first["eval/ref_reward"]
    assert evaluator(6)[0]["eval/reward"] != first["eval/reward"]


def test_a_learned_reward_is_reported_beside_the_gold_one(build, case):
    evaluator, models = build(case, k=8)
    models.reward = lambda sequences: torch.full((len(sequences),), 7.0)
    row, _ = evaluator(0)
    assert row["eval/proxy_reward"] == 7
    assert row["eval/reward"] != 7


def test_a_reward_model_is_judged_by_its_order_of_held_out_pairs(build, case):
    evaluator, models = build(case, trains=("reward_model",), enumerate=False)
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    models.reward_model.requires_grad_(False)
    head = models.reward_model.head
    head.weight.zero_()
    row, texts = evaluator(0)
    assert row["eval/reward_model/accuracy"] == 0.5  # all tied
    assert texts == []
    assert not any(key.startswith("eval/kl") for key in row)
    head.weight.fill_(1.0)
    table = models.reward_model.backbone.rows.weight
    table[:] = 0
    tree = case.tree
    leaves = table[1:].view(tree.prompts, tree.per_prompt, -1)[:, tree.inner :]
    leaves[..., 0] = case.rewards.flatten(1).float()
    pairs = evaluator.data.test
    right = (pairs.chosen_score > pairs.rejected_score).double() + 0.5 * (pairs.chosen_score == pairs.rejected_score)
    found = evaluator(0)[0]
    assert found["eval/reward_model/accuracy"] == pytest.approx(right.mean().item())
    assert found["eval/reward_model/gold_corr"] == pytest.approx(1)  # its scores are the gold rewards
    assert "eval/reward_model/own_gold_corr" not in found  # nobody moves the policy
    longer = (pairs.chosen.lengths - pairs.rejected.lengths).sign()
    assert found["eval/reward_model/longer_wins"] == pytest.approx((longer[longer != 0] > 0).double().mean().item())
    margins = pairs.chosen_score - pairs.rejected_score
    assert found["eval/reward_model/nll"] == pytest.approx(-margins.sigmoid().log().mean().item(), abs=1e-5)
    bins = [value for key, value in found.items() if key.endswith("/pairs")]
    assert sum(bins) == len(pairs)


def test_a_reward_model_is_judged_on_the_answers_of_the_policy_that_is_trained_with_it(build, case, random_policy):
    """One that is right about half of the answers: a policy that gives no others finds no fault in it."""
    policy = random_policy(case, 3)
    policy[:, 0, 2:] = -torch.inf  # an answer is empty or begins with token 1
    evaluator, models = build(case, policy.log_softmax(-1), trains=("policy", "reward_model"), k=32)
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0), 0.0)
    models.reward_model.requires_grad_(False).head.weight.fill_(1.0)
    table = models.reward_model.backbone.rows.weight
    table[:] = 0
    own = torch.isfinite(exact.answer_logps(case, policy.log_softmax(-1)))
    leaves = table[1:].view(case.tree.prompts, case.tree.per_prompt, -1)[:, case.tree.inner :]
    leaves[..., 0] = torch.where(own, case.rewards, -case.rewards).flatten(1).float()
    found = evaluator(0)[0]
    assert found["eval/reward_model/own_gold_corr"] == pytest.approx(1)
    assert found["eval/reward_model/gold_corr"] < 0.9


@pytest.mark.parametrize("solved", [True, False])
def test_pairs_of_one_prompt_are_one_group_but_on_the_testbed(build, case, solved):
    """Every measure of pairs has the standard error between prompts; where these are all there are, between pairs."""
    evaluator, models = build(case, trains=("policy", "reward_model"), enumerate=solved, k=4, pairs=90)
    models.policy.set_conditionals(case.ref + torch.randn(case.ref.shape, generator=torch.Generator().manual_seed(1)))
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0)).requires_grad_(False)
    row, pairs = evaluator(0)[0], evaluator.test_pairs()
    groups = pairs.chosen.ids[:, 0]  # the token of the prompt
    assert len(groups.unique()) == 3

    def expected(values, groups):
        return grouped_se(values.double(), torch.arange(len(values)) if solved else groups)

    def right(margins):
        return (margins > 0) + 0.5 * (margins == 0)

    chosen, rejected = (scored(models.reward_model, side, 512) for side in (pairs.chosen, pairs.rejected))
    margins, longer = (chosen - rejected).double(), (pairs.chosen.lengths - pairs.rejected.lengths).sign()
    values = {"accuracy": right(margins), "nll": -margins.sigmoid().log()}
    values["brier"] = (1 - margins.sigmoid()) ** 2
    for name, each in values.items():
        assert row[f"eval/reward_model/{name}_se"] == pytest.approx(expected(each, groups), rel=1e-6)
    wins = (longer > 0)[longer != 0]
    assert row["eval/reward_model/longer_wins_se"] == pytest.approx(expected(wins, groups[longer != 0]), rel=1e-6)
    chosen, rejected = (
        (token_logps(models.policy, side)[0] - token_logps(models.initial.model, side)[0]).sum(1)
        for side in (pairs.chosen, pairs.rejected)
    )
    assert row["eval/accuracy_se"] == pytest.approx(expected(right(chosen - rejected), groups), rel=1e-6)


def test_the_evaluator_knows_where_the_pairs_come_from(build, case, random_policy):
    """Pairs of the reference: the coverage of the policy is against that."""
    evaluator, _ = build(case, random_policy(case, 3), k=2)
    row, _ = evaluator(0)
    answers, ref = (exact.answer_logps(case, table).exp() for table in (random_policy(case, 3), case.ref))
    expected = torch.where(case.ends, answers**2 / ref, 0.0).sum((1, 2)).mean()
    assert row["exact/coverage_c_2"] == pytest.approx(float(expected), rel=1e-4)


def test_without_held_out_pairs_what_is_measured_on_pairs_is_left_out(case, testbed_models, testbed_data):
    models = testbed_models(case)
    whole, unpaired = (
        Evaluator(models, testbed_data(case, models, kind=kind), None, ("policy",), **SIZES | {"k": 4}, seed=0)(0)[0]
        for kind in ("pairs", "unpaired")
    )
    left_out = {"eval/accuracy", "eval/accuracy_se", "eval/logps/chosen", "eval/logps/rejected"}
    assert whole.keys() - unpaired.keys() == left_out
    models.reward_model = scalar_model(models.policy, None, torch.Generator().manual_seed(0))
    only_rm = Evaluator(models, testbed_data(case, models, kind="unpaired"), None, ("reward_model",), **SIZES, seed=0)
    assert only_rm(0) == ({}, [])
