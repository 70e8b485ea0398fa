"""What so many values say of a rate or a distribution, with few false alarms: pure, and exact where it can be.

Only what a user tolerates is judged so: a tolerated rate of nulls or mismatches, and a distribution. Everything else is
wrong if it is wrong once. `alpha` is how likely one judgement may be a false alarm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from freshet.schemas.expected import Distance, Reference

DISTRIBUTION_VALUES_COUNT = 1000
"""By fewer values a distribution is not judged: below it, chance alone makes distances that count as drift."""

_EXPECTED_COUNT = 5
"""Bins in which fewer values are expected are taken together: the thresholds' theory wants so many."""


def alpha_of(judgements_count: int, every: timedelta, period: timedelta = timedelta(days=30)) -> float:
    """Return how likely a judgement may be a false alarm, if so many every so often raise one in a period.

    >>> f"{alpha_of(50, timedelta(seconds=10)):.1e}"
    '7.7e-08'
    """
    return min(1.0, every / period / judgements_count)


# --- rates ------------------------------------------------------------------------------------------------------------


def tail(bad_count: int, count: int, rate: float) -> float:
    """Return how likely at least so many of `count` are bad, if each is with the probability `rate`: exactly.

    >>> tail(1, 2, 0.5), tail(0, 5, 0.1), round(tail(3, 100, 0.01), 4)
    (0.75, 1.0, 0.0794)
    """
    assert 0 <= bad_count <= count, (bad_count, count)
    if bad_count == 0 or rate >= 1:
        return 1.0
    if rate <= 0:
        return 0.0
    if bad_count <= count * rate:  # the other tail is the shorter sum
        return 1.0 - math.fsum(_mass(k, count, rate) for k in range(bad_count))
    return math.fsum(_mass(k, count, rate) for k in range(bad_count, count + 1))


def _mass(bad_count: int, count: int, rate: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(bad_count + 1) - math.lgamma(count - bad_count + 1)
    return math.exp(ways + bad_count * math.log(rate) + (count - bad_count) * math.log1p(-rate))


def is_above(bad_count: int, count: int, rate: float, alpha: float) -> bool:
    """Say whether a rate is exceeded: whether its exact lower bound (Clopper-Pearson) lies above it.

    >>> is_above(1, 1000, 0.001, 1e-6), is_above(20, 1000, 0.001, 1e-6)
    (False, True)
    """
    return tail(bad_count, count, rate) < alpha


def lower_bound(bad_count: int, count: int, alpha: float) -> float:
    """Return the rate below which so many bad ones would be seen with a probability of less than `alpha`.

    >>> round(lower_bound(20, 1000, 1e-6), 5), lower_bound(0, 1000, 1e-6)
    (0.0054, 0.0)
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(bad_count, count, middle) < alpha else (low, middle)
    return 0.0 if bad_count == 0 else low


def least_count(rate: float, alpha: float) -> int:
    """Return the least number of values by which it can be told that a rate is exceeded: if all of them are bad.

    >>> least_count(0.01, 1e-6), least_count(0.5, 0.01), least_count(0.0, 1e-6)
    (4, 7, 1)
    """
    count = 1
    while tail(count, count, rate) >= alpha:
        count += 1
    return count


# --- distributions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """How far so many values are from a reference, and how far they may be."""

    count: int
    distance: float
    threshold: float

    @property
    def is_drifted(self) -> bool:
        """Whether they are too far."""
        return self.distance > self.threshold


def judge_distribution(
    values: Sequence[Any], reference: Reference, distance: Distance, limit: float, alpha: float
) -> Judgement:
    """Hold values against a reference; the threshold is the limit, or what chance alone can make if that is more.

    Values of another kind than the reference's are left out.
    """
    observed, expected = _counts(values, reference)
    count = int(observed.sum())
    if count == 0:
        return Judgement(0, 0.0, math.inf)
    scale = 1 / count + (1 / reference.count if reference.count else 0)
    if distance is Distance.KS:
        return Judgement(count, _ks(observed, expected), max(limit, _ks_threshold(scale, alpha)))
    observed, expected = _gathered(observed, expected, count)
    chance = scale * chi2_quantile(alpha, max(1, int((expected > 0).sum()) - 1))
    if distance is Distance.PSI:
        return Judgement(count, _psi(observed, expected, reference.count), max(limit, chance))
    return Judgement(count, _js(observed, expected), max(limit, chance / (8 * math.log(2))))


def _counts(values: Sequence[Any], reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Return how many of the values, and which share of the reference, are in each bin; the outermost have the rest."""
    shares = np.array(reference.weights) / sum(reference.weights)
    if reference.bins:
        edges = np.array(reference.bins, float)
        edges[-1] = np.nextafter(edges[-1], math.inf)  # the last bin has its end
        numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        places = np.searchsorted(edges, numbers, side="right")
        return np.bincount(places, minlength=len(edges) + 1), np.array([0.0, *shares, 0.0])
    known = {value: place for place, value in enumerate(reference.categories)}
    places = np.array([known.get(value, len(known)) for value in values], int)
    return np.bincount(places, minlength=len(known) + 1), np.array([*shares, 0.0])


def _gathered(observed: np.ndarray, expected: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Take bins with few expected values together."""
    few = expected * count < _EXPECTED_COUNT
    return np.append(observed[~few], observed[few].sum()), np.append(expected[~few], expected[few].sum())


def _psi(observed: np.ndarray, expected: np.ndarray, reference_count: int | None) -> float:
    """Half a value is added to each bin, so that an empty one is not infinitely far."""
    count, bins_count = observed.sum(), len(observed)
    size = reference_count or count
    ours = (observed + 0.5) / (count + 0.5 * bins_count)
    theirs = (expected * size + 0.5) / (size + 0.5 * bins_count)
    return float(((ours - theirs) * np.log(ours / theirs)).sum())


def _js(observed: np.ndarray, expected: np.ndarray) -> float:
    """To the base 2: from 0, the same, to 1, nothing in common."""
    ours, middle = observed / observed.sum(), (observed / observed.sum() + expected) / 2

    def half(shares: np.ndarray) -> float:
        there = shares > 0
        return float((shares[there] * np.log2(shares[there] / middle[there])).sum()) / 2

    return half(ours) + half(expected)


def _ks(observed: np.ndarray, expected: np.ndarray) -> float:
    """The greatest difference of the shares below an edge: of all edges, so no more than that of all values."""
    return float(np.abs(np.cumsum(observed) / observed.sum() - np.cumsum(expected)).max())


def _ks_threshold(scale: float, alpha: float) -> float:
    return math.sqrt(math.log(2 / alpha) / 2 * scale)


def chi2_quantile(alpha: float, freedom: int) -> float:
    """Return what a chi-squared variable exceeds with the probability `alpha`.

    >>> round(chi2_quantile(0.05, 9), 3), round(chi2_quantile(7.7e-8, 9), 2)
    (16.919, 50.77)
    """
    low, high = 0.0, 1.0
    while chi2_tail(high, freedom) > alpha:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chi2_tail(middle, freedom) > alpha else (low, middle)
    return high


def chi2_tail(value: float, freedom: int) -> float:
    """Return how likely a chi-squared variable exceeds a value: a finite sum, as degrees of freedom are whole.

    >>> round(chi2_tail(16.919, 9), 4), round(chi2_tail(5.991, 2), 4)
    (0.05, 0.05)
    """
    half = value / 2
    if half == 0:
        return 1.0
    first = 0.5 if freedom % 2 else 0.0
    known = math.erfc(math.sqrt(half)) if freedom % 2 else 0.0
    powers = range(freedom // 2)
    return known + math.fsum(math.exp((k + first) * math.log(half) - half - math.lgamma(k + first + 1)) for k in powers)
