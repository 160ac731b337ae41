"""The 95% intervals that a report prints, against what is known exactly: 200 studies of the testbed, each measured by
the evaluator, written as run folders and read back by the report.

A method is twelve policies, of which every seed draws one; so the mean over seeds is the mean of the twelve. Held-out
prompts are drawn from 300. Both means, and all win rates, are enumerated.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlpref.evaluation.evaluator import Evaluator, evaluate
from rlpref.evaluation.exact import make_exact
from rlpref.models.stacked import stack_models
from rlpref.report import headline, load, pairwise
from rlpref.report.intervals import prompt_interval
from rlpref.testbed import exact, optima
from rlpref.testbed.task import make_testbed
from rlpref.types import Prompts

pytestmark = pytest.mark.slow

STUDIES, SEEDS, POLICIES, POPULATION, BETA = 200, 3, 12, 300, 0.2
METHODS = {"dpo": 1.0, "ipo": 0.6}  # how far towards the optimum
MEASURES = ("reward", "kl", "win_rate")


def covered(low, high, expected) -> float:
    low, high, expected = map(np.asarray, (low, high, expected))
    return float(((low <= expected) & (expected <= high)).mean())


@dataclass
class Study:
    """Studies on one task: which policies and prompts each drew, and what every policy is worth."""

    task: object
    drawn: np.ndarray  # [studies, methods, seeds] policies
    asked: np.ndarray  # [studies, prompts]
    worth: dict[str, np.ndarray]  # measure -> [methods, policies, prompts], exact
    rows: dict[tuple, dict]  # (study, method, seed) -> what the evaluator said
    folder: object

    def __post_init__(self):
        self.worth["objective"] = self.worth["reward"] - BETA * self.worth["kl"]
        self.sweep = load(self.folder)

    @cached_property
    def headline(self):
        """Rows of the methods, in the order of the studies."""
        table = headline(self.sweep)
        return table[table["method"] != "reference"].sort_values(["testbed.seed", "method"])

    @cached_property
    def pairs(self):
        return pairwise(self.sweep)

    @cached_property
    def pairs_of_one_seed(self):
        return pairwise(replace(self.sweep, runs=self.sweep.runs[self.sweep.runs["seed"] == 0]))

    def printed(self, column: str) -> np.ndarray:
        """[studies, methods] of the headline."""
        return self.headline[column].to_numpy(dtype=float).reshape(STUDIES, len(METHODS))

    def expected(self, name: str, over: str) -> np.ndarray:
        """[studies, methods] what an interval over seeds, over prompts or over both is to cover."""
        values, methods = self.worth[name], np.arange(len(METHODS))
        if over == "both":
            return np.tile(values.mean((1, 2)), (len(self.asked), 1))
        if over == "seeds":
            return np.array([values[:, :, asked].mean((1, 2)) for asked in self.asked])
        return np.array([values[methods[:, None], drawn].mean((1, 2)) for drawn in self.drawn])


def win_rates(task, policy):
    """[prompts] probability that the policy's answer has a higher reward than the reference's, ties one half."""
    rewards = task.rewards[:, task.ends]
    p, q = (exact.answer_logps(task, table)[:, task.ends].exp() for table in (policy, task.ref))
    difference = rewards[:, :, None] - rewards[:, None, :]
    won = (difference > 0).double() + 0.5 * (difference == 0)
    return torch.einsum("xa,xab,xb->x", p, won, q).tolist()


def make_policies(task):
    """[methods, policies] conditionals: on the way to the optimum, by how far, and which way, the seeds differ."""
    best = optima.optimum(task, task.ref, task.rewards, 0.5).policy
    generator = torch.Generator().manual_seed(0)
    normal = torch.special.ndtri((torch.arange(POLICIES, dtype=torch.float64) + 0.5) / POLICIES)
    shares = 1 + 0.15 * normal

    def policy(share):
        noise = torch.randn(task.ref.shape, generator=generator, dtype=torch.float64)
        return (task.ref + share * (best - task.ref) + 0.3 * noise).log_softmax(-1)

    return [[policy(share * of_method) for share in shares] for of_method in METHODS.values()]


def run_studies(task, models_of, prompts, answers, folder, exact_of=lambda models: None):
    """With so many held-out prompts, None: all that there are, each once; and so many answers to each. The runs of a
    study are measured in one pass, as those of a sweep are."""
    policies = make_policies(task)
    models = [[models_of(task, policy) for policy in of_method] for of_method in policies]
    solved = exact_of(models[0][0])
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, POLICIES, (STUDIES, len(METHODS), SEEDS))
    everything = np.arange(task.tree.prompts)
    asked = np.array([rng.integers(0, len(everything), prompts) if prompts else everything for _ in range(STUDIES)])
    rows = {}
    for study, of_study in enumerate(asked):
        data = held_out(task, of_study)
        sizes = {"prompts": len(of_study), "k": answers, "pairs": 0, "samples": 0}
        asking = {}
        for seed in range(SEEDS):
            reference = {}  # one answers both methods: that of a seed is the same
            for i, method in enumerate(METHODS):
                own = models[i][drawn[study, i, seed]]
                numbers = sizes | {"seed": study * SEEDS + seed}
                asking[study, method, seed] = Evaluator(own, data, solved, ("policy",), **numbers, _reference=reference)
        together = stack_models([evaluator.models for evaluator in asking.values()])
        found = evaluate(list(asking.values()), together, 10)
        for (run, evaluator), (row, _) in zip(asking.items(), found):
            rows[run] = row
            write_run(folder, *run, row, [] if solved else evaluator.answers())
    kl = [[exact.sequence_kl(task, policy, task.ref).tolist() for policy in of_one] for of_one in policies]
    reward = [[exact.expectation(task, policy, task.rewards).tolist() for policy in of_one] for of_one in policies]
    wins = [[win_rates(task, policy) for policy in of_one] for of_one in policies]
    worth = {"reward": np.array(reward), "kl": np.array(kl), "win_rate": np.array(wins)}
    return Study(task, drawn, asked, worth, rows, folder)


def held_out(task, prompts):
    """Data of which the evaluator reads the held-out prompts: there are no pairs."""
    ids = torch.from_numpy(prompts)[:, None] + task.tree.vocab
    test = Prompts(ids, torch.ones_like(ids, dtype=torch.bool))
    return SimpleNamespace(
        train=None,
        test_prompts=test,
        test=None,
        test_subsets=[None] * len(prompts),
        rows=SimpleNamespace(drawn_from=None),
    )


def write_run(folder, study, method, seed, row, answers):
    run = folder / f"{study}-{method}-{seed}"
    run.mkdir(parents=True)
    config = {"seed": seed, "beta": BETA, "algorithm": {"name": method}, "testbed": {"seed": study}}
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "status.json").write_text('{"status": "done"}')
    (run / "metrics.jsonl").write_text(json.dumps({"step": 10} | row) + "\n")
    (run / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))


@pytest.fixture(scope="module")
def sampled(testbed_models, tmp_path_factory):
    """Held-out prompts are a sample of 300; the evaluator does not know the truth."""
    task = make_testbed(vocab=4, horizon=2, prompts=POPULATION, seed=0, reward="ngram")
    return run_studies(task, testbed_models, 32, 2, tmp_path_factory.mktemp("sampled"))


@pytest.fixture(scope="module")
def enumerated(testbed_models, tmp_path_factory):
    """The prompts are all there are, and the evaluator enumerates their answers."""
    task = make_testbed(vocab=4, horizon=2, prompts=4, seed=0, reward="ngram")
    folder = tmp_path_factory.mktemp("enumerated")
    return run_studies(task, testbed_models, None, 32, folder, lambda models: make_exact(task, models, None))


def difference(pairs, metric, expected):
    """The rows of one metric in the order of the studies, and [studies] what their differences are to be, from what
    each method [studies, methods] is worth."""
    rows = pairs[pairs["metric"] == metric].sort_values("testbed.seed")
    assert len(rows) == STUDIES
    sign = np.where(rows["ours"] == "dpo", 1, -1)
    return rows, sign * (expected[:, 0] - expected[:, 1])


RATE = (0.90, 0.98)


def test_the_report_reads_what_the_evaluator_measured(sampled):
    means = sampled.sweep.prompt_means
    for study, method, seed in [(0, "dpo", 0), (150, "ipo", 2)]:
        row, table = sampled.rows[study, method, seed], means[f"{study}-{method}-{seed}"]
        for name in (*MEASURES, "ref_reward"):
            assert table[name].mean() == pytest.approx(row[f"eval/{name}"])
            assert table[name].sem() == pytest.approx(row[f"eval/{name}_se"])


@pytest.mark.parametrize("name", MEASURES)
def test_the_headline_over_seeds(sampled, name):
    """Of other seeds, on the study's own prompts."""
    ends = (sampled.printed(f"{name}_{end}") for end in ("low", "high"))
    assert RATE[0] <= covered(*ends, sampled.expected(name, "seeds")) <= RATE[1]


@pytest.mark.parametrize("name", MEASURES)
def test_the_headline_over_prompts(sampled, name):
    """Of the study's own policies, on all prompts."""
    ends = (sampled.printed(f"{name}_prompts_{end}") for end in ("low", "high"))
    assert RATE[0] <= covered(*ends, sampled.expected(name, "prompts")) <= RATE[1]


@pytest.mark.parametrize("name", ["reward", "kl"])
def test_the_headline_of_exact_values(enumerated, name):
    ends = (enumerated.printed(f"{name}_{end}") for end in ("low", "high"))
    assert RATE[0] <= covered(*ends, enumerated.expected(name, "seeds")) <= RATE[1]
    assert set(enumerated.headline["source"]) == {"exact"}


@pytest.mark.parametrize("name", ["reward", "objective", "win_rate"])
@pytest.mark.parametrize(("over", "prefix"), [("seeds", "seeds_"), ("prompts", "prompts_"), ("both", "")])
def test_the_difference_of_two_methods(sampled, name, over, prefix):
    rows, expected = difference(sampled.pairs, name, sampled.expected(name, over))
    assert set(rows["basis"]) == {"seeds and prompts"}
    assert RATE[0] <= covered(rows[f"{prefix}low"], rows[f"{prefix}high"], expected) <= RATE[1]


@pytest.mark.parametrize("name", ["reward", "objective", "win_rate"])
def test_the_difference_of_two_methods_where_prompts_are_all_there_are(enumerated, name):
    """Reward and objective are exact there; win rates are those of sampled answers."""
    rows, expected = difference(enumerated.pairs, name, enumerated.expected(name, "both"))
    assert set(rows["basis"]) == {"seeds"}
    assert RATE[0] <= covered(rows["low"], rows["high"], expected) <= RATE[1]


@pytest.mark.parametrize("name", ["reward", "win_rate"])
def test_one_run_of_each_method_is_compared_over_prompts(sampled, name):
    own = sampled.worth[name][[0, 1], sampled.drawn[:, :, 0]].mean(2)
    rows, expected = difference(sampled.pairs_of_one_seed, name, own)
    assert set(rows["basis"]) == {"prompts"}
    assert RATE[0] <= covered(rows["low"], rows["high"], expected) <= RATE[1]


@pytest.mark.parametrize("name", MEASURES)
def test_the_evaluators_own_error_over_answers(enumerated, name):
    """One run on all prompts: only its answers are drawn, and for the win rate the reference's."""
    hits = []
    for (study, method, seed), row in enumerated.rows.items():
        i = list(METHODS).index(method)
        found = prompt_interval(row[f"eval/{name}"], row[f"eval/{name}_se"])
        hits.append(found.low <= enumerated.worth[name][i, enumerated.drawn[study, i, seed]].mean() <= found.high)
    assert len(hits) == STUDIES * len(METHODS) * SEEDS
    assert RATE[0] <= np.mean(hits) <= RATE[1]


def test_the_mean_of_standard_errors_is_too_wide_for_win_rates(sampled):
    """What stands in where a run left no answers: it does not average the answers' own error over seeds."""
    runs = sampled.sweep.runs.sort_values(["testbed.seed", "method"])
    cells = runs.groupby(["testbed.seed", "method"])[["eval/win_rate", "eval/win_rate_se"]].mean()
    ends = prompt_interval(*(cells[name].to_numpy().reshape(STUDIES, -1) for name in cells))[1:]
    assert covered(*ends, sampled.expected("win_rate", "prompts")) > RATE[1]
