from rlpref.report.grid import flatten, missing_runs, swept_keys


def run(method="dpo", beta=0.1, seed=0, **settings):
    return {"method": method, "beta": beta, "seed": seed, **settings}


def test_flatten_joins_names_with_dots():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": "[1, 2]"}


def test_a_setting_that_differs_between_methods_only_is_not_swept():
    assert swept_keys([run(**{"optimizer.lr": 1}), run("ppo", **{"optimizer.lr": 2})]) == []


def test_a_setting_that_tells_runs_apart_is_swept():
    runs = [run(seed=s, **{"algorithm.rounds": r, "run.dir": f"{s}{r}"}) for s in (0, 1) for r in (1, 4)]
    assert swept_keys(runs) == ["algorithm.rounds"]


def test_settings_that_change_together_count_once_and_the_overridden_one_is_named():
    runs = [run(**{"model.kind": "lm", "model.width": w, "model.depth": w}) for w in (1, 2)]
    assert swept_keys(runs, ["model.depth=1,2"]) == ["model.depth"]


def test_different_problems_are_apart_even_when_no_method_ran_on_both():
    assert swept_keys([run(**{"model.kind": "lm"}), run("ppo", **{"model.kind": "tabular"})]) == ["model.kind"]


def test_a_setting_that_follows_the_seed_is_not_swept():
    assert swept_keys([run(seed=s, **{"testbed.seed": s}) for s in range(3)]) == []


def test_missing_runs_come_from_the_observed_grid():
    runs = [run(), run(seed=1), run(beta=0.5)]
    assert missing_runs(runs, []) == [run(beta=0.5, seed=1)]


def test_missing_runs_include_what_only_the_overrides_name():
    missing = missing_runs([run()], [], ["algorithm=dpo,ppo", "beta=0.1", "seed=range(0,2)"])
    assert missing == [run(seed=1), run("ppo"), run("ppo", seed=1)]


def test_overrides_that_do_not_explain_the_runs_are_not_trusted():
    assert missing_runs([run()], [], ["algorithm=a_file,other_file", "seed=choice(5,6)"]) == []


def test_a_setting_of_one_method_is_not_missing_from_another():
    runs = [run("it", **{"algorithm.rounds": r}) for r in (1, 4)] + [run("dpo")]
    assert missing_runs(runs, ["algorithm.rounds"]) == []
