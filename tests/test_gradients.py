"""The gradient of a minibatch is one number per parameter, however the minibatch is cut and padded."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from options import PPO_OFF

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round
from rlpref.models.bundle import Models
from rlpref.models.heads import critic_from, scalar_model
from rlpref.models.reference import freeze
from rlpref.rewards.scorer import BradleyTerry
from rlpref.rollout.engine import LocalEngine
from rlpref.types import Pairs, Prompts, Sequences, TensorBatch
from rlpref.update import Passes, backward, parameters

ROWS = 7
DPO = {"name": "dpo", "beta": 0.3, "label_smoothing": 0.1}
ROUNDS = {"rounds": 2, "epochs": 1, "batch_size": 256}
PPO = {
    **ROUNDS,
    "beta": 0.1,
    "prompts_per_round": 4,
    "k": 2,
    "gamma": 0.99,
    "gae_lambda": 0.9,
    **PPO_OFF,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.5,
    "whiten_advantages": True,
    "eos_rule": "subtract",
    "eos_penalty": 1.0,
    "lr_scale": 1.0,
    "critic_lr_scale": 1.0,
}
REINFORCE = {"beta": 0.3, "rounds": 1, "prompts_per_round": 4, "k": 4, "lr_scale": 1.0}
REINFORCE |= {"baseline": "leave_one_out", "baseline_rate": None, "eos_rule": "none", "eos_penalty": None}
ITERATIVE = {
    **ROUNDS,
    "prompts_per_round": 4,
    "k": 4,
    "pairing": "bradley_terry",
    "data": "fresh",
    "loss": {"name": "ipo", "tau": 0.3, "normalize": "mean"},
}
RETRAINED = {key: ITERATIVE[key] for key in ITERATIVE if key != "data"}
RETRAINED |= {"warmup": 0, "labels": "drawn", "head_std": None, "reward_lr_scale": 1.0}
GROUPED = {
    **ROUNDS,
    "beta": 0.1,
    "prompts_per_round": 4,
    "k": 2,
    "eos_rule": "none",
    "eos_penalty": None,
    "lr_scale": 1.0,
    "dynamic_sampling": None,
}
GRPO = {"loss": {"name": "grpo", "cliprange": 0.2, "kl_coef": 0.1}, "kl": "loss", "advantages": "std"}
GSPO = {"loss": {"name": "gspo", "cliprange_low": 0.1, "cliprange_high": 0.1}, "kl": "reward", "advantages": "mean"}
KEPT = {"keep": "max", "stages": "all", "top": None, "threshold": None, "growth": None, "temperature": None}
FIXED = {"epochs": 1, "batch_size": 256}
SHARED = ("beta", "rounds", "prompts_per_round", "k", "lr_scale")
ALGORITHMS = {
    "dpo": ("offline", FIXED | {"loss": DPO}),
    "ipo_sum": ("offline", FIXED | {"loss": {"name": "ipo", "tau": 0.3, "normalize": "sum"}}),
    "ipo_mean": ("offline", FIXED | {"loss": {"name": "ipo", "tau": 0.3, "normalize": "mean"}}),
    "curriculum": ("curriculum", FIXED | {"loss": DPO, "by": "loss", "order": "easy", "shares": [1.0]}),
    "sft": ("sft", FIXED),
    "reward_model": ("reward_model", FIXED | {"loss": {"name": "bradley_terry"}}),
    "ppo": ("ppo", PPO),
    "ppo_unclipped": ("ppo", PPO | {"cliprange": None, "cliprange_value": None, "entropy_coef": 0.1}),
    "reinforce": ("reinforce", REINFORCE),
    "grpo": ("grouped", GROUPED | GRPO),
    "gspo": ("grouped", GROUPED | GSPO),
    "rejection": ("rejection", ROUNDS | KEPT | {"prompts_per_round": 8, "k": 2}),
    "iterative": ("iterative", ITERATIVE),
    "retrained": ("retrained", RETRAINED),
    "sppo": ("sppo", ROUNDS | {"prompts_per_round": 4, "k": 4, "loss": {"name": "sppo_single", "beta": 0.3}}),
    "xpo": ("xpo", ROUNDS | {"prompts_per_round": 8, "alpha": 0.2, "data": "fresh", "loss": DPO}),
    "nash_md": ("nash_md", {key: REINFORCE[key] for key in SHARED} | {"share": 0.25, "baseline": "half"}),
}


def answers(seed) -> Sequences:
    """Answers of 1 to 6 tokens to prompts of 1 to 3, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.arange(ROWS)[:, None] % 3 + 1
    answer = torch.randint(1, 7, (ROWS, 1), generator=generator)
    columns = torch.arange(9)
    attention = columns < prompt + answer
    ids = torch.randint(1, 12, (ROWS, 9), generator=generator)
    return Sequences(ids, attention, attention & (columns >= prompt))


def word_count(sequences: Sequences) -> torch.Tensor:
    """A reward without parameters."""
    return (sequences.ids * sequences.mask).double().sum(1) / 10


@pytest.fixture
def problem(random_llama):
    """(algorithm, models, minibatch, trained modules) after the policy and the critic have moved a little."""

    def build(name):
        kind, settings = ALGORITHMS[name]
        algorithm = make_algorithm(kind, settings, name)
        policy = random_llama()
        reference = freeze(policy)
        reward_model = scalar_model(policy, None, torch.Generator().manual_seed(1))
        models = Models(
            policy=policy,
            ref=reference,
            initial=reference,
            tokenizer=None,
            eos_token_id=0,
            temperature=0.9,
            max_new_tokens=6,
            chunk=3,
            engine=LocalEngine(3),
            reward=word_count,
            preference=BradleyTerry(word_count),
            reward_model=reward_model,
            critic=critic_from(reward_model),
        )
        prompts = answers(3)
        prompt_mask = torch.arange(4) >= 4 - torch.tensor([1, 2, 3, 4])[:, None]
        data = SimpleNamespace(train=Pairs(answers(1), answers(2)), prompts=Prompts(prompts.ids[:4, :4], prompt_mask))
        batch = algorithm.collect(models, data, Round(0, [torch.Generator().manual_seed(0)], [Costs()]))[:ROWS]
        generator = torch.Generator().manual_seed(5)
        trained = {module: getattr(models, module) for module in algorithm.trains}
        with torch.no_grad():
            for module in trained.values():
                for p in module.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        return algorithm, models, batch, trained

    return build


def gradient(algorithm, models, batch, trained, micro):
    for module in trained.values():
        module.zero_grad()
    metrics = backward(algorithm, models, batch, Passes(micro), [parameters(trained)])
    flat = [p.grad.flatten() for module in trained.values() for p in module.parameters() if p.grad is not None]
    return torch.cat(flat), {name: value.item() for name, value in metrics.items()}


def repadded(batch: TensorBatch, left: bool, extra: int) -> TensorBatch:
    """Every sequence of the batch, and all that is aligned with it, moved to one side of wider rows. Padding
    holds tokens that mean something."""
    if isinstance(batch, Sequences):
        ids = moved(batch.ids, batch.attention_mask, left, extra, fill=7)
        rest = (moved(m, batch.attention_mask, left, extra, False) for m in (batch.attention_mask, batch.mask))
        return Sequences(ids, *rest)
    changes = {}
    for name, value in batch.items():
        if isinstance(value, TensorBatch):
            changes[name] = repadded(value, left, extra)
        elif value is not None and value.dim() == 2:
            changes[name] = moved(value, batch.sequences.attention_mask, left, extra, 0.0)
    return replace(batch, **changes)


def moved(tensor, attention, left, extra, fill):
    width = tensor.shape[1] + extra
    wide = torch.full((len(tensor), width), fill, dtype=tensor.dtype)
    for row, (values, real) in enumerate(zip(tensor, attention)):
        count = int(real.sum())
        start = width - count if left else 0
        wide[row, start : start + count] = values[real]
    return wide


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_split_into_micro_batches_gives_the_same_gradient(problem, name):
    algorithm, models, batch, trained = problem(name)
    assert len(batch) == ROWS
    whole, metrics = gradient(algorithm, models, batch, trained, ROWS)
    assert whole.norm() > 1e-3
    halves, _ = gradient(algorithm, models, batch, trained, 4)
    for micro in (1, 2, 3, 5):
        found, found_metrics = gradient(algorithm, models, batch, trained, micro)
        assert (found - halves).abs().max() < 1e-10
        assert (found - whole).norm() < 1e-6 * whole.norm()  # Llama's norms round to fp32 whatever the dtype
        assert found_metrics == pytest.approx(metrics, abs=1e-10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_padding_does_not_change_the_gradient(problem, name):
    algorithm, models, batch, trained = problem(name)
    whole, metrics = gradient(algorithm, models, batch, trained, 3)
    for left, extra in [(True, 0), (True, 4), (False, 4)]:
        other = repadded(batch, left, extra)
        found, found_metrics = gradient(algorithm, models, other, trained, 3)
        assert (found - whole).abs().max() < 1e-10
        assert found_metrics == pytest.approx(metrics, abs=1e-10)


def test_the_gradient_is_that_of_the_weighted_mean(problem):
    """PPO weighs answers by their tokens: its loss is the mean over all tokens of the minibatch."""
    algorithm, models, batch, trained = problem("ppo")
    assert batch.sequences.lengths.unique().numel() > 1
    found, metrics = gradient(algorithm, models, batch, trained, 2)
    for module in trained.values():
        module.zero_grad()
    loss = algorithm.loss(models, batch)
    mean = (loss.value * batch.sequences.lengths).sum() / batch.sequences.mask.sum()
    mean.backward()
    direct = [p.grad.flatten() for m in trained.values() for p in m.parameters() if p.grad is not None]
    # Llama's norms round to fp32 whatever the dtype, and here the gradient has another scale on its way.
    torch.testing.assert_close(torch.cat(direct), found, rtol=1e-5, atol=1e-5)
    assert metrics["loss"] == pytest.approx(mean.item(), abs=1e-12)
    assert 0 < metrics["policy/clipfrac"] < 1  # the clip is at work, in some tokens
