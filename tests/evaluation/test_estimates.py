import pytest
import torch

from rlpref.evaluation.estimates import distinct_n, mean_and_se, wins


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
