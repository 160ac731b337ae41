"""The figure of where losses go."""

import pandas as pd

from rlpref.report.optima import IN_PANEL, NEAREST, optima_figure

LINE = pd.DataFrame({"kl": [0.0, 0.5, 1.0], "reward": [0.0, 0.8, 1.0]})


def row(loss, beta, family="pairs", pairs="reference", start="reference", end="minimum", kl_optimum=0.1):
    place = {"kl": 0.5 / (beta or 1), "reward": 0.7, "gap": 0.1, "kl_optimum": kl_optimum}
    return {"family": family, "loss": loss, "beta": beta, "pairs": pairs, "start": start, "end": end, **place}


def axes_of(rows):
    left, plane, *families = optima_figure(pd.DataFrame(rows), LINE, beta=0.5).axes
    return left, plane, families


def labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_every_loss_has_its_row_and_its_path():
    rows = [row("one", beta) for beta in (0.5, 1.0)] + [row("two", None, "anchored"), row("two", None, pairs="holes")]
    left, _, families = axes_of(rows)
    assert {text.get_text() for text in left.get_yticklabels()} == {"one", "two"}
    assert [labels(axis) for axis in families] == [["one"], ["two"]]
    assert [axis.get_title() for axis in families] == ["functions of the margin", "each log-ratio by itself"]


def test_a_family_too_large_for_a_legend_is_cut():
    names = [f"loss {i}" for i in range(IN_PANEL + 1)]
    _, _, families = axes_of([row(name, 0.5) for name in names])
    assert [name for axis in families for name in labels(axis)] == names
    assert families[0].get_title() == "functions of the margin (1 of 2)"


def test_a_new_family_is_drawn_under_its_own_name():
    _, _, families = axes_of([row("made up", 0.5, "elsewhere"), row("dpo", 0.5)])
    assert [axis.get_title() for axis in families] == ["functions of the margin", "elsewhere"]


def test_a_loss_without_an_end_is_no_path():
    left, _, families = axes_of([row("one", 0.5), row("endless", 0.5, end="unbounded below")])
    assert [labels(axis) for axis in families] == [["one"]]
    assert len(left.get_yticklabels()) == 2


def test_what_is_at_the_optimum_stands_at_the_edge_and_other_starts_are_left_out():
    left, _, _ = axes_of([row("one", 0.5, kl_optimum=1e-12), row("one", 0.5, start="second", kl_optimum=2.0)])
    drawn = [float(line.get_xdata()[0]) for line in left.get_lines()]
    assert drawn == [NEAREST]
