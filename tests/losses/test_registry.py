import pytest
from torch import Tensor

from rlpref.binding import ConfigError
from rlpref.losses import LOSSES, make_loss, register
from rlpref.losses.inputs import PairLogps


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
