"""The builders of real language models, by kind."""

from __future__ import annotations

from rlpref.models.gguf import smollm2_135m
from rlpref.models.llama2c import stories260k
from rlpref.models.lm import DTYPES, LoadedModel, hf

LANGUAGE_MODELS = {"hf": hf, "smollm2_135m": smollm2_135m, "stories260k": stories260k}


def frozen(kind: str, dtype: str, **settings) -> LoadedModel:
    """A model that is only read: no adapter, no gradients, and so in any of DTYPES. `settings` are the builder's."""
    loaded = LANGUAGE_MODELS[kind](dtype="float32", lora=None, **settings)
    loaded.policy.to(DTYPES[dtype]).requires_grad_(False)
    return loaded


def named_model(name: str) -> LoadedModel:
    """A frozen one by the name that a command line has for it: `smollm2_135m`, or a folder or hub name."""
    if name == "smollm2_135m":
        return frozen(name, "float32", attn_implementation="packed")
    return frozen("hf", "float32", name=name, attn_implementation="packed")
