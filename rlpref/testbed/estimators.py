"""Policy-gradient estimators and KL placements, each with what theory says of its bias.

An estimator is a surrogate to maximise (see `gradients`). Advantages are constants: only the log-probs of the drawn
tokens carry a gradient. Unless its name says otherwise an estimator has the KL as k1 in the reward, and takes the sum
over the tokens of an answer and the mean over answers. All are on-policy: one step from fresh answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rlpref.losses import rollouts
from rlpref.losses.inputs import RolloutLogps
from rlpref.ops.baselines import leave_one_out
from rlpref.ops.gae import gae, penalised_rewards
from rlpref.ops.kl import k1, k2, k3
from rlpref.ops.masked import masked_whiten
from rlpref.testbed.gradients import Draws, Surrogate

KL = Callable[[Tensor], Tensor]  # log-ratio -> estimate of the KL
STD_FLOOR = 1e-4  # added to the standard deviation of a group, as TRL does


@dataclass(frozen=True)
class Estimator:
    """`bias`: `none`, `scale` (right direction, wrong length), or `direction` (both wrong in general)."""

    surrogate: Surrogate
    bias: Literal["none", "scale", "direction"]
    why: str


def maximised(
    loss: Callable[[RolloutLogps], Tensor], logps: Tensor, draws: Draws, advantages: Tensor, reduce="sequence_sum"
) -> Tensor:
    """[prompts, tuples] minus what the trainer would minimise; advantages are [prompts, tuples, k, horizon or 1]."""
    per_token = loss(RolloutLogps(logps, draws.logps, advantages, draws.mask, draws.ref_logps))
    value, weight = rollouts.reduced(per_token, draws.mask, reduce)
    return -(weight * value).sum(-1) / weight.sum(-1)


def per_answer(logps: Tensor, draws: Draws, advantages: Tensor, reduce: str = "sequence_sum") -> Tensor:
    """[prompts, tuples] mean over answers of advantage [prompts, tuples, k] times log-prob of the answer."""
    return maximised(rollouts.reinforce, logps, draws, advantages[..., None], reduce)


def penalised(draws: Draws, kl: KL = k1) -> Tensor:
    """[prompts, tuples, k] score less beta times the KL estimate of the whole answer."""
    return draws.scores - draws.beta * kl((draws.logps - draws.ref_logps).sum(-1))


def less_the_others(values: Tensor) -> Tensor:
    """[..., k] each of k values less the mean of the others."""
    return values - leave_one_out(values)


def std_normalised(values: Tensor) -> Tensor:
    """Group mean off, divided by the group's standard deviation. Shao et al. 2024 (2402.03300), GRPO."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / (values.std(-1, keepdim=True) + STD_FLOOR)


def reinforce(logps: Tensor, draws: Draws) -> Tensor:
    """Williams 1992, without a baseline."""
    return per_answer(logps, draws, penalised(draws))


def exact_baseline(logps: Tensor, draws: Draws) -> Tensor:
    """REINFORCE less the exact mean of the penalised reward, the value of the empty prefix."""
    return per_answer(logps, draws, penalised(draws) - draws.values[..., 0])


def remax(logps: Tensor, draws: Draws) -> Tensor:
    """REINFORCE less the return of the greedy answer. Li et al. 2024 (2310.10505), eq. 4, with the KL in the return."""
    return per_answer(logps, draws, penalised(draws) - draws.greedy[..., None])


def to_come(logps: Tensor, draws: Draws) -> Tensor:
    """RLOO whose return leaves out the KL of the tokens before the one that it stands at."""
    log_ratio = draws.logps - draws.ref_logps
    before = draws.beta * (log_ratio.cumsum(-1) - log_ratio)
    advantages = less_the_others(penalised(draws))[..., None] + before
    return maximised(rollouts.reinforce, logps, draws, advantages)


def rloo(logps: Tensor, draws: Draws, kl: KL = k1) -> Tensor:
    """REINFORCE with the mean of the other answers as its baseline; `kl` stands in the reward."""
    return per_answer(logps, draws, less_the_others(penalised(draws, kl)))


def group_mean(logps: Tensor, draws: Draws) -> Tensor:
    """The mean of all k answers as the baseline. Liu et al. 2025 (2503.20783), Dr. GRPO."""
    return per_answer(logps, draws, less_the_others(penalised(draws)) * (1 - 1 / draws.scores.shape[-1]))


def group_std(logps: Tensor, draws: Draws) -> Tensor:
    """GRPO's advantage without its 1/length."""
    return per_answer(logps, draws, std_normalised(penalised(draws)))


def per_length(logps: Tensor, draws: Draws) -> Tensor:
    """RLOO with each answer's sum divided by its own length, as in GRPO's loss."""
    return per_answer(logps, draws, less_the_others(penalised(draws)), "sequence_mean")


def per_batch_token(logps: Tensor, draws: Draws) -> Tensor:
    """RLOO with the sum over all tokens divided by how many the batch has."""
    return per_answer(logps, draws, less_the_others(penalised(draws)), "token_mean")


def ppo(
    logps: Tensor, draws: Draws, gae_lambda: float, critic: Literal["exact", "zero"], whiten: bool = False
) -> Tensor:
    """PPO's clipped surrogate at ratio 1: per-token KL in the reward, GAE with gamma 1, as `algorithms.ppo` has it.
    The batch that is whitened is the k answers to one prompt."""
    mask = draws.mask.flatten(0, -2)
    log_ratio = (draws.logps - draws.ref_logps).flatten(0, -2)
    rewards = penalised_rewards(draws.scores.flatten(), log_ratio, mask, draws.beta)
    values = draws.values.flatten(0, -2) if critic == "exact" else torch.zeros_like(rewards)
    advantages = gae(rewards, values, mask, 1.0, gae_lambda).view_as(logps)
    if whiten:
        batches = zip(advantages.flatten(0, 1), draws.mask.flatten(0, 1))
        advantages = torch.stack([masked_whiten(*batch) for batch in batches]).view_as(logps)
    return maximised(rollouts.ppo_clip, logps, draws, advantages)


def kl_in_loss(logps: Tensor, draws: Draws, kl: KL, per_token: bool = False) -> Tensor:
    """RLOO on the scores alone, less beta times a KL estimate that is differentiated itself."""
    log_ratio = logps - draws.ref_logps
    penalty = kl(log_ratio).sum(-1) if per_token else kl(log_ratio.sum(-1))
    return per_answer(logps, draws, less_the_others(draws.scores)) - draws.beta * penalty.mean(-1)


def k3_whole(logps: Tensor, draws: Draws) -> Tensor:
    """k3 both in the reward and differentiated: the two terms of grad E[k3]."""
    return rloo(logps, draws, k3) - draws.beta * k3((logps - draws.ref_logps).sum(-1)).mean(-1)


def grpo(logps: Tensor, draws: Draws) -> Tensor:
    """GRPO as published: scores normalised by group, 1/length, k3 of each token in the loss. Shao et al. 2024."""
    loss = partial(rollouts.grpo, kl_coef=draws.beta)
    return maximised(loss, logps, draws, std_normalised(draws.scores)[..., None], "sequence_mean")


ESTIMATORS = {
    "REINFORCE, no baseline": Estimator(reinforce, "none", "score function; E[score] = 0 removes the rest of grad KL"),
    "REINFORCE, exact mean": Estimator(exact_baseline, "none", "a baseline that no draw moves: E[b score] = 0"),
    "RLOO": Estimator(rloo, "none", "the other answers are independent of this one"),
    "RLOO, KL still to come": Estimator(to_come, "none", "a token has no part in the KL before it"),
    "ReMax": Estimator(remax, "none", "the greedy answer is none of the draws"),
    "group mean": Estimator(group_mean, "scale", "an answer is in its own baseline: (k-1)/k of the gradient"),
    "group mean / std": Estimator(group_std, "direction", "the std depends on the answers it divides"),
    "RLOO / length": Estimator(per_length, "direction", "a long answer counts less per token: another objective"),
    "RLOO / tokens of batch": Estimator(per_batch_token, "direction", "the divisor depends on the answers"),
    "GRPO as published": Estimator(grpo, "direction", "std, 1/length and per-token k3 together"),
    "PPO, GAE 1, exact values": Estimator(
        partial(ppo, gae_lambda=1.0, critic="exact"), "none", "reward to come less a baseline of the prefix"
    ),
    "PPO, GAE 1, zero values": Estimator(
        partial(ppo, gae_lambda=1.0, critic="zero"), "none", "reward to come; lambda 1 never trusts the critic"
    ),
    "PPO, GAE 0.95, exact values": Estimator(
        partial(ppo, gae_lambda=0.95, critic="exact"), "none", "later TD errors have mean 0 if the values are exact"
    ),
    "PPO, GAE 0.95, zero values": Estimator(
        partial(ppo, gae_lambda=0.95, critic="zero"), "direction", "a wrong critic makes lambda discount the reward"
    ),
    "PPO, GAE 0.95, exact values, whitened": Estimator(
        partial(ppo, gae_lambda=0.95, critic="exact", whiten=True),
        "direction",
        "the batch's mean and std depend on the answers",
    ),
}

# The same RLOO on the scores throughout; only where the KL stands differs.
KL_PLACEMENTS = {
    "k1 in reward": ESTIMATORS["RLOO"],
    "k3 in reward": Estimator(partial(rloo, kl=k3), "direction", "grad E[k3] has a second term: k3's own derivative"),
    "k3 in reward and as loss": Estimator(k3_whole, "none", "both terms of grad E[k3], and E[k3] = KL"),
    "k1 as loss": Estimator(partial(kl_in_loss, kl=k1), "direction", "its derivative is the score, whose mean is 0"),
    "k2 as loss": Estimator(partial(kl_in_loss, kl=k2), "none", "its derivative is log-ratio * score: k1 in reward"),
    "k3 as loss": Estimator(partial(kl_in_loss, kl=k3), "direction", "its mean derivative is that of the forward KL"),
    "k1 as loss, per token": Estimator(
        partial(kl_in_loss, kl=k1, per_token=True), "direction", "the same as k1 of the answer: mean 0"
    ),
    "k2 as loss, per token": Estimator(
        partial(kl_in_loss, kl=k2, per_token=True), "direction", "blind to the KL that a token leads to later"
    ),
    "k3 as loss, per token": Estimator(
        partial(kl_in_loss, kl=k3, per_token=True), "direction", "forward KL of each token, blind to later ones"
    ),
}
