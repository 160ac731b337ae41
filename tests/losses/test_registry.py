from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

from rlpref import loss_configs
from rlpref.binding import ConfigError
from rlpref.losses import LOSSES, make_loss, register, registry
from rlpref.losses.inputs import AnswerLogps, ListLogps, PairLogps
from rlpref.losses.registry import columns_read


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpoo", {"beta": 0.1}, "loss 'dpoo' is not known. Did you mean 'dpo'?"),
        ("dpo", {}, "loss 'dpo' needs a value for: beta"),
        ("dpo", {"beta": 0.1, "tau": 0.1}, "loss 'dpo' does not use 'tau'"),
        ("dpo", {"beta": 0.1, "lp": 0}, "loss 'dpo' does not use 'lp'"),
        ("dpo", {"beta": "0.1"}, "loss 'dpo': 'beta' cannot be '0.1'; it takes a number"),
        ("dpo", {"beta": 0.1, "label_smoothin": 0.1}, "Did you mean 'label_smoothing'?"),
        ("ipo", {"normalize": "sum"}, "loss 'ipo' needs a value for: tau"),
        (
            "ipo",
            {"tau": 0.1, "normalize": "median"},
            "'normalize' cannot be 'median'; it takes one of 'sum', 'mean'",
        ),
    ],
)
def test_a_loss_that_cannot_be_made_as_asked_is_refused_by_name(name, settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_loss(name, **settings)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_where_it_is_from(name):
    assert "20" in LOSSES[name].function.__doc__  # a year or an arXiv number
    assert LOSSES[name].name == name


def test_a_name_is_registered_once():
    before = dict(LOSSES)
    with pytest.raises(ValueError, match="registered already"):

        @register
        def dpo(lp: PairLogps, beta: float) -> Tensor: ...

    assert before == LOSSES


def roundabout(lp: PairLogps, beta: float) -> Tensor:
    """DPO by way of the batch's own methods and copies."""
    return LOSSES["dpo"].function(replace(lp.swapped().swapped(), chosen_len=lp.chosen_len), beta)


@pytest.mark.parametrize("loss", [LOSSES["dpo"].function, roundabout])
def test_what_a_loss_reads_is_seen_however_it_reads_it(loss):
    assert columns_read(partial(loss, beta=0.3)) == {"chosen", "rejected", "ref_chosen", "ref_rejected"}


def test_what_is_held_constant_is_read_too():
    assert "chosen_kl" in columns_read(make_loss("tdpo2", beta=0.3))
    assert columns_read(make_loss("kto", beta=0.3), AnswerLogps) == {"logps", "ref_logps", "mismatched"}
    assert columns_read(make_loss("s_dpo", beta=0.3), ListLogps) == {"logps", "ref_logps", "scores"}


def test_what_a_hyperparameter_switches_off_is_not_read():
    assert "chosen_len" in columns_read(make_loss("ipo", tau=0.3, normalize="mean"))
    assert "chosen_len" not in columns_read(make_loss("ipo", tau=0.3))
    assert "soft_label" in columns_read(make_loss("sppo", beta=0.3, labels="soft"))
    assert "soft_label" not in columns_read(make_loss("sppo", beta=0.3))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chi_po", {"beta": 0.1, "clip": -1}, "'clip' must be above 0, not -1"),
        ("f_dpo", {"beta": 0.1, "divergence": "alpha", "alpha": -2}, "'alpha' must be above 0 and at most 1, not -2"),
        ("kto", {"beta": 0.1, "desirable_weight": -1}, "'desirable_weight' must be at least 0, not -1"),
        ("infonca", {"beta": 0.1, "temperature": 0}, "'temperature' must be above 0, not 0"),
        ("dpo", {"beta": 0}, "'beta' must be above 0, not 0"),
        ("dual_clip", {"dual_clip": 1}, "'dual_clip' must be above 1, not 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(name, settings, message):
    with pytest.raises(ConfigError, match=f"loss '{name}': {message}"):
        make_loss(name, **settings)


def test_no_generated_configuration_hides_behind_a_file():
    written = {path.stem for path in (Path(__file__).parents[2] / "conf" / "algorithm").glob("*.yaml")}
    assert not written & {option for group, option, _ in loss_configs.configs() if group == "algorithm"}


def test_a_cell_of_a_notebook_may_run_again_and_needs_a_docstring(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(LOSSES))

    def cell(scale):
        def once_more(lp: PairLogps) -> Tensor:
            return scale * lp.chosen

        once_more.__module__ = "__main__"
        return once_more

    with pytest.raises(ValueError, match="'once_more' needs a docstring: its formula, then its paper"):
        register(cell(1.0))
    for scale in (1.0, 2.0):
        function = cell(scale)
        function.__doc__ = "scale w. Nobody 2026."
        register(function)
    assert registry.LOSSES["once_more"].function is function
