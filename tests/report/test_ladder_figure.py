"""The figure of the error ladder."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from rlpref.report.ladder import claim, ladder_figure
from rlpref.report.style import PALETTE

SOURCES = ["objective", "statistics", "optimisation"]


@pytest.fixture
def table():
    """A method whose last segment undoes most of the one before, a small one, and one that is misled."""
    segments = {("dpo", ""): (0.0, 0.6, -0.5), ("ppo", "gold"): (0.0, 0.0, 0.01), ("ipo", ""): (0.9, 0.0, 0.02)}
    rows = []
    for (method, reward), widths in segments.items():
        row = {"method": method, "reward": reward, "n": 3}
        for name, width in zip([*SOURCES, "regret"], [*widths, sum(widths)]):
            row |= {name: width, f"{name}_low": width - 0.001, f"{name}_high": width + 0.001}
        rows.append(row)
    return pd.DataFrame(rows)


def drawn(figure):
    """(row's name, left end, right end, colour, hatched) of each bar."""
    FigureCanvasAgg(figure).draw()
    bars = []
    for axis in figure.axes:
        names = [label.get_text() for label in axis.get_yticklabels()]
        for bar in axis.patches:
            box = bar.get_bbox()
            place = names[round((box.y0 + box.y1) / 2)]
            bars.append((place, box.x0, box.x1, bar.get_facecolor()[:3], bool(bar.get_hatch())))
    return bars


def test_each_segment_starts_where_the_one_before_ended(table):
    bars = drawn(ladder_figure(table, SOURCES))
    dpo = sorted(bar[1:] for bar in bars if bar[0] == "dpo")
    expected = [(0.0, 0.6, to_rgb(PALETTE[1]), False), (0.6, 0.1, to_rgb(PALETTE[2]), True)]
    assert [(bar[2], bar[3]) for bar in dpo] == [(bar[2], bar[3]) for bar in expected]
    np.testing.assert_allclose([bar[:2] for bar in dpo], [bar[:2] for bar in expected], atol=1e-12)
    assert len(bars) == 5, "a segment of no width is not drawn"


def test_small_rows_are_enlarged_on_an_axis_of_their_own(table):
    figure = ladder_figure(table, SOURCES)
    FigureCanvasAgg(figure).draw()
    rows = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes]
    assert rows == [["ipo", "dpo"], ["ppo\ngold reward"]]
    assert figure.axes[1].get_xlim()[1] < 0.1 * figure.axes[0].get_xlim()[1]
    assert "enlarged" in figure.axes[1].get_title(loc="left")


def test_the_title_names_the_widest_segment_whatever_its_sign(table):
    lines = claim(table, SOURCES).split("\n")
    assert [line.strip() for line in lines[1:]] == [
        "objective: ipo",
        "statistics: dpo",
        "optimisation: ppo, gold reward",
    ]
    table.loc[0, SOURCES] = [0.0, 0.4, -0.5]
    assert "optimisation: dpo; ppo, gold reward" in claim(table, SOURCES)


def test_segments_that_miss_the_regret_are_refused(table):
    table.loc[1, "regret"] += 1e-6
    with pytest.raises(ValueError, match=r"miss its regret by 1\.00e-06"):
        ladder_figure(table, SOURCES)


def test_a_row_is_named_by_what_tells_it_apart_and_by_nothing_that_it_lacks(table):
    table.insert(2, "algorithm.rounds", [np.nan, 5.0, np.nan])
    assert claim(table, SOURCES).endswith("ppo, gold reward, 5 rounds")
    assert "statistics: dpo\n" in claim(table, SOURCES)
