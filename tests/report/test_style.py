from rlpref.report.style import FIRST, MARKERS, PALETTE, method_styles


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
