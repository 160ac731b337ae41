"""Three ways to read every prefix of the testbed with a transformer, side by side in one run.

    python benchmarks/enumeration.py        # OMP_NUM_THREADS sets the threads

`cache` is what rlpref does. All give the same conditionals; the table says how far apart they are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlpref.models.tiny import tiny_llama
from rlpref.testbed.task import Testbed, conditionals, make_testbed


def longest_prefixes(task: Testbed, model: nn.Module, batch_size: int = 4096) -> Tensor:
    """Reads the longest prefixes whole; shorter ones are columns of theirs. What rlpref did first."""
    tree = task.tree
    longest = task.prefixes[task.depth == tree.horizon - 1, : tree.horizon - 1]
    prompts = (torch.arange(tree.prompts) + tree.vocab).repeat_interleave(len(longest))
    ids = torch.cat([prompts[:, None], longest.repeat(tree.prompts, 1)], dim=1)
    logits = torch.cat([model(input_ids=chunk, use_cache=False).logits for chunk in ids.split(batch_size)])
    logps = logits.double().log_softmax(-1).view(tree.prompts, len(longest), tree.horizon, tree.vocab)
    return torch.cat([logps[:, :: (tree.vocab - 1) ** (tree.horizon - 1 - t), t] for t in range(tree.horizon)], dim=1)


def tree_mask(task: Testbed, model: nn.Module) -> Tensor:
    """Reads each prompt's prefixes as one sequence in which a token sees its ancestors only (a 4-D mask)."""
    tree = task.tree
    nodes = torch.arange(tree.inner)
    parent = torch.where(nodes > 0, (nodes - 1) // (tree.vocab - 1), 0)
    sees = torch.zeros(tree.inner, tree.inner, dtype=torch.bool)
    ancestor = nodes
    for _ in range(tree.horizon):
        sees[nodes, ancestor] = True
        ancestor = parent[ancestor]
    token = task.prefixes.gather(1, (task.depth - 1).clamp(min=0)[:, None])[:, 0]
    ids = token.repeat(tree.prompts, 1)
    ids[:, 0] = torch.arange(tree.prompts) + tree.vocab
    mask = sees.expand(tree.prompts, 1, -1, -1)
    positions = task.depth.expand(tree.prompts, -1)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits.double().log_softmax(-1)


WAYS = {"longest prefixes": longest_prefixes, "tree mask": tree_mask, "cache": conditionals}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(vocab: int, horizon: int, prompts: int, hidden_size: int, layers: int, repeats: int) -> list[dict]:
    """One row per way: median and range of seconds for an evaluation (no gradient) and for a forward and
    backward pass, and the largest difference from the first way. The ways take turns."""
    task = make_testbed(vocab, horizon, prompts, seed=0, reward="ngram")
    model = tiny_llama(vocab, horizon, prompts, hidden_size, layers, heads=4, seed=0)

    def evaluate(way):
        with torch.no_grad():
            return way(task, model)

    def train(way):
        model.zero_grad()
        (task.ref.exp() * (task.ref - way(task, model))).sum(-1).mean().backward()

    tables = {name: evaluate(way) for name, way in WAYS.items()}  # also warms up
    times: dict = {name: {"evaluate": [], "train": []} for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            times[name]["evaluate"].append(seconds(lambda way=way: evaluate(way)))
            times[name]["train"].append(seconds(lambda way=way: train(way)))
    first = tables["longest prefixes"]
    return [{"way": name, **times[name], "difference": float((tables[name] - first).abs().max())} for name in WAYS]


def table(rows: list[dict]) -> str:
    lines = [f"{'way':18s} {'evaluate, s':>22s} {'forward + backward, s':>24s} {'largest difference':>20s}"]
    for row in rows:
        times = [f"{statistics.median(t):.3f} ({min(t):.3f}-{max(t):.3f})" for t in (row["evaluate"], row["train"])]
        lines.append(f"{row['way']:18s} {times[0]:>22s} {times[1]:>24s} {row['difference']:>20.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    sizes = {"vocab": 8, "horizon": 5, "prompts": 4, "hidden_size": 64, "layers": 2}
    print(f"{sizes}, {torch.get_num_threads()} threads, median of 7 (range)")
    print(table(compare(**sizes, repeats=7)))
