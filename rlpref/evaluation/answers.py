"""Every answer of an evaluation as rows: what is compared prompt by prompt, judged, or read by a person."""

from __future__ import annotations

from torch import Tensor

from rlpref.evaluation.measure import Measured
from rlpref.ops.logps import Comparison
from rlpref.rewards.judge import plain_texts
from rlpref.rewards.scorer import completion_texts
from rlpref.rollout.sampler import ends_with_eos
from rlpref.types import Samples, Sequences


def policy_rows(tokenizer, eos_token_id: int, measured: Measured, k: int) -> list[dict]:
    """The policy's k answers to each held-out prompt, in the order of the prompts: see `rows`; with what was measured
    of them besides: proxy_reward and cost (each where there is one), logps, ref_logps, kl and entropy (nats, sums over
    the answer's tokens) and token_kl (the KL at each of them)."""
    compared, mask = measured.compared, measured.samples.sequences.mask
    columns = {
        "reward": measured.rewards,
        "proxy_reward": measured.proxies,
        "cost": measured.costs,
        **{name: getattr(compared, name).sum(1) for name in ("logps", "ref_logps", "kl", "entropy")},
    }
    found = rows("policy", tokenizer, eos_token_id, measured.samples, k, columns)
    for row, token_kl in zip(found, _token_kl(compared, mask)):
        row["token_kl"] = token_kl
    return found


def rows(
    by: str, tokenizer, eos_token_id: int, samples: Samples, k: int, columns: dict[str, Tensor | None]
) -> list[dict]:
    """One row for each answer: by (policy or reference), prompt_index (of the held-out prompts), answer_index (0 to
    k - 1), prompt (its text, with answer 0 alone), answer, length (tokens), finished (it ends with EOS), and the
    numbers of `columns` [B] that are not None."""
    sequences = samples.sequences
    numbers = {name: values.double().tolist() for name, values in columns.items() if values is not None}
    lengths, finished = sequences.lengths.tolist(), ends_with_eos(sequences, eos_token_id).tolist()
    prompts, found = _prompt_texts(tokenizer, sequences[::k]), []
    for i, answer in enumerate(completion_texts(tokenizer, sequences)):
        place = {"by": by, "prompt_index": i // k, "answer_index": i % k}
        prompt = {"prompt": prompts[i // k]} if i % k == 0 else {}
        row = {"answer": answer, "length": lengths[i], "finished": finished[i]}
        found.append(place | prompt | row | {name: values[i] for name, values in numbers.items()})
    return found


def with_subsets(rows: list[dict], subsets: list[str | None]) -> list[dict]:
    """The rows, with `subset` beside each prompt of which the data say what part of them it is from."""
    for row in rows:
        if "prompt" in row and (subset := subsets[row["prompt_index"]]) is not None:
            row["subset"] = subset
    return rows


def _prompt_texts(tokenizer, sequences: Sequences) -> list[str]:
    """What was asked, without the frame of a chat template: as a person, or a judge with another template, reads it."""
    if tokenizer.chat_template:
        return plain_texts(tokenizer, sequences)[0]
    prompt_only = sequences.attention_mask & ~sequences.mask
    return tokenizer.batch_decode([ids[kept].tolist() for ids, kept in zip(sequences.ids.cpu(), prompt_only.cpu())])


def _token_kl(compared: Comparison, mask: Tensor) -> list[list[float]]:
    kl, kept = compared.kl.double().cpu(), mask.cpu()
    return [[round(value, 6) for value in row[used].tolist()] for row, used in zip(kl, kept)]
