"""Resampling, and what is said of many methods at once: interquartile means, profiles, improvement, Holm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import ndtr, stdtrit

from rlpref.report.by_prompt import beats
from rlpref.report.intervals import Interval

# So many runs more than strata, and the interval of an interquartile mean covers: from six seeds of one problem on.
IQM_FREEDOM = 5


def iqm(values: ArrayLike, axis: int | None = None) -> np.ndarray | float:
    """Interquartile mean: of the middle half of all runs of all problems, n // 4 left out at each end.

    Agarwal et al. 2021 (2108.13264), section 4.3. Of fewer than four values it is the mean.

    Example: `iqm(load("runs/demo").done["exact/efficiency"])`
    """
    return stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis)


def stratified_bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Callable[..., np.ndarray] = iqm,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of all runs and its bootstrap interval over seeds.

    `strata` has the scores [seeds] of each problem, apart: the problems are what they are, only seeds are drawn anew
    (Agarwal et al. 2021, section 4.1). `statistic` is of an array along `axis`. The percentiles are Hesterberg's
    expanded ones (2015, 1411.5279): so far out that a mean of normal values has Student's interval. The usual ones
    are too narrow for few seeds; over N runs in M strata these cover an interquartile mean 93 to 97% from N - M = 5
    on (`IQM_FREEDOM`), and 75% over three seeds: show a mean with Student's t there.

    Raises ValueError for a stratum of fewer than two runs.

    Example: `stratified_bootstrap([runs["exact/efficiency"] for _, runs in sweep.done.groupby("beta")])`
    """
    samples = [np.asarray(scores, dtype=float) for scores in strata]
    short = [index for index, scores in enumerate(samples) if len(scores) < 2]
    if short or not samples:
        raise ValueError(f"every stratum needs two runs at least; strata {short} of {len(samples)} have fewer.")
    n, freedom = sum(map(len, samples)), sum(map(len, samples)) - len(samples)
    found = stats.bootstrap(
        samples,
        lambda *drawn, axis: statistic(np.concatenate(drawn, axis), axis=axis),
        n_resamples=resamples,
        confidence_level=_expanded(confidence, n, freedom),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    point = float(statistic(np.concatenate(samples), axis=0))
    return Interval(point, float(found.confidence_interval.low), float(found.confidence_interval.high))


def paired_bootstrap(
    ours: ArrayLike, theirs: ArrayLike, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean difference of two methods on the same prompts and its bootstrap interval over prompts.

    Both are [prompts] or [seeds, prompts]; over seeds (not necessarily as many) the mean is taken first, so that the
    interval speaks of these runs and of other prompts. A prompt is drawn with what both made of it: what makes it
    hard for both falls out. Percentiles as in `stratified_bootstrap`. For other seeds too, take
    `rlpref.report.intervals.crossed_estimate`: three seeds are too few to draw from.

    Example: `paired_bootstrap([[0.9, 0.7, 0.8], [0.8, 0.9, 0.6]], [[0.5, 0.6, 0.7]]).mean` is 0.1833
    """
    pair = [np.atleast_2d(np.asarray(values, dtype=float)).mean(0) for values in (ours, theirs)]
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"the methods answered {len(pair[0])} and {len(pair[1])} prompts; they must be the same.")
    return stratified_bootstrap([pair[0] - pair[1]], np.mean, resamples, confidence, seed)


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """How often a run of ours scores higher than one of theirs, over all pairs of runs; ties count one half.

    Mann and Whitney's U / (n m); Agarwal et al. 2021, section 4.4. Of several problems take the mean.

    Example: `probability_of_improvement([0.8, 0.9], [0.7, 0.8])` is 0.875
    """
    return float(beats(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)).mean())


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """[thresholds] the share of runs, over all problems and seeds, that score above each.

    Agarwal et al. 2021, section 4.2 (score distributions of single runs, not of means).

    Example: `performance_profile([0.2, 0.5, 0.9], [0.0, 0.4, 0.8])` is [1, 2/3, 1/3]
    """
    return (np.asarray(values, dtype=float)[:, None] > np.asarray(thresholds, dtype=float)).mean(0)


def holm(p_values: ArrayLike) -> np.ndarray:
    """P values adjusted for how many there are: those below 0.05 hold together with an error of 5%.

    Holm 1979 (Scand. J. Statist. 6, 65-70): the i-th smallest of m is max over j <= i of (m - j + 1) p_(j), at most 1.
    NaN stays NaN and does not count.

    Example: `holm([0.01, 0.04, 0.03])` is [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    adjusted = np.full(p.shape, np.nan)
    steps = (len(order) - np.arange(len(order))) * p[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _expanded(confidence: float, n: int, freedom: int) -> float:
    """The level at which percentiles of n resampled values are those of Student's t: the spread of a bootstrap is that
    of the population's formula, smaller by sqrt(freedom / n), and its tails are normal."""
    reach = np.sqrt(n / freedom) * stdtrit(freedom, (1 + confidence) / 2)
    return float(2 * ndtr(reach) - 1)
