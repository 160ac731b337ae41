"""The policies of the testbed as loaded models: each starts at the reference it will be measured against."""

from __future__ import annotations

from rlpref.models.lm import LoadedModel
from rlpref.models.tabular import TabularLM
from rlpref.models.tiny import imitate, tiny_llama
from rlpref.testbed.task import Testbed, conditionals
from rlpref.testbed.tokenizer import testbed_tokenizer


def tabular(task: Testbed) -> LoadedModel:
    """One free logit per prefix and token; the reference exactly."""
    tree = task.tree
    return _loaded(task, TabularLM(tree.vocab, tree.horizon, tree.prompts).set_conditionals(task.ref), "tabular")


def tiny(
    task: Testbed, hidden_size: int, layers: int, heads: int, pretrain_steps: int, pretrain_lr: float
) -> LoadedModel:
    """A small HF Llama trained towards the task's reference. What it has become is enumerated and is the
    reference of the run, so its distance to the task's does not matter."""
    tree = task.tree
    policy = tiny_llama(tree.vocab, tree.horizon, tree.prompts, hidden_size, layers, heads, task.seed)
    kl = imitate(policy, lambda model: conditionals(task, model), task.ref, pretrain_steps, pretrain_lr)
    loaded = _loaded(task, policy, "tiny")
    loaded.card["pretrain_kl"] = kl
    return loaded


def _loaded(task: Testbed, policy, name: str) -> LoadedModel:
    card = {"name": name, "parameters": sum(p.numel() for p in policy.parameters())}
    return LoadedModel(policy, testbed_tokenizer(task.tree.vocab, task.tree.prompts), name, card)


TESTBED_MODELS = {"tabular": tabular, "tiny": tiny}
