"""`reward=judge` in whole runs of a tiny Llama, and the settings that nothing would use."""

import pytest
import torch
import yaml

import runs
from rlpref.binding import ConfigError
from rlpref.build import build
from rlpref.check import check
from rlpref.types import Sequences

QUESTIONS = {
    "pairwise": {
        "request": "{prompt} love {first} hate {second}",
        "verdicts": {"first": "good", "second": "bad", "tie": None},
    },
    "pointwise": {"request": "{prompt} was {answer}", "verdicts": {"good": "good", "bad": "bad"}},
}
SHORT = ["data.max_prompt_length=48", "data.max_completion_length=8", "data.prompts=40"]
ROUNDS = ["algorithm.rounds=2", "algorithm.prompts_per_round=8", "algorithm.k=4", "algorithm.batch_size=8"]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("RLPREF_CACHE", str(tmp_path / "cache"))
    runs.save_llama(tmp_path / "policy")
    runs.save_llama(tmp_path / "judge", seed=1)
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(QUESTIONS))
    base = [*runs.TINY, "model=hf", f"model.name={tmp_path}/policy", "data=sentiment", *SHORT]
    return [*base, "reward=judge", f"reward.rubric={tmp_path}/rubric.yaml"]


def own(tmp_path, dtype="float32"):
    """A judge with weights of its own."""
    settings = {"kind": "hf", "name": f"{tmp_path}/judge", "dtype": dtype, "attn_implementation": "packed"}
    return [f"reward.model.{key}={value}" for key, value in settings.items()]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rejection", "iterative_dpo"])
@pytest.mark.parametrize("kind", ["initial", "policy", "own"])
def test_methods_train_on_the_verdicts_of_each_judge(settings, tmp_path, algorithm, kind):
    judge = own(tmp_path) if kind == "own" else [f"reward.model.kind={kind}"]
    summary = runs.run(tmp_path / "run", *settings, *judge, f"algorithm={algorithm}", *ROUNDS)
    rows = runs.metrics(tmp_path / "run")
    assert summary["step"] > 2
    assert any("eval/proxy_reward" in row for row in rows)
    assert {row["objective/scores"] for row in rows if "objective/scores" in row} != {0.0}


@pytest.mark.slow
def test_a_judge_is_frozen_and_the_policy_that_judges_itself_moves(settings, tmp_path):
    def scores_before_and_after(judge):
        config, keys = runs.compose(*settings, *judge, "algorithm=rejection", *ROUNDS)
        models = build(config, check(config, keys)).models
        ids = models.tokenizer(["the film was very good"], return_tensors="pt")["input_ids"]
        rows = Sequences(ids, ids >= 0, torch.arange(5)[None] > 2)
        before = models.reward(rows)
        for parameter in models.policy.parameters():
            parameter.data += 0.1
        return before, models.reward(rows)

    for kind in (["reward.model.kind=initial"], own(tmp_path), own(tmp_path, "bfloat16")):
        before, after = scores_before_and_after(kind)
        assert before.equal(after)
    before, after = scores_before_and_after(["reward.model.kind=policy"])
    assert not before.equal(after)


REFUSED = {
    "algorithm 'rejection' scores single answers, and reward 'judge' compares two": [
        *["algorithm=rejection", "reward.mode=pairwise", "reward.order_conflict=tie"],
    ],
    "needs a value for 'order_conflict': tie or mean": ["algorithm=dpo", "reward.mode=pairwise"],
    "'pointwise' does not use 'order_conflict'; set it to null": ["reward.order_conflict=mean"],
    "reward.rubric 'kindness' is no file": ["reward.rubric=kindness"],
    "reward.model.kind 'polcy' is not known. Did you mean 'policy'": ["reward.model.kind=polcy"],
    "reward.model 'initial' does not use 'dtype'": ["reward.model.dtype=float32"],
    "reward.model.dtype 'None' is not known": ["reward.model.kind=smollm2_135m"],
    "needs a value for: attn_implementation": ["reward.model.kind=smollm2_135m", "reward.model.dtype=float32"],
    "reward.chunk must be at least 1": ["reward.chunk=0"],
    "reward 'judge' reads text, and model 'tabular' writes none": ["model=tabular", "data=testbed"],
}
POLICY = ["model=hf", "model.name=x", "data=sentiment"]


@pytest.mark.parametrize("message", REFUSED)
def test_a_setting_without_use_is_refused(message):
    policy = [] if "model=tabular" in REFUSED[message] else POLICY
    config, keys = runs.compose(*policy, "reward=judge", *REFUSED[message])
    with pytest.raises(ConfigError) as refused:
        check(config, keys)
    assert message in str(refused.value)


@pytest.mark.parametrize("kind", ["initial", "policy", "own"])
def test_words_that_the_judge_cannot_tell_apart_are_refused_before_the_first_round(settings, tmp_path, kind):
    alike = QUESTIONS["pointwise"] | {"verdicts": {"good": "splendid", "bad": "dreadful"}}  # both unknown to it
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump({"pointwise": alike}))
    judge = own(tmp_path) if kind == "own" else [f"reward.model.kind={kind}"]
    config, keys = runs.compose(*settings, *judge, "algorithm=rejection", *ROUNDS)
    with pytest.raises(ConfigError, match=r"reward\.rubric.*does not tell splendid, dreadful apart"):
        build(config, check(config, keys))


def test_pairs_are_compared_by_a_preference(settings, tmp_path):
    choice = ["reward.mode=pairwise", "reward.order_conflict=mean", "algorithm=dpo", *own(tmp_path)]
    config, keys = runs.compose(*settings, *choice)
    parts = build(config, check(config, keys))
    pairs = parts.data.train[:6]
    prefers = parts.models.preference(pairs.chosen, pairs.rejected)
    assert parts.models.reward is None
    assert prefers.shape == (6,)
    assert ((prefers > 0) & (prefers < 1) & (prefers != 0.5)).all()
    assert prefers.allclose(1 - parts.models.preference(pairs.rejected, pairs.chosen), atol=1e-6)
