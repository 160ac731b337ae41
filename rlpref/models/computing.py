"""How a language model is computed: precision, compiled layers, activations kept or made again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlpref.binding import ConfigError
from rlpref.models.attention import stay_out_of_graphs
from rlpref.ops.twin import compute_in, running


@dataclass(frozen=True)
class Computing:
    """`compute_dtype` None: the dtype of the weights. `bfloat16` with weights in float32 computes in bfloat16 and keeps
    weights, gradients and optimizer in float32 (rlpref.ops.twin)."""

    compute_dtype: Literal["bfloat16"] | None
    compile: bool  # the layers; minutes at the first step on a CPU, again in a new process only where nothing is cached
    checkpoint_layers: (
        bool  # keeps the input of each layer alone and makes the rest again: a third more work, less memory
    )

    def __post_init__(self):
        if self.compile and self.checkpoint_layers:
            raise ConfigError(
                "model.checkpoint_layers is not used with model.compile, which chooses what to keep itself."
            )

    def check(self, adapter: bool) -> None:
        """ConfigError where the weights are frozen: they need no copy in full precision."""
        if self.compute_dtype and adapter:
            raise ConfigError("model.compute_dtype is for full fine-tuning: with an adapter set model.dtype.")

    def cast(self, module: nn.Module) -> None:
        """From now on `module` computes in `compute_dtype`; its weights stay what they are."""
        if self.compute_dtype:
            compute_in(module, getattr(torch, self.compute_dtype))

    def prepare_layers(self, module: nn.Module) -> None:
        """Of a model that is complete: a copy of it has layers that are not compiled."""
        if self.compile:
            stay_out_of_graphs()
        found = layers(running(module))
        if (self.compile or self.checkpoint_layers) and not found:
            key = "compile" if self.compile else "checkpoint_layers"
            raise ConfigError(f"{type(module).__name__} has no layers that model.{key} could find: set it to false.")
        for layer in found:
            if self.compile and layer._compiled_call_impl is None:
                layer.compile(dynamic=True)
            if self.checkpoint_layers and "forward" not in vars(layer):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a HF model, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # loads HF's models: not for runs without one

    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
