import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlpref.report.style import FIRST, MARKERS, PALETTE, RC, Look, legend, legend_height, method_styles, plain_logs


def test_a_known_method_looks_alike_in_every_report():
    alone, among = method_styles(["ppo", "dpo"]), method_styles(["simpo", "ppo", "kto", "dpo"])
    assert {method: among[method] for method in alone} == alone


def test_ten_methods_have_ten_colours_and_ten_markers():
    methods = ["simpo", "dpo", "kto", "orpo", "ppo", "hinge", "rebel", "bco", "exo", "nca"]
    styles = method_styles(methods)
    assert {colour for colour, _ in styles.values()} == set(PALETTE)
    assert {marker for _, marker in styles.values()} == set(MARKERS)


def test_there_is_a_look_for_any_number_of_methods():
    methods = [*FIRST, *(f"method {index}" for index in range(40))]
    assert method_styles(methods).keys() == set(methods)


def test_no_two_of_a_hundred_methods_look_alike():
    methods = [*FIRST, *(f"method {index}" for index in range(100 - len(FIRST)))]
    assert len(set(method_styles(methods).values())) == 100


@pytest.mark.parametrize("count", [2, 19, 40])
def test_a_figure_as_high_as_its_legend_cuts_none_of_it(count):
    look = Look.of([f"method {i}" for i in range(count)], [0.1, 0.2, 0.3], ["", "rounds 3"])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(5, legend_height(look, extra=1)), layout="constrained")
        figure.subplots()
        legend(figure, look, [Line2D([], [], label="one more")], markers=True)
        FigureCanvasAgg(figure).draw()
        box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0
    assert box.height > 0.8 * figure.bbox.height  # and no higher than it must be


def test_a_dollar_in_a_name_is_no_formula():
    with mpl.rc_context(RC):
        figure = Figure()
        figure.subplots().set_xlabel(r"costs $\frac$")
        figure.draw_without_rendering()


def test_ticks_of_logarithmic_axes_are_plain_numbers():
    with mpl.rc_context(RC):
        figure = Figure()
        axis = figure.subplots()
        axis.set(xscale="log", xlim=(0.5, 2000), ylim=(0, 1))
        plain_logs(figure)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert {"1", "10", "100", "1000"} <= set(shown)
    assert not [text for text in shown if "$" in text]
