from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from rlpref.binding import ConfigError, bind, choose, did_you_mean


def method(given, rate: float, steps: int, mode: Literal["a", "b"], on: bool = False, limit: int | None = None):
    return given, rate, steps, mode, on, limit


GOOD = {"rate": 0.1, "steps": 3, "mode": "a"}


def test_settings_become_keywords():
    assert bind(method, GOOD | {"on": True}, "method", 1)("x") == ("x", 0.1, 3, "a", True, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GOOD | {"rte": 1.0}, "method does not use 'rte'. Did you mean 'rate'"),
        (GOOD | {"given": 1.0}, "does not use 'given'"),
        ({"rate": 0.1, "steps": 3}, "needs a value for: mode"),
        (GOOD | {"mode": "c"}, "'mode' cannot be 'c'; it takes one of 'a', 'b'"),
        (GOOD | {"steps": 3.0}, "'steps' cannot be 3.0; it takes a whole number"),
        (GOOD | {"steps": True}, "'steps' cannot be True"),
        (GOOD | {"rate": "0.1"}, "'rate' cannot be '0.1'; it takes a number"),
        (GOOD | {"rate": True}, "'rate' cannot be True"),
        (GOOD | {"rate": None}, "'rate' cannot be None"),
        (GOOD | {"on": "yes"}, "'on' cannot be 'yes'; it takes true or false"),
        (GOOD | {"limit": "ten"}, "'limit' cannot be 'ten'; it takes a whole number or null"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError) as refusal:
        bind(method, settings, "method", 1)
    assert message in str(refusal.value)


def test_a_whole_number_is_a_number_and_null_fits_where_it_is_offered():
    assert bind(method, GOOD | {"rate": 1, "limit": None}, "method", 1)(0)[1] == 1
    assert bind(method, GOOD | {"limit": 4}, "method", 1)(0)[5] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [0.5, 1]}, None),
        ({"weights": (1,), "options": {}}, None),
        ({"weights": 0.5}, "'weights' cannot be 0.5; it takes a list whose every entry is a number"),
        ({"weights": [0.5, "a"]}, "'weights' cannot be [0.5, 'a']"),
        ({"weights": "ab"}, "'weights' cannot be 'ab'"),
        ({"weights": [], "options": [1]}, "'options' cannot be [1]; it takes a mapping of names to values or null"),
    ],
)
def test_lists_are_checked_by_their_entries_and_mappings_as_such(settings, message):
    def mixture(weights: Sequence[float], options: Mapping[str, float] | None = None):
        return weights

    if message is None:
        assert bind(mixture, settings, "mixture")() == settings["weights"]
        return
    with pytest.raises(ConfigError) as refusal:
        bind(mixture, settings, "mixture")
    assert message in str(refusal.value)


def test_dataclasses_bind_by_their_fields():
    @dataclass
    class Settings:
        lr: float

    assert bind(Settings, {"lr": 1e-3}, "settings")().lr == 1e-3
    with pytest.raises(ConfigError, match="cannot be 'fast'"):
        bind(Settings, {"lr": "fast"}, "settings")


def test_choose_lists_what_is_known():
    assert choose({"dpo": method}, "dpo", "loss") is method
    with pytest.raises(ConfigError, match=r"loss 'dpoo' is not known\. Did you mean 'dpo'\? Known: dpo, ipo"):
        choose({"ipo": method, "dpo": method}, "dpoo", "loss")


def test_nothing_is_suggested_for_a_name_like_no_other():
    assert did_you_mean("zzz", ["rate", "steps"]) == ""
