"""From record formats to canonical rows: Anthropic's dialogues, TRL's preference formats, answers with scores."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from rlpref.binding import ConfigError
from rlpref.data.checks import BadRow, flag, kind, prompt_turns, require, score, several, text, turns
from rlpref.data.rows import AnyRow, KwiseRow, Row, UnpairedRow, canonical_row, given_prompt, make_row, shared_columns

ANSWER = "\n\nAssistant:"
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
DIALOGUE_MEND = "write '\\n\\nHuman: ...\\n\\nAssistant: ...' with the answer after the last 'Assistant:'"


def hh_row(record: dict, default_id: str) -> Row:
    """Anthropic's {chosen, rejected} dialogues, or a canonical row where there is a `prompt`.

    The prompt is what stands before the last "\\n\\nAssistant:" of each dialogue, as chat turns, and must be
    the same in both (Bai et al. 2022 publish the pairs so; the longest common prefix cuts into the answers).
    """
    if "prompt" in record:
        return canonical_row(record, default_id)
    chosen_prompt, chosen = split_at_last_answer(require(record, "chosen"), "chosen")
    rejected_prompt, rejected = split_at_last_answer(require(record, "rejected"), "rejected")
    _same_prompts(chosen_prompt, rejected_prompt)
    prompt = dialogue_turns(chosen_prompt.removesuffix(ANSWER))
    return make_row(record, default_id, prompt, chosen.strip(), rejected.strip())


def trl_row(record: dict, default_id: str) -> Row:
    """TRL's standard and conversational preference formats, with an explicit or an implicit prompt.

    Conversational: the answer is the one assistant turn that follows the prompt's turns; an implicit prompt
    is the turns that both conversations share. Standard with an explicit prompt: texts as they are. Standard
    and implicit: with "\\n\\nAssistant:" in the text, the prompt ends with the last one, and must be the
    same in both; otherwise it is the longest common prefix, cut back to the end of a whole word, so that the
    blank before the next word opens both answers.
    """
    _refuse_tools(record)
    chosen, rejected = require(record, "chosen"), require(record, "rejected")
    if kind(chosen) != kind(rejected):
        raise BadRow(f"'chosen' is {kind(chosen)}, 'rejected' {kind(rejected)}", "use one format for both")
    if "prompt" not in record:
        parts = _split_turns(chosen, rejected) if isinstance(chosen, list) else _split_texts(chosen, rejected)
        return make_row(record, default_id, *parts)
    prompt = require(record, "prompt")
    if isinstance(chosen, str):
        return canonical_row(record, default_id)
    if isinstance(prompt, str):
        raise BadRow("'prompt' is a string, the answers are turns", "write the prompt as turns too")
    answers = (_only_answer(value, name) for value, name in ((chosen, "chosen"), (rejected, "rejected")))
    return make_row(record, default_id, prompt_turns(prompt, "prompt"), *answers)


def unpaired_row(record: dict, default_id: str) -> UnpairedRow:
    """TRL's unpaired format {prompt, completion, label}, standard or conversational; or {messages, label}, where the
    last turn of the conversation is the answer. `label` is true for a desirable answer."""
    _refuse_tools(record)
    label = require(record, "label")
    if not isinstance(label, bool):
        raise BadRow(f"'label' is {kind(label)}, not true or false", "write true for a desirable answer, else false")
    if "messages" in record:
        said = turns(require(record, "messages"), "messages")
        prompt, completion = prompt_turns(said[:-1], "messages[:-1]"), _only_answer(said[-1:], "messages[-1:]")
    else:
        prompt = given_prompt(record)
        completion = _answer(require(record, "completion"), "completion", prompt)
    return UnpairedRow(
        prompt=prompt,
        completion=completion,
        label=label,
        score=score(record, "score"),
        finished=flag(record, "finished"),
        **shared_columns(record, default_id),
    )


def kwise_row(record: dict, default_id: str, score_key: str = "score") -> KwiseRow:
    """{prompt, responses, scores}: `responses` are answers, each a text, one assistant turn, or an object with its
    answer in `text` or `content`; the objects may hold their own scores under `score_key`, in place of `scores`.

    A response without a score (null, or no key) is left out and counted in the row. Fewer than two scored responses,
    and scores that are all equal, make a bad row: it ranks nothing. One text may come twice: two samples can agree.
    """
    _refuse_tools(record)
    prompt, responses = given_prompt(record), several(record, "responses", least=2)
    scores = _scores(record, responses, score_key)
    finished = _finished(record, responses)
    scored = [i for i, value in enumerate(scores) if value is not None]
    if len(scored) < 2:
        reason = f"{len(scored)} of {len(responses)} responses have a score (looked for '{score_key}' and 'scores')"
        raise BadRow(reason, "score at least two or remove the row")
    if len({scores[i] for i in scored}) == 1:
        raise BadRow("all scores are equal", "remove the row, it ranks nothing")
    return KwiseRow(
        prompt=prompt,
        responses=[_answer(responses[i], f"responses[{i}]", prompt) for i in scored],
        scores=[scores[i] for i in scored],
        finished=[finished[i] for i in scored],
        unscored=len(responses) - len(scored),
        **shared_columns(record, default_id),
    )


def record_format(kind: str, score_key: str | None) -> Callable[[dict, str], AnyRow]:
    """What makes a row of that kind from a record of a .jsonl file. Raises ConfigError for a `score_key` that the kind
    does not use; null is 'score'."""
    if kind == "kwise":
        return partial(kwise_row, **({"score_key": score_key} if score_key else {}))
    if score_key is not None:
        raise ConfigError(f"data.kind '{kind}' does not use 'score_key': that is for data.kind=kwise.")
    return {"pairs": trl_row, "unpaired": unpaired_row}[kind]


def split_at_last_answer(dialogue, name: str) -> tuple[str, str]:
    """(text up to and with the last "\\n\\nAssistant:", what follows it)."""
    start, found, answer = text(dialogue, name).rpartition(ANSWER)
    if not found:
        raise BadRow(f"'{name}' has no '\\n\\nAssistant:'", DIALOGUE_MEND)
    text(answer, f"{name} after the last Assistant:")
    return start + ANSWER, answer


def dialogue_turns(dialogue: str) -> list[dict]:
    """Chat turns of a "\\n\\nHuman: ...\\n\\nAssistant: ..." text that ends with a human turn."""
    before, *rest = re.split(r"\n\n(Human|Assistant):", dialogue)
    if before.strip() or not rest:
        raise BadRow("the dialogue does not begin with '\\n\\nHuman:'", DIALOGUE_MEND)
    spoken = zip(rest[::2], rest[1::2])
    return prompt_turns([{"role": SPEAKERS[who], "content": said.strip()} for who, said in spoken], "prompt")


def dialogue_text(prompt: list[dict]) -> str:
    """The inverse of `dialogue_turns`, ready for the answer: ends with "\\n\\nAssistant:"."""
    names = {role: speaker for speaker, role in SPEAKERS.items()} | {"system": "System"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in prompt) + ANSWER


def _refuse_tools(record: dict) -> None:
    if record.get("tools"):
        raise BadRow("'tools' is given, and prompts are rendered without tools", "remove the row")


def _scores(record: dict, responses: list, score_key: str) -> list[float | None]:
    """The score of each response, from `scores` or from the responses themselves; None where there is none."""
    own = [isinstance(each, dict) and each.get(score_key) is not None for each in responses]
    if record.get("scores") is None and any(isinstance(each, dict) for each in responses):
        records = [each if has else {} for each, has in zip(responses, own)]
        return [_named(score, each, score_key, f"responses[{i}].{score_key}") for i, each in enumerate(records)]
    if any(own):
        raise BadRow(f"'scores' is given and so is '{score_key}' of a response", "keep one of the two")
    scores = _as_many(several(record, "scores", least=2), "scores", responses)
    return [_named(score, {"scores": value}, "scores", f"scores[{i}]") for i, value in enumerate(scores)]


def _finished(record: dict, responses: list) -> list[bool]:
    """Whether each response ended by itself, from `finished` or from the responses themselves; true by default."""
    if record.get("finished") is not None:
        given = _as_many(several(record, "finished", least=2), "finished", responses)
        return [_named(flag, {"finished": value}, "finished", f"finished[{i}]") for i, value in enumerate(given)]
    records = [each if isinstance(each, dict) else {} for each in responses]
    return [_named(flag, each, "finished", f"responses[{i}].finished") for i, each in enumerate(records)]


def _named(check, record: dict, key: str, name: str):
    """`check` of the value of `key`, which messages call `name`."""
    return check({name: record.get(key)}, name)


def _as_many(values: list, key: str, responses: list) -> list:
    if len(values) != len(responses):
        raise BadRow(f"'{key}' has {len(values)} entries for {len(responses)} responses", "give one for each")
    return values


def _answer(value: Any, name: str, prompt: str | list[dict]) -> str:
    """An answer: a text, one assistant turn in a list, or an object with its text in `text` or `content`."""
    if isinstance(value, list):
        if isinstance(prompt, str):
            raise BadRow(f"'prompt' is a string, '{name}' is turns", "write the prompt as turns too")
        return _only_answer(value, name)
    if isinstance(value, dict):
        key = "text" if "text" in value else "content"
        if key not in value:
            raise BadRow(f"'{name}' has neither 'text' nor 'content'", "give the answer under one of them")
        return text(value[key], f"{name}.{key}")
    return text(value, name)


def _split_turns(chosen: list, rejected: list) -> tuple[list[dict], str, str]:
    chosen, rejected = turns(chosen, "chosen"), turns(rejected, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow(
            "'chosen' and 'rejected' part before their last turn",
            "let them share all turns but the last, or give the prompt in a column of its own",
        )
    prompt = prompt_turns(chosen[:-1], "the shared turns")
    return prompt, _only_answer(chosen[-1:], "chosen"), _only_answer(rejected[-1:], "rejected")


def _only_answer(value: list, name: str) -> str:
    checked = turns(value, name)
    if [turn["role"] for turn in checked] != ["assistant"]:
        raise BadRow(f"'{name}' is not one assistant turn", "let one assistant turn follow the prompt")
    return checked[0]["content"]


def _split_texts(chosen, rejected) -> tuple[str, str, str]:
    chosen, rejected = text(chosen, "chosen"), text(rejected, "rejected")
    if ANSWER in chosen or ANSWER in rejected:
        prompt, chosen_answer = split_at_last_answer(chosen, "chosen")
        rejected_prompt, rejected_answer = split_at_last_answer(rejected, "rejected")
        _same_prompts(prompt, rejected_prompt)
        return prompt, chosen_answer, rejected_answer
    prompt = whole_words(os.path.commonprefix([chosen, rejected]))  # noqa: RUF071 (by character is meant)
    if not prompt:
        raise BadRow("'chosen' and 'rejected' share no first word", "give the prompt in a column of its own")
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def whole_words(prefix: str) -> str:
    """`prefix` without its last, perhaps unfinished word and the blanks before it."""
    if prefix and not prefix[-1].isspace():
        prefix = prefix[: -len(prefix.split()[-1])]
    return prefix.rstrip()


def _same_prompts(chosen_prompt: str, rejected_prompt: str) -> None:
    if chosen_prompt != rejected_prompt:
        raise BadRow("the prompts of 'chosen' and 'rejected' differ", "remove the row: its answers do not compare")
