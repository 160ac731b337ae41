import pytest
import torch

from rlpref.evaluation.estimates import distinct_n, grouped_se, mean_and_se, share_right, wins, with_se


def test_standard_errors_by_hand():
    values = torch.tensor([[1.0, 3.0], [5.0, 9.0]])
    mean, se = mean_and_se(values, all_prompts=True)
    assert mean == 4.5
    # within prompts: variances 2 and 8 of single answers, 2 answers each: sqrt(2/2 + 8/2) / 2 prompts
    assert se == pytest.approx((1 + 4) ** 0.5 / 2)
    # between prompts: means 2 and 7, standard deviation sqrt(12.5), 2 prompts
    assert mean_and_se(values, all_prompts=False)[1] == pytest.approx((12.5 / 2) ** 0.5)


def test_one_answer_or_one_prompt_has_no_standard_error():
    assert mean_and_se(torch.tensor([[1.0], [2.0]]), all_prompts=True)[1] == 0
    assert mean_and_se(torch.tensor([[1.0, 2.0]]), all_prompts=False)[1] == 0


@pytest.mark.parametrize("all_prompts", [True, False])
def test_the_standard_error_is_the_spread_of_the_mean(all_prompts):
    """Over many repetitions, with prompts drawn anew or kept."""
    torch.manual_seed(0)
    effect = torch.randn(12, 1).double()
    means, errors = [], []
    for _ in range(800):
        prompts = effect if all_prompts else torch.randn(12, 1).double()
        mean, se = mean_and_se(prompts + 0.7 * torch.randn(12, 5), all_prompts)
        means.append(mean)
        errors.append(se**2)
    spread, claimed = torch.tensor(means).std().item(), torch.tensor(errors).mean().sqrt().item()
    assert claimed == pytest.approx(spread, rel=0.1)


def test_groups_of_one_are_independent_values():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double() + 3
    one_each = torch.randperm(50) + 7
    expected = with_se("x", values)
    assert with_se("x", values, one_each)["x"] == expected["x"]
    assert with_se("x", values, one_each)["x_se"] == pytest.approx(expected["x_se"], abs=1e-12, rel=1e-12)


def test_a_grouped_standard_error_by_hand():
    # mean 3, sums of differences: -2 - 1 = -3 in one group, 0 and 3 in the two others: sqrt(3/2 (9 + 0 + 9)) / 4
    values, groups = torch.tensor([1.0, 3.0, 2.0, 6.0]), torch.tensor([5, 0, 5, 9])
    assert grouped_se(values, groups) == pytest.approx(27**0.5 / 4)
    assert grouped_se(values, torch.zeros(4).long()) == 0
    assert grouped_se(values.repeat(3), groups.repeat(3)) == pytest.approx(27**0.5 / 4)  # copies say nothing new
    right = {"accuracy": 0.625, "accuracy_se": grouped_se(torch.tensor([0, 0.5, 1, 1]), groups)}
    assert share_right("accuracy", torch.tensor([-1.0, 0.0, 2.0, 3.0]), groups) == pytest.approx(right)


def test_the_grouped_standard_error_is_that_of_a_bootstrap_over_groups():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 8, (300,), generator=generator)
    groups = torch.arange(300).repeat_interleave(sizes)
    effect = torch.randn(300, generator=generator).double()
    values = effect[groups] + torch.randn(len(groups), generator=generator)
    sums = torch.zeros(300).double().index_add(0, groups, values)
    drawn = torch.randint(300, (4000, 300), generator=generator)
    bootstrap = (sums[drawn].sum(1) / sizes[drawn].sum(1)).std().item()
    assert grouped_se(values, groups) == pytest.approx(bootstrap, rel=0.05)
    assert with_se("x", values)["x_se"] < 0.75 * bootstrap  # as if pairs of one prompt were independent


def test_win_rates_and_ties_by_hand():
    won, ties = wins(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
    assert won.flatten().tolist() == pytest.approx([1.5 / 3, 2 / 3, 0.5, 0.5])
    assert ties == pytest.approx(7 / 12)


def test_win_rates_of_both_sides_sum_to_one():
    a, b = torch.randint(0, 4, (2, 5, 6)).float()
    assert wins(a, b)[0].mean() + wins(b, a)[0].mean() == pytest.approx(1)


def test_distinct_n_grams():
    answers = [[1, 2, 1, 2], [1, 2]]
    assert distinct_n(answers, 1) == pytest.approx(2 / 6)
    assert distinct_n(answers, 2) == pytest.approx(2 / 4)
    assert distinct_n([[1]], 2) == 0.0
