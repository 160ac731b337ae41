"""Single answers from pairs, and the mismatched completions with which KTO estimates its KL."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpref.ops.blocks import blocks, chosen_rows
from rlpref.types import Answers, Pairs, Sequences, cat_blocks


def unpair(pairs: Pairs, runs: int = 1) -> Answers:
    """Each pair as a desirable and an undesirable answer: within each run's block (rlpref.ops.blocks) first all that
    were chosen, then all that were rejected. Both have the pair's weight; a soft label is about the two together and
    is left out. Mismatched completions come with them."""
    sides = (
        (pairs.chosen, True, pairs.ref_chosen, pairs.chosen_score),
        (pairs.rejected, False, pairs.ref_rejected, pairs.rejected_score),
    )
    answers = [
        Answers(
            sequences=sequences,
            label=torch.full((len(pairs),), desirable, device=sequences.ids.device),
            ref=ref,
            weight=pairs.weight,
            score=score if pairs.chosen_score is not None and pairs.rejected_score is not None else None,
        )
        for sequences, desirable, ref, score in sides
    ]
    both = cat_blocks(answers, runs)
    both.mismatched = mismatched(both.sequences, runs)
    return both


def mismatched(sequences: Sequences, runs: int = 1) -> Sequences:
    """[B, T'] the prompt of each row with the completion of another row of its run, padded on the right: samples whose
    log-ratio estimates the KL in KTO (Ethayarajh et al. 2024, 2402.01306, section 4.1).

    The completions of each stretch of rows with one prompt come from the next stretch, round the end; where all
    prompts differ, they are rolled by one. So the other row's prompt is always another one, unless the run has one
    prompt only: then its completions are rolled by one all the same, and a single row keeps its own.
    """
    prompt = sequences.attention_mask & ~sequences.mask
    prompt_lengths, rows = prompt.sum(1, keepdim=True), torch.arange(len(sequences), device=prompt.device)
    own = _from(sequences.ids, prompt, int(prompt_lengths.max()))
    _, number = torch.unique(own, dim=0, return_inverse=True)
    other = chosen_rows([_others(block) for block in blocks(number, runs)], len(rows))
    lengths = prompt_lengths + sequences.lengths[other][:, None]
    columns = torch.arange(int(lengths.max()), device=prompt.device).expand(len(rows), -1)
    completions = _from(sequences.ids, sequences.mask, int(sequences.lengths.max()))[other]
    real, completion = columns < lengths, columns >= prompt_lengths
    after = (columns - prompt_lengths).clamp(0, completions.shape[1] - 1)
    before = columns.clamp(max=own.shape[1] - 1)
    ids = torch.where(completion, completions.gather(1, after), own.gather(1, before))
    return Sequences(ids=torch.where(real, ids, 0), attention_mask=real, mask=real & completion)


def _from(ids: Tensor, mask: Tensor, width: int) -> Tensor:
    """[B, width] the ids where `mask` holds, moved to the left; -1 after them."""
    moved = ids.new_full((len(ids), width), -1)
    moved[torch.arange(width, device=ids.device) < mask.sum(1, keepdim=True)] = ids[mask]
    return moved


def _others(prompt: Tensor) -> Tensor:
    """[B] for each row one of another prompt, as `mismatched` says; `prompt` [B] numbers the prompts."""
    rows = torch.arange(len(prompt), device=prompt.device)
    first = torch.ones_like(prompt, dtype=torch.bool)
    first[1:] = prompt[1:] != prompt[:-1]
    starts, stretch = first.nonzero()[:, 0], first.cumsum(0) - 1
    if len(starts) == 1:
        return (rows + 1) % len(rows)
    following = torch.arange(1, len(starts) + 1, device=prompt.device) % len(starts)
    if prompt[0] == prompt[-1]:
        following[-1] = 1
    sizes = torch.bincount(stretch)
    return starts[following[stretch]] + (rows - starts[stretch]) % sizes[following[stretch]]
