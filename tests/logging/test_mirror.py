"""A logger that cannot start, or dies on the way, does not stop a run; one that is not installed is refused before."""

import importlib.util

import pytest

import runs
from rlpref.binding import ConfigError
from rlpref.logging.loggers import check_logger, make_mirror
from rlpref.logging.mirror import Guarded, Identity, NoMirror


def identity(folder):
    return Identity(folder, "g", "dpo", "n", ("tabular",), {}, {"config_hash": "0"})


def test_disabled_opens_nothing(tmp_path):
    opens = check_logger({"kind": "wandb", "mode": "disabled", "project": "rlpref"})
    assert isinstance(make_mirror(opens, identity(tmp_path)), NoMirror)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "tensorboard", "mode": "offline"}, "logger 'tensorboard' does not use 'mode'"),
        ({"kind": "wandb", "mode": "offline"}, "logger 'wandb' needs a value for: project"),
        ({"kind": "wandb", "mode": "offline", "project": "p", "entity": "e"}, "logger 'wandb' does not use 'entity'"),
        ({"kind": "tensorbord"}, "logger.kind 'tensorbord' is not known. Did you mean 'tensorboard'?"),
        ({"mode": "offline", "project": "p"}, "logger.kind 'None' is not known"),
    ],
)
def test_what_a_logger_does_not_use_is_refused(settings, said):
    with pytest.raises(ConfigError) as caught:
        check_logger(settings)
    assert said in str(caught.value)


def test_a_logger_that_is_not_installed_is_refused_by_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlpref\[tensorboard\]'"):
        check_logger({"kind": "tensorboard"})


def test_a_wandb_that_cannot_start_does_not_stop_the_run(tmp_path, monkeypatch):
    import wandb

    modes = []

    def broken(mode, **_):
        modes.append(mode)
        raise RuntimeError("no wandb today")

    monkeypatch.setattr(wandb, "init", broken)
    for mode, said in (("offline", "no wandb today"), ("online", "could not go online")):
        opens = check_logger({"kind": "wandb", "mode": mode, "project": "rlpref"})
        with pytest.warns(UserWarning, match=r"metrics.jsonl has everything") as told:
            mirror = make_mirror(opens, identity(tmp_path))
        assert isinstance(mirror, NoMirror)
        assert said in str(told[0].message)
    assert modes == ["offline", "online", "offline"]


def test_a_mirror_that_dies_on_the_way_does_not_stop_the_run(recwarn):
    class Dying:
        calls = 0

        def log(self, row):
            self.calls += 1
            if self.calls == 2:
                raise BrokenPipeError("wandb-core is gone")

    dying = Dying()
    mirror = Guarded(dying)
    for _ in range(3):
        mirror.log({"loss": 1.0})
    mirror.samples([{}])
    mirror.finish(failed=False)
    assert dying.calls == 2
    assert [str(warning.message) for warning in recwarn] == [
        "the logger failed (wandb-core is gone); metrics.jsonl has everything."
    ]


def test_a_mirror_is_told_what_the_folder_keeps_and_then_the_rest(tmp_path, monkeypatch):
    """Whatever the mirror is: a run that was cut short tells it every row once, in the order of metrics.jsonl."""
    from rlpref import run

    told = {}

    class Listening(NoMirror):
        def __init__(self):
            self.rows, self.texts = [], []
            told["last"] = self

        def log(self, row):
            self.rows.append(row)

        def samples(self, rows):
            self.texts += rows

    monkeypatch.setattr(run, "make_mirror", lambda *_: Listening())
    monkeypatch.setattr(run, "_mirror_figure", lambda *_: None)
    settings = [*runs.TESTBED, "training.checkpoint_every=3", *runs.METHODS["dpo"]]
    with runs.interrupted_at(monkeypatch, 5):
        runs.run(tmp_path, *settings)
    first = told["last"].rows
    assert first == runs.read_rows(tmp_path / "metrics.jsonl")
    runs.run(tmp_path, *settings)
    assert told["last"].rows == runs.read_rows(tmp_path / "metrics.jsonl")
    assert told["last"].texts == runs.read_rows(tmp_path / "samples.jsonl")
    assert len(told["last"].rows) > len(first)
