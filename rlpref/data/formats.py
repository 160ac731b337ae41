"""From record formats to canonical rows: Anthropic's dialogues and TRL's preference formats."""

from __future__ import annotations

import os
import re

from rlpref.data.checks import BadRow, kind, prompt_turns, require, text, turns
from rlpref.data.rows import Row, canonical_row, make_row

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
    if record.get("tools"):
        raise BadRow("'tools' is given, and prompts are rendered without tools", "remove the row")
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
