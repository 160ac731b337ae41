"""Dynamic sampling: a group whose answers all score alike teaches nothing, so another prompt takes its place.

DAPO, Yu et al. 2025 (2503.14476), section 3.2, which draws until the batch is full; here a bounded number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.algorithms import common
from rlpref.algorithms.algorithm import Round
from rlpref.models.bundle import Models
from rlpref.ops.blocks import Unstackable
from rlpref.types import Prompts, Samples, cat, pad_to_same_width

Scored = tuple[Samples, Tensor, Tensor]  # as common.sample_and_score returns them


def uniform(groups: Tensor) -> Tensor:
    """[prompts] bool: whether the k values [prompts, k] of a group are all the same."""
    return groups.amax(1) - groups.amin(1) < 1e-6


def sample_mixed(
    models: Models, prompts: Prompts, n: int, k: int, round: Round, eos: tuple, beta: float | Tensor, times: int
) -> Scored:
    """k scored answers to each of n of the `prompts`; up to `times` times the groups of uniform scores are drawn again
    for other prompts, each a cost like the first. `objective/` metrics are of the first draw: the policy's own."""

    def draw(count: int) -> Scored:
        chosen = common.choose_prompts(prompts, count, round.generators)
        return common.sample_and_score(models, chosen, k, round, eos, beta)

    drawn = draw(n)
    of_the_policy, redrawn = dict(round.metrics), 0
    for _ in range(times):
        groups = uniform(drawn[2].view(-1, k)).nonzero()[:, 0]
        if len(groups) == 0:
            break
        if round.runs > 1:
            raise Unstackable("dynamic sampling draws again for one run and not for another")
        drawn = put_in(drawn, draw(len(groups)), groups, k)
        redrawn += len(groups)
    if times:
        again = torch.full((round.runs,), redrawn / n, device=drawn[2].device)
        round.metrics |= of_the_policy | {"groups/drawn_again": again}
    return drawn


def put_in(drawn: Scored, other: Scored, groups: Tensor, k: int) -> Scored:
    """The answers drawn, those of `groups` replaced by the other ones."""
    rows = (groups[:, None] * k + torch.arange(k, device=groups.device)).flatten()
    keep = torch.arange(len(drawn[2]), device=groups.device)
    keep[rows] = len(drawn[2]) + torch.arange(len(rows), device=groups.device)
    ref_logps = torch.cat(pad_to_same_width([drawn[1], other[1]]))
    return cat([drawn[0], other[0]])[keep], ref_logps[keep], torch.cat([drawn[2], other[2]])[keep]
