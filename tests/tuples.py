"""Every tuple of answers that a sampler could draw, with its chance: means over samples without sampling."""

import torch

from rlpref.testbed.exact import answer_logps
from rlpref.testbed.task import answer_places, answer_tokens
from rlpref.types import Samples, Sequences


def every_tuple(task, policy, k):
    """(what the sampler would return had it drawn each tuple of k answers to each prompt once, the chance of each)"""
    places = answer_places(task)
    tuples = torch.cartesian_prod(*[torch.arange(len(places))] * k).view(-1, k)
    tokens = answer_tokens(task).flatten(0, 1)[places][tuples].flatten(0, 1)
    prompts = task.tree.vocab + torch.arange(task.tree.prompts).repeat_interleave(len(tokens))
    answers = tokens.repeat(task.tree.prompts, 1)
    mask = torch.nn.functional.pad(answers >= 0, (1, 0))
    ids = torch.cat([prompts[:, None], answers.clamp(min=0)], 1)
    attention = mask.clone()
    attention[:, 0] = True
    chance = answer_logps(task, policy).flatten(1)[:, places][:, tuples].sum(-1).exp() / task.tree.prompts
    return Sequences(ids, attention, mask), chance.flatten().repeat_interleave(k) / k


def drawn_once(models, task, policy, k):
    """(every tuple as the sampler would return it, its log-probs under `models.policy`; the chance of each answer)"""
    sequences, chance = every_tuple(task, policy, k)
    with torch.no_grad():
        logps = models.policy_logps(sequences)[0]
    return Samples(sequences, logps, prompt=torch.arange(len(logps)) // k), chance


def mean_gradient(loss, chance, models, task):
    """[prompts, inner, vocab] what an update climbs on average, from the losses of answers with these chances."""
    assert (loss.weight == 1).all()
    (chance * loss.value).sum().backward()
    tree = task.tree
    table = models.policy.model.rows.weight.grad[1:].view(tree.prompts, tree.per_prompt, tree.vocab)
    return -table[:, : tree.inner]  # the loss is minimised
