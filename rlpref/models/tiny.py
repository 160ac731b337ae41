"""A tiny HF Llama over the testbed's answers: the same enumerable problem, a real transformer."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn


def tiny_llama(
    vocab: int, horizon: int, prompts: int, hidden_size: int, layers: int, heads: int, seed: int
) -> transformers.LlamaForCausalLM:
    """A Llama that reads `vocab + prompts` tokens and writes the first `vocab`: its answers are exactly those
    of `TabularLM(vocab, horizon, prompts)`."""
    config = transformers.LlamaConfig(
        vocab_size=vocab + prompts,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=horizon + 1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        model.lm_head = nn.Linear(hidden_size, vocab, bias=False)
        nn.init.normal_(model.lm_head.weight, std=config.initializer_range)
    return model.eval()


def imitate(model: nn.Module, conditionals, target: Tensor, steps: int, lr: float) -> float:
    """Supervised training on the exact next-token distributions `target` [prompts, nodes, vocab] (log-probs):
    minimises the KL from the target averaged over all prefixes. `conditionals(model)` gives the model's.
    Returns the last KL in nats per prefix. What is left of it does not matter: the trained model is then
    the reference, and it is enumerated exactly."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    kl = torch.tensor(float("nan"))
    for _ in range(steps):
        kl = (target.exp() * (target - conditionals(model))).sum(-1).mean()
        optimizer.zero_grad()
        kl.backward()
        optimizer.step()
        schedule.step()
    return float(kl.detach())
