"""What answers prompts for training: this process, or a server that has the policy's weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from rlpref.binding import ConfigError
from rlpref.rollout.sampler import sample
from rlpref.types import Prompts, Samples

AT_LEAST = 256  # rows at once: a step reads all weights for however few rows, and holds no logits but the last ones


class Engine(Protocol):
    """Where the answers that a method learns from come from."""

    rows: int  # answers at once wherever this process samples them itself, as the evaluator always does

    def sample(
        self,
        policy: nn.Module,
        prompts: Prompts,
        k: int,
        max_new_tokens: int,
        temperature: float,
        eos_token_id: int,
        generators: list[torch.Generator],
    ) -> Samples:
        """As rlpref.rollout.sampler.sample: k answers of `policy` to each prompt and their log-probs under it."""
        ...


@dataclass
class LocalEngine:
    """The policy itself, in this process."""

    rows: int

    def sample(self, policy, prompts, k, max_new_tokens, temperature, eos_token_id, generators) -> Samples:
        """See Engine."""
        return sample(policy, prompts, k, max_new_tokens, temperature, eos_token_id, generators, self.rows)


@dataclass
class EngineContext:
    """What a run has for its engine."""

    tokenizer: Any
    encode: Callable[[str, bool, int], list[int]]  # an answer's text, whether it ended by itself, and the length limit
    chunk: int  # rows in one pass without gradient
    cache: Path


def local(context: EngineContext, rows: int | None) -> LocalEngine:
    """`rows` null: as many as in other passes without gradient, but at least 256."""
    return LocalEngine(rows or max(context.chunk, AT_LEAST))


def openai(
    context: EngineContext,
    rows: int | None,
    base_url: str,
    server: Literal["transformers", "vllm"],
    folder: str | None,
    concurrency: int,
    timeout: float,
) -> Engine:
    """A server with the completions endpoint of OpenAI under `base_url`. New weights are written to `folder` (null: one
    in this user's cache), which it must be able to read. At most `concurrency` requests at a time, of at most `timeout`
    seconds each."""
    from rlpref.rollout.server import DIALECTS, ServerEngine, connect  # loads HF, which no testbed needs

    if timeout <= 0:
        raise ConfigError(f"rollout.timeout must be above 0 seconds, not {timeout}.")
    return ServerEngine(
        dialect=DIALECTS[server](connect(base_url, timeout), context.tokenizer, context.encode),
        folder=Path(folder) if folder else context.cache / "served",
        concurrency=concurrency,
        chunk=context.chunk,
        rows=local(context, rows).rows,
    )


ENGINES = {"local": local, "openai": openai}
