"""Sides live in processes of their own, by turns, and what goes wrong in one is told."""

import os

import pytest
from turns import Side, by_turns, interval, ratios


def counts(turn, start):
    turn()
    while True:
        start += 1
        turn({"count": start, "process": os.getpid()})


def fails(turn):
    turn()
    raise ValueError("no such luck")


def test_each_side_does_its_passes_in_a_process_of_its_own():
    reports = by_turns([Side("one", counts, {"start": 0}), Side("ten", counts, {"start": 10})], repeats=2)
    assert [[one["count"] for one in reports[name]] for name in ("one", "ten")] == [[1, 2, 3], [11, 12, 13]]
    processes = {one["process"] for found in reports.values() for one in found}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert all(0 < one["peak_gb"] < 10 for found in reports.values() for one in found)


def test_a_side_that_fails_is_named_with_its_error():
    with pytest.raises(RuntimeError, match=r"(?s)bad: .*no such luck"):
        by_turns([Side("good", counts, {"start": 0}), Side("bad", fails)], repeats=1)


def test_ratios_are_of_the_same_round():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="longer"):
        ratios([1.0], [1.0, 2.0])


def test_median_with_smallest_and_largest():
    assert interval([3.0, 1.0, 2.0], 1) == "2.0 [1.0, 3.0]"
    assert interval([3.0], 1) == "3.0"
