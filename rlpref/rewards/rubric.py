"""What a judge is asked: a request with blanks and the words that may answer it, read from a rubric file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rlpref.binding import ConfigError

BLANKS = {"pairwise": ("prompt", "first", "second"), "pointwise": ("prompt", "answer")}
VERDICTS = {"pairwise": ("first", "second", "tie"), "pointwise": ("good", "bad")}  # a tie may be null


@dataclass(frozen=True)
class Question:
    """A request and its verdict words, in the order of VERDICTS."""

    request: str
    words: tuple[str, ...]

    def fill(self, **texts: str) -> str:
        """The request with each blank {name} filled; what a text itself has in braces stays as it is."""
        return re.sub(r"\{(\w+)\}", lambda blank: texts.get(blank[1], blank[0]), self.request)


def shipped_rubrics() -> list[str]:
    folder = resources.files("rlpref.rewards").joinpath("rubrics")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_question(rubric: str, mode: str) -> Question:
    """The question that `rubric`, a shipped one or a .yaml file, has for `mode`: pairwise or pointwise.

    The file: {<mode>: {request: text, verdicts: {name: word}}}. The request has every blank of BLANKS[mode] once, the
    verdicts are those of VERDICTS[mode]. Raises ConfigError that names file, key and mend.
    """
    section = _load(rubric).get(mode)
    where = f"reward.rubric '{rubric}', '{mode}'"
    if not isinstance(section, dict) or section.keys() != {"request", "verdicts"}:
        raise ConfigError(f"{where}: there must be 'request' and 'verdicts' under this key, and nothing else.")
    request, verdicts = section["request"], section["verdicts"]
    for blank in BLANKS[mode]:
        if not isinstance(request, str) or request.count(f"{{{blank}}}") != 1:
            raise ConfigError(f"{where}: 'request' must be a text that has {{{blank}}} once.")
    if not isinstance(verdicts, dict) or verdicts.keys() != set(VERDICTS[mode]):
        raise ConfigError(f"{where}: 'verdicts' must have the keys {', '.join(VERDICTS[mode])}.")
    words = {name: verdicts[name] for name in VERDICTS[mode] if name != "tie" or verdicts[name] is not None}
    for name, word in words.items():
        if not isinstance(word, str) or not word.strip():
            raise ConfigError(f"{where}: verdict '{name}' is {word!r}; write a word in quotes.")
    if len(set(words.values())) < len(words):
        raise ConfigError(f"{where}: two verdicts have the same word.")
    return Question(request, tuple(words.values()))


def _load(rubric: str) -> dict[str, Any]:
    shipped = rubric in shipped_rubrics()
    path = resources.files("rlpref.rewards").joinpath("rubrics", f"{rubric}.yaml") if shipped else Path(rubric)
    if not path.is_file():
        raise ConfigError(
            f"reward.rubric '{rubric}' is no file, and none of those that come along: {', '.join(shipped_rubrics())}."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"reward.rubric '{rubric}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"reward.rubric '{rubric}' must hold the keys pairwise and pointwise, or one of them.")
    return content
