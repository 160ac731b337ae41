"""No run starts from a policy that is not its reference."""

import pytest
import torch
from options import PPO_OFF
from transformers import GPT2Config, GPT2LMHeadModel

from rlpref.algorithms import make_algorithm
from rlpref.algorithms.algorithm import Costs, Round, StartError
from rlpref.models.bundle import Models
from rlpref.models.heads import scalar_model
from rlpref.models.lm import apply_lora
from rlpref.models.reference import freeze
from rlpref.models.reference_rule import reference_rule
from rlpref.rewards.scorer import BradleyTerry
from rlpref.rollout.engine import LocalEngine
from rlpref.types import Pairs, Prompts, Sequences

FIXED = {"epochs": 1, "batch_size": 16}
ROUND = {**FIXED, "rounds": 1, "prompts_per_round": 4, "k": 4}
CLIPS = {
    **PPO_OFF,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.5,
}
SCALES = {"lr_scale": 1.0, "critic_lr_scale": 1.0, "whiten_advantages": True, "beta": 0.1}
DPO = {"name": "dpo", "beta": 0.1}
EOS = {"eos_rule": "none", "eos_penalty": None}
PER_ROUND = {"rounds": 1, "prompts_per_round": 4, "k": 4, "beta": 0.1, "lr_scale": 1.0}
ALGORITHMS = {
    "dpo": ("offline", FIXED | {"loss": DPO}),
    "ipo": ("offline", FIXED | {"loss": {"name": "ipo", "tau": 0.1, "normalize": "sum"}}),
    "sft": ("sft", FIXED),
    "iterative_dpo": (
        "iterative",
        ROUND | {"loss": DPO, "pairing": "bradley_terry", "data": "fresh"},
    ),
    "ppo": ("ppo", ROUND | CLIPS | SCALES | EOS),
    "gspo": (
        "grouped",
        ROUND
        | EOS
        | {
            "loss": {"name": "gspo"},
            "beta": 0.1,
            "kl": "reward",
            "advantages": "mean",
            "lr_scale": 1.0,
            "dynamic_sampling": None,
        },
    ),
    "rejection": (
        "rejection",
        ROUND | {"keep": "max", "stages": "all"} | dict.fromkeys(("top", "threshold", "growth", "temperature")),
    ),
    "retrained": (
        "retrained",
        ROUND
        | {"rounds": 2, "loss": DPO, "warmup": 0, "labels": "soft", "pairing": "bradley_terry"}
        | {"head_std": None, "reward_lr_scale": 1.0},
    ),
    "sppo": ("sppo", ROUND | {"loss": {"name": "sppo_single", "beta": 0.1}}),
    "xpo": (
        "xpo",
        {key: value for key, value in ROUND.items() if key != "k"} | {"loss": DPO, "alpha": 0.1, "data": "fresh"},
    ),
    "nash_md": ("nash_md", PER_ROUND | {"share": 0.125, "baseline": "leave_one_out"}),
    "reinforce": ("reinforce", PER_ROUND | EOS | {"baseline": "leave_one_out", "baseline_rate": None}),
}


def sum_of_ids(sequences: Sequences) -> torch.Tensor:
    return (sequences.ids * sequences.mask).float().sum(1)


def gpt2_models(dropout: float) -> Models:
    config = GPT2Config(
        vocab_size=9,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        resid_pdrop=dropout,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(config).eval()
    reference = freeze(policy)
    return Models(
        policy=policy,
        ref=reference,
        initial=reference,
        tokenizer=None,
        eos_token_id=0,
        temperature=0.8,
        max_new_tokens=5,
        chunk=8,
        engine=LocalEngine(8),
        reward=sum_of_ids,
        preference=BradleyTerry(sum_of_ids),
        critic=scalar_model(policy, None, torch.Generator().manual_seed(0)),
        reward_model=scalar_model(policy, None, torch.Generator().manual_seed(1)),
    )


def answers(seed):
    ids = torch.randint(1, 9, (8, 7), generator=torch.Generator().manual_seed(seed))
    attention = torch.arange(7) < torch.tensor([7, 5, 4, 6, 3, 7, 7, 4])[:, None]
    return Sequences(ids, attention, attention & (torch.arange(7) >= 2))


class Data:
    """What `collect` reads of the preference data."""

    def __init__(self):
        self.train = Pairs(answers(1), answers(2))
        self.prompts = Prompts(answers(3).ids[:, :2], torch.ones(8, 2, dtype=torch.bool))


def start(name, models):
    algorithm = make_algorithm(*ALGORITHMS[name], name)
    batch = algorithm.collect(models, Data(), Round(0, [torch.Generator().manual_seed(0)], [Costs()]))
    algorithm.check_start(models, batch)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_policy_that_is_its_reference_may_start(name):
    start(name, gpt2_models(dropout=0.1))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_perturbed_policy_may_not(name):
    models = gpt2_models(dropout=0.0)
    with torch.no_grad():
        models.policy.transformer.wte.weight.add_(0.01 * torch.randn(9, 16))
    with pytest.raises(StartError, match="the policy is not the reference"):
        start(name, models)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nor_one_whose_dropout_is_on(name):
    models = gpt2_models(dropout=0.3)
    models.policy.train()
    with pytest.raises(StartError, match="Is dropout on"):
        start(name, models)


def lora_models(trained: bool) -> Models:
    """The policy under an adapter, beside the base model as its reference."""
    models, rule = gpt2_models(dropout=0.0), reference_rule("adapter_off")
    lora = {"r": 2, "alpha": 4, "dropout": 0, "target_modules": ["c_attn"]}
    models.policy = apply_lora(models.policy, lora)
    if trained:
        move(models.policy)
    models.initial = freeze(models.policy)
    models.ref, models.rule = rule.start(models.policy, models.initial), rule
    return models


def move(policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ("sft", "rejection")])
def test_with_the_adapter_off_only_the_policy_before_training_may_start(name, trained):
    """A trained adapter is not its base, but still is what the evaluator measures from."""
    start(name, lora_models(trained))
    models = lora_models(trained)
    move(models.policy)
    with pytest.raises(StartError, match="the policy is not the reference"):
        start(name, models)


@pytest.mark.parametrize(("kind", "settings"), [("previous", {}), ("sync", {"every": 2})])
@pytest.mark.parametrize("name", ["dpo", "ipo", "iterative_dpo"])
def test_pairs_whose_reference_is_not_stored_are_checked_too(name, kind, settings):
    models, rule = gpt2_models(dropout=0.1), reference_rule(kind, **settings)
    models.ref, models.rule = rule.start(models.policy, models.initial), rule
    start(name, models)
    move(models.policy)
    with pytest.raises(StartError, match="the policy is not the reference"):
        start(name, models)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_old_log_probs_that_are_not_the_policys_are_refused(name):
    """Ratio 1 at the first step, even where the KL to the reference looks right."""
    models = gpt2_models(dropout=0.0)
    algorithm = make_algorithm(*ALGORITHMS[name], name)
    batch = algorithm.collect(models, Data(), Round(0, [torch.Generator().manual_seed(0)], [Costs()]))
    off = 0.1 * batch.sequences.mask
    batch.logps, batch.ref_logps = batch.logps + off, batch.ref_logps + off
    with pytest.raises(StartError, match="ratio - 1"):
        algorithm.check_start(models, batch)
