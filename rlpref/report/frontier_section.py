"""The section on reward-KL frontiers: what methods reach at equal KL, and how far from the best possible that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rlpref.report.folders import read_config
from rlpref.report.frames import Sweep
from rlpref.report.frontier_figure import frontier_chart
from rlpref.report.frontiers import Frontier, area_rows, at_kl_rows, common_kl, fixed_kls, frontiers
from rlpref.report.intervals import mean_interval
from rlpref.report.lines import EXACT, Line
from rlpref.report.panels import numbered
from rlpref.report.section import Claim, Section, Table
from rlpref.report.tables import interval_text, text

ABOVE = 1e-3  # reward: so far above an exact frontier a mean over runs may lie by rounding
FAR = 0.5  # of sqrt(KL): evaluations further apart than this are marked where a value is read between them


def section(sweep: Sweep) -> Section | None:
    """None where no finished run moved in the reward-KL plane."""
    problems = [found for found in frontiers(sweep) if not np.isnan(common_kl(found[1]))]
    if not problems:
        return None
    tables, charts, claims = [], [], []
    for end, _, title, found, line in numbered(problems):
        own = _long(title, found, line)
        tables.append(Table(f"reward_at_kl{end}", own, _table_caption(title, line), _shown(own, found, line)))
        charts.append(frontier_chart(f"envelope{end}", title, found, line))
        claims += _claims(title, found, line, f"reward_at_kl{end}")
    notes = [*temperature_notes(sweep), *(note for title, found, _ in problems for note in _notes(title, found))]
    return Section("Reward at equal KL", tuple(notes), tuple(tables), tuple(charts), tuple(claims))


MEANS = {f"{name}{end}": f"mean_{name}{end}" for name in ("reward", "gap") for end in ("", "_low", "_high")}


def _long(title: str, found: Sequence[Frontier], line: Line | None) -> pd.DataFrame:
    """The rows of `reward_at_kl`, with those of `areas` repeated as upto, mean_reward, mean_gap and their intervals."""
    means = pd.DataFrame(area_rows(title, found, line)).rename(columns=MEANS)
    kept = ["method", "upto", *(["gap_upto"] if line else []), *(name for name in MEANS.values() if name in means)]
    return pd.DataFrame(at_kl_rows(title, found, line, fixed_kls(found))).merge(means[kept])


def temperature_notes(sweep: Sweep) -> list[str]:
    """Of which distribution the KL is: that at the temperature at which answers are sampled. A warning where runs
    differ in it: their references and KLs are of different distributions then."""
    runs: dict[str, list[str]] = {}
    for run in sweep.done["run"]:
        config = read_config(sweep.configs[run])
        runs.setdefault(text(config.get("temperature")), []).append(run)
    if len(runs) == 1:
        says = "Answers are sampled, and KL is measured, at temperature {0}: of softmax(logits / {0})."
        return [says.format(value) for value in runs if value != "-"]
    named = "; ".join(f"{value}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for value, names in runs.items())
    return [f"Warning: runs differ in temperature ({named}). Their references differ with it: KLs do not compare."]


def _notes(title: str, found: Sequence[Frontier]) -> list[str]:
    place, notes = f"{title}: " if title else "", []
    if short := [f"{each.method} ends at {text(each.reach)}" for each in found if each.reach < common_kl(found)]:
        notes.append(f"{place}Not all methods reach KL {text(common_kl(found))}: {', '.join(short)}.")
    if single := [each.method for each in found if not each.chosen_apart]:
        notes.append(f"{place}chosen and read on the same runs, so too high (one seed): {', '.join(single)}.")
    if cells := [f"{each.method} ({each.left_out})" for each in found if each.left_out]:
        notes.append(f"{place}settings with one finished seed where others have more are left out: {', '.join(cells)}.")
    return notes


def _table_caption(title: str, line: Line | None) -> str:
    parts = [
        f"{title}: reward" if title else "Reward",
        "of each method at fixed KL (nats), its mean over KLs, and 95% intervals over seeds.",
        "~: read between evaluations that lie far apart. -: outside its evaluations.",
    ]
    if line and line.picked_by:
        parts.append(f"Best of n: of the reference, picked by {line.picked_by}, unbiased, at its largest possible KL.")
    return " ".join(parts)


def _shown(own: pd.DataFrame, found: Sequence[Frontier], line: Line | None) -> pd.DataFrame:
    """A row per method, the largest mean reward first."""
    upto, rows = text(common_kl(found)), []
    for method, cells in own.groupby("method", sort=False):
        first = cells.iloc[0]
        row = {"method": method, "seeds": first["seeds"], "reaches KL": text(first["reach"])}
        row |= {f"at KL {text(cell['kl'])}": _at(cell) for cell in cells.to_dict("records")}
        row[f"mean up to KL {upto}"] = interval_text(*first[["mean_reward", "mean_reward_low", "mean_reward_high"]], 3)
        if line:
            label = f"below the {EXACT}" if line.name == EXACT else "below the best of n"
            label += "" if first["gap_upto"] == first["upto"] else f", up to KL {text(first['gap_upto'])}"
            row[label] = interval_text(*first[["mean_gap", "mean_gap_low", "mean_gap_high"]], 4)
        rows.append(row | {"order": first["mean_reward"]})
    return pd.DataFrame(rows).sort_values("order", ascending=False, kind="stable").drop(columns="order")


def _at(cell: dict) -> str:
    far = np.sqrt(cell["above"]) - np.sqrt(cell["below"]) > FAR * np.sqrt(cell["kl"])
    found = interval_text(cell["reward"], cell["reward_low"], cell["reward_high"], 3)
    return f"~{found}" if far and found != "-" else found


def _claims(title: str, found: Sequence[Frontier], line: Line | None, source: str) -> list[Claim]:
    place = f"{title}: " if title else ""
    claims = []
    if line and line.name == EXACT:
        gaps = np.concatenate([each.mean("gap") for each in found])
        low = float(gaps.min())
        verdict = "holds" if low >= -ABOVE else "fails"
        claim = f"{place}no evaluation lies above the exact frontier: the smallest distance below it, means over seeds"
        claims.append(Claim(claim, low, low, low, verdict, source, threshold=-ABOVE))
    on = "" if line and line.name == EXACT else " on these prompts"
    return claims + _largest(place, found, source, on)


def _largest(place: str, found: Sequence[Frontier], source: str, on: str) -> list[Claim]:
    """That the method of the largest mean reward leads every other: by the smallest lead, paired by seed, at a level
    divided by the number of rivals, since it was chosen for its lead. Where methods cannot be compared (one seed, or
    not as far) it names those that were, and is open where one of the others has a larger mean. `on`: what rewards are
    means over."""
    upto = common_kl(found)
    areas = {each.method: each.area("reward", upto) for each in found}
    means = {
        each.method: pd.Series(areas[each.method], index=each.seeds)
        for each in found
        if each.chosen_apart and not np.isnan(areas[each.method]).all()
    }
    if len(means) < 2:
        return []
    first = max(means, key=lambda method: means[method].mean())
    level = 1 - 0.05 / (len(means) - 1)
    leads = {method: mean_interval(means[first] - values, level) for method, values in means.items() if method != first}
    rival, lead = min(leads.items(), key=lambda item: item[1].low if np.isfinite(item[1].low) else -np.inf)
    of = f" of {', '.join(means)}" if len(means) < len(found) else ""
    claim = f"{place}{first} has the largest mean reward{of} over KLs up to {text(upto)}{on}: its lead over {rival}"
    above = any(area.mean() > means[first].mean() for method, area in areas.items() if method not in means)
    verdict = "holds" if lead.low > 0 and not above else "open"
    return [Claim(f"{claim}, by seed", lead.mean, lead.low, lead.high, verdict, source, threshold=0.0)]
