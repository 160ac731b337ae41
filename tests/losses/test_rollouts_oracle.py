"""Equality with TRL's GRPO, RLOO and GMPO trainers, whose loss is called on log-probs, without a model."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from tokens import assert_same, rollouts, value_and_gradient

pytest.importorskip("trl")
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def stub(loss_type, logps, level, beta, low, high, longest):
    """What of a trainer the loss reads."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(
            gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x, num_processes=1
        ),
        args=SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            **{
                f"vespo_{key}": value
                for key, value in zip(("k_pos", "lambda_pos", "k_neg", "lambda_neg"), (2, 3, 3, 2))
            },
        ),
        aux_loss_enabled=False,
        beta=beta,
        epsilon_low=low,
        epsilon_high=high,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=longest,
        model=SimpleNamespace(training=False),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )


def trl_grpo(rl, loss_type, level="token", beta=0.0, low=0.2, high=0.2, trainer=None):
    """Value and gradient by the log-probs."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    leaf = rl.logps.clone().requires_grad_()
    trainer, mask = trainer or GRPOTrainer, rl.mask.to(leaf)
    fake = stub(loss_type, leaf, level, beta, low, high, rl.mask.shape[1])
    for name in ("get_gamma_weights", "get_off_policy_mask"):
        setattr(fake, name, getattr(trainer, name))
    prompt = torch.zeros(len(rl), 1)
    inputs = {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": torch.zeros_like(leaf)}
    inputs |= {"completion_mask": mask, "advantages": rl.advantages[:, 0], "old_per_token_logps": rl.old_logps}
    inputs |= {"ref_per_token_logps": rl.ref_logps, "num_items_in_batch": mask.sum()}
    value = trainer._compute_loss(fake, None, inputs)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


GSPO = {"level": "sequence", "low": 3e-4, "high": 4e-4}
CASES = {
    "grpo": ({"loss_type": "grpo", "beta": 0.04}, {}),
    "ppo_clip": ({"loss_type": "bnpo"}, {}),
    "dapo": ({"loss_type": "dapo", "high": 0.28}, {}),
    "cispo": ({"loss_type": "cispo", "high": 5.0}, {}),
    "sapo": ({"loss_type": "sapo"}, {"tau_neg": float(torch.tensor(1.05))}),  # TRL rounds its temperatures to fp32
    "vespo": ({"loss_type": "vespo"}, {}),
    "gspo": ({"loss_type": "grpo", **GSPO}, {}),
    "gspo_token": ({"loss_type": "grpo", **GSPO}, {}),
    "luspo": ({"loss_type": "luspo", **GSPO}, {}),
    "gspo wide": ({"loss_type": "grpo", "level": "sequence"}, {"cliprange_low": 0.2, "cliprange_high": 0.2}),
    "luspo wide": ({"loss_type": "luspo", "level": "sequence"}, {"cliprange_low": 0.2, "cliprange_high": 0.2}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_trl(case, seed):
    theirs, ours = CASES[case]
    rl = rollouts(seed)
    assert_same(value_and_gradient(case.split()[0], rl, **ours), trl_grpo(rl, **theirs), **EXACT)


def test_dr_grpo_is_trl_s_times_the_longest_length():
    rl = rollouts()
    theirs = [value * rl.mask.shape[1] for value in trl_grpo(rl, "dr_grpo")]
    assert_same(value_and_gradient("dr_grpo", rl), theirs, **EXACT)


def test_gmpo():
    gmpo = pytest.importorskip("trl.experimental.gmpo")
    rl = rollouts(spread=0.8)
    assert_same(
        value_and_gradient("gmpo", rl), trl_grpo(rl, None, low=0.4, high=0.4, trainer=gmpo.GMPOTrainer), **EXACT
    )


def test_ppo_on_whole_answers_is_trl_s_rloo():
    from trl.trainer.rloo_trainer import RLOOTrainer

    rl = rollouts(spread=0.1)
    leaf, mask, prompt = rl.logps.clone().requires_grad_(), rl.mask.to(rl.logps), torch.zeros(len(rl), 1)
    inputs = {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": torch.zeros_like(leaf)}
    inputs |= {"completion_mask": mask, "advantages": rl.advantages[:, 0], "old_logps": rl.old_logps.sum(1)}
    value = RLOOTrainer._compute_loss(stub("rloo", leaf, "sequence", 0.0, 0.2, 0.2, 5), None, inputs)
    found = value.detach(), torch.autograd.grad(value, leaf)[0]
    assert_same(value_and_gradient("ppo_clip_answer", rl), found, **EXACT)
