"""What an evaluation asks of the models: answers to the test prompts, their scores, log-probs of the held-out pairs.
For several runs side by side in one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlpref.data.stacked import move_prompts
from rlpref.models.bundle import Models, in_chunks
from rlpref.ops.logps import Comparison
from rlpref.rollout.sampler import sample
from rlpref.types import Pairs, Prompts, Samples, TensorBatch, cat


@dataclass
class Measured:
    """Of one run."""

    samples: Samples  # k answers of the policy to each test prompt
    compared: Comparison  # policy and initial reference on them
    rewards: Tensor | None  # [B] gold; None: there is none
    proxies: Tensor | None  # [B] what training scores with; None: the gold reward, or nothing
    chosen: Tensor  # [pairs] log-probs of the held-out pairs
    rejected: Tensor


def draw(model: nn.Module, models: Models, prompts: Prompts, k: int, seeds: list[int]) -> Samples:
    """Answers with the same random numbers at every evaluation: what moves is the policy. One seed for each run."""
    generators = [torch.Generator(models.device).manual_seed(seed) for seed in seeds]
    m = models
    return sample(model, prompts, k, m.max_new_tokens, m.temperature, m.eos_token_id, generators, m.chunk)


def measure(models: Models, prompts: list[Prompts], pairs: list[Pairs], k: int, seeds: list[int]) -> list[Measured]:
    """Of each run, in one pass; `models` are those of the run, or the stack of all of them."""
    n = len(seeds)
    samples = draw(models.policy, models, _stack(prompts, models), k, seeds)
    compared = models.compare_with_initial(samples.sequences)
    rewards = models.gold(samples.sequences) if models.gold else None
    proxies = models.reward(samples.sequences) if models.trains_on_a_proxy else None
    sides = _stack(pairs, models)
    chosen, rejected = (
        in_chunks(lambda part: models.policy_logps(part)[0].sum(1), side, models.chunk)
        for side in (sides.chosen, sides.rejected)
    )
    answers, held_out = len(samples) // n, len(chosen) // n
    found = []
    for i in range(n):
        rows, own_pairs = slice(i * answers, (i + 1) * answers), slice(i * held_out, (i + 1) * held_out)
        scores = (None if each is None else each[rows] for each in (rewards, proxies))
        own = _own(samples[rows], i, len(prompts[i]), models)
        found.append(Measured(own, compared[rows], *scores, chosen[own_pairs], rejected[own_pairs]))
    return found


def _stack(own: list[TensorBatch], models: Models) -> TensorBatch:
    """The rows of all runs as the stack of their models reads them."""
    return cat(
        [move_prompts(batch, i, models.policy.members[0].model.tree) if i else batch for i, batch in enumerate(own)]
    )


def _own(samples: Samples, run: int, prompts: int, models: Models) -> Samples:
    """The samples of one run as the run itself would have drawn them."""
    if run == 0:
        return samples
    sequences = move_prompts(samples.sequences, -run, models.policy.members[0].model.tree)
    return replace(samples, sequences=sequences, prompt=samples.prompt - run * prompts)
