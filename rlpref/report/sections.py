"""The sections of a report, in the order of the page."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from rlpref.report import (
    by_group,
    calibration,
    comparisons,
    completeness,
    curves,
    displacement,
    errors,
    figures,
    frontier_section,
    gold_proxy,
    hacking,
    judged,
    lengths,
    profiles,
    protocol,
    results,
    reward_wins,
    token_kl,
)
from rlpref.report.frames import Sweep
from rlpref.report.section import Section

# Each reads what runs left behind; None where they left nothing for it.
SECTIONS: tuple[Callable[[Sweep], Section | None], ...] = (
    results.headline_section,
    completeness.section,
    comparisons.section,
    figures.section,
    frontier_section.section,
    gold_proxy.section,
    curves.section,
    profiles.section,
    judged.section,
    reward_wins.section,
    by_group.section,
    displacement.section,
    calibration.section,
    lengths.section,
    token_kl.section,
    hacking.section,
    errors.section,
    protocol.section,
    results.costs_section,
)


def sections(sweep: Sweep) -> list[Section]:
    """What each of SECTIONS has to say. One that fails stands in its place with the error: the others are not lost."""
    return [section for make in SECTIONS if (section := _made(make, sweep)) is not None]


def _made(make: Callable[[Sweep], Section | None], sweep: Sweep) -> Section | None:
    try:
        section = make(sweep)
        for chart in section.charts if section else ():
            figures.lay_out(chart.figure)
        return section
    except Exception as error:
        traceback.print_exc()
        name = f"{make.__module__.rpartition('.')[2]}.{make.__name__}"
        return Section(name, error=f"This part could not be made: {type(error).__name__}: {error}")
