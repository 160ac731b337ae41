import pytest
from matplotlib.colors import to_hex
from synthetic_sweep import METHODS, SEEDS, sampled_row, write_run

from rlpref.report import load, mean_interval
from rlpref.report.family import COSTS, family_figure
from rlpref.report.style import method_styles


def row(method, beta, seed, share):
    return sampled_row(method, beta, seed, share) | {"time/training_seconds": 40 * share}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    for method in METHODS:
        for seed in SEEDS:
            write_run(root / f"{method}-{seed}", method, 0.1, seed, row)
    return load(root)


@pytest.fixture(scope="module")
def axes(sweep):
    return family_figure(sweep, "four methods").axes


def ends(axis):
    """Where each method's marker stands, by colour."""
    return {to_hex(line.get_color()): (line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if marked(line)}


def marked(line):
    return len(line.get_xdata()) == 1 and line.get_marker() in "os^D"


def test_each_method_ends_at_its_mean_over_seeds_in_the_plane_and_at_each_cost(sweep, axes):
    columns = ["eval/kl", "cost/samples", "cost/labels", "time/training_seconds"]
    for axis, column in zip(axes, columns):
        found = ends(axis)
        for method, runs in sweep.done.groupby("method"):
            place = found[method_styles(METHODS)[method][0].lower()]
            assert place == pytest.approx((runs[column].mean(), runs["eval/reward"].mean()))


def test_the_crosses_are_the_intervals_over_seeds(sweep, axes):
    runs = sweep.done[sweep.done["method"] == "dpo"]
    _, low, high = mean_interval(runs["eval/reward"])
    bars = [container[2][1].get_segments()[0] for container in axes[0].containers]
    assert any(segment[:, 1] == pytest.approx([low, high]) for segment in bars)


def test_the_axes_say_what_they_are(axes):
    assert [axis.get_xlabel() for axis in axes[1:]] == list(COSTS.values())
    assert "nats" in axes[0].get_xlabel()


def test_two_problems_are_refused(tmp_path):
    write_run(tmp_path / "a", "dpo", 0.1, 0, row)
    write_run(tmp_path / "b", "dpo", 0.1, 0, row, model={"kind": "lm"})
    with pytest.raises(ValueError, match="the runs have 2"):
        family_figure(load(tmp_path), "")
