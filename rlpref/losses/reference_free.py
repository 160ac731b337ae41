"""Losses on preference pairs that read no reference. w and l are summed log-probs, w' and l' their means per token;
l(z) = -log sigmoid(z). Their beta is a scale of their own, not the weight of a KL."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpref.losses.bounds import bounded_exp, log1mexp
from rlpref.losses.inputs import PairLogps
from rlpref.losses.ranges import NotNegative, Positive
from rlpref.losses.registry import register


def mean_logps(lp: PairLogps) -> tuple[Tensor, Tensor]:
    """[B] log-prob per token of the chosen and of the rejected answers."""
    return lp.chosen / lp.chosen_len, lp.rejected / lp.rejected_len


@register(nll=True)
def cpo(lp: PairLogps, beta: Positive = 0.1, alpha: NotNegative = 1.0) -> Tensor:
    """l(beta [w - l]) - alpha w': contrastive preference optimisation, DPO with a uniform reference and a likelihood
    term. Xu et al. 2024 (2401.08417). The authors' likelihood is a mean over the minibatch's tokens."""
    return -logsigmoid(beta * (lp.chosen - lp.rejected)) - alpha * lp.chosen / lp.chosen_len


@register
def simpo(lp: PairLogps, beta: Positive = 2.0, gamma: NotNegative = 1.0) -> Tensor:
    """l(beta [w' - l'] - gamma). Meng et al. 2024 (2405.14734), eq. 6; `gamma` is the target margin of the rewards
    beta w' (the paper's tables give gamma/beta, too)."""
    chosen, rejected = mean_logps(lp)
    return -logsigmoid(beta * (chosen - rejected) - gamma)


@register
def alphapo(lp: PairLogps, beta: Positive = 2.5, gamma: NotNegative = 0.1, alpha: NotNegative = 0.25) -> Tensor:
    """l(beta [f(w') - f(l')] - gamma) with f(x) = (1 - e^(-alpha x))/alpha; alpha -> 0 is SimPO. Gupta et al. 2025
    (2501.03884)."""
    chosen, rejected = mean_logps(lp)
    if not alpha:
        return -logsigmoid(beta * (chosen - rejected) - gamma)
    between = (bounded_exp(-alpha * rejected) - bounded_exp(-alpha * chosen)) / alpha
    return -logsigmoid(beta * between - gamma)


@register(nll=True)
def orpo(lp: PairLogps, beta: Positive = 0.1) -> Tensor:
    """-w' + beta l(log odds(w) - log odds(l)), odds = p/(1 - p) of the mean token probability p = e^(w'). Hong et al.
    2024 (2403.07691), eq. 6 and 7; beta is the paper's lambda. A p of 1 is held just below it and counted."""
    chosen, rejected = mean_logps(lp)
    log_odds_ratio = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    return -chosen - beta * logsigmoid(log_odds_ratio)


@register(nll=True)
def slic(lp: PairLogps, delta: NotNegative = 1.0, lam: NotNegative = 0.1, beta: Positive = 1.0) -> Tensor:
    """max(0, delta - beta [w - l]) - lam w': SLiC-HF with the chosen answer as the target of its regulariser. Zhao et
    al. 2023 (2305.10425); `lam` is the paper's lambda."""
    return torch.relu(delta - beta * (lp.chosen - lp.rejected)) - lam * lp.chosen / lp.chosen_len


@register
def simper(lp: PairLogps) -> Tensor:
    """-e^(w') + e^(l'): inverse perplexity of the chosen answer up, of the rejected down. Xiao et al. 2025
    (2502.00883), as in the authors' code (tengxiao1/SimPER)."""
    chosen, rejected = mean_logps(lp)
    return rejected.exp() - chosen.exp()


@register(nll=True)
def unlikelihood(lp: PairLogps, alpha: NotNegative = 1.0) -> Tensor:
    """-w' - alpha log(1 - e^(l')): likelihood of the chosen answer, unlikelihood of the rejected as a whole. Welleck et
    al. 2019 (1908.04319) penalise token by token; on whole answers it is the baseline of Rafailov et al. 2023
    (2305.18290), section 6, here with mean log-probs. A probability of 1 is held just below it and counted."""
    chosen, rejected = mean_logps(lp)
    return -chosen - alpha * log1mexp(rejected)
