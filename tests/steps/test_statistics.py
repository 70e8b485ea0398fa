"""Bounds and thresholds: exact where they claim to be, silent where nothing changed, loud where something did."""

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from freshet.flows.steps.statistics import (
    alpha_of,
    chi2_quantile,
    chi2_tail,
    is_above,
    judge_distribution,
    least_count,
    lower_bound,
    tail,
)
from freshet.schemas.expected import Distance, Reference

UNIFORM = Reference((1.0,) * 10, bins=tuple(n / 10 for n in range(11)))
RATES, ALPHAS = (0.0005, 0.001, 0.01, 0.1), (1e-2, 1e-3, 1e-6)


@given(st.integers(1, 3000), st.data(), st.floats(1e-5, 0.5))
def test_the_binomial_tail_is_exact(count: int, data: st.DataObject, rate: float) -> None:
    bad = data.draw(st.integers(0, count))

    assert tail(bad, count, rate) == pytest.approx(stats.binom.sf(bad - 1, count, rate), rel=1e-8, abs=1e-280)


@given(st.integers(1, 2000), st.data(), st.sampled_from(RATES), st.sampled_from(ALPHAS))
def test_a_rate_is_exceeded_just_when_its_clopper_pearson_bound_is(
    count: int, data: st.DataObject, rate: float, alpha: float
) -> None:
    bad = data.draw(st.integers(1, count))
    bound = stats.beta.ppf(alpha, bad, count - bad + 1)

    assert lower_bound(bad, count, alpha) == pytest.approx(bound, rel=1e-6)
    assert is_above(bad, count, rate, alpha) == (bound > rate)


def least_bad(count: int, rate: float, alpha: float) -> int:
    """From how many bad ones on a rate counts as exceeded."""
    return next(bad for bad in range(count + 2) if bad > count or is_above(bad, count, rate, alpha))


@pytest.mark.parametrize("count", [50, 300, 500, 1000, 5000])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_rate_that_is_kept_raises_no_more_false_alarms_than_said(count: int, rate: float, alpha: float) -> None:
    bad = least_bad(count, rate, alpha)

    assert bad > count or stats.binom.sf(bad - 1, count, rate) < alpha


def test_wilson_s_bound_would_raise_many_more_than_said_and_ours_does_not() -> None:
    count, rate, alpha = 50, 0.001, 0.001
    z = stats.norm.isf(alpha)

    def wilson(bad: int) -> float:
        share = bad / count
        middle, width = share + z * z / 2 / count, z * math.sqrt(share * (1 - share) / count + z * z / 4 / count**2)
        return (middle - width) / (1 + z * z / count)

    by_wilson = next(bad for bad in range(count) if wilson(bad) > rate)

    assert stats.binom.sf(by_wilson - 1, count, rate) > 40 * alpha
    assert stats.binom.sf(least_bad(count, rate, alpha) - 1, count, rate) < alpha


def test_a_rate_exceeded_tenfold_is_found_in_a_window_nearly_always() -> None:
    bad = least_bad(1000, 0.01, 2e-8)

    assert stats.binom.sf(bad - 1, 1000, 0.1) > 0.9999


@given(st.sampled_from(RATES), st.sampled_from(ALPHAS))
def test_below_the_least_count_nothing_can_be_told_and_from_it_on_something_can(rate: float, alpha: float) -> None:
    least = least_count(rate, alpha)

    assert is_above(least, least, rate, alpha)
    assert least == 1 or not is_above(least - 1, least - 1, rate, alpha)


def test_where_nothing_is_tolerated_one_is_too_many() -> None:
    assert is_above(1, 10**6, 0.0, 1e-9)
    assert not is_above(0, 10**6, 0.0, 1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 10, 99])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-3, 7.7e-8])
def test_chi_squared_is_the_one_of_the_books(freedom: int, alpha: float) -> None:
    assert chi2_quantile(alpha, freedom) == pytest.approx(stats.chi2.isf(alpha, freedom), rel=1e-9)
    assert chi2_tail(freedom * 1.5, freedom) == pytest.approx(stats.chi2.sf(freedom * 1.5, freedom), rel=1e-9)


def test_the_budget_is_one_false_alarm_in_a_period() -> None:
    alpha = alpha_of(50, timedelta(seconds=10))

    assert alpha * 50 * (timedelta(days=30) / timedelta(seconds=10)) == pytest.approx(1)


@pytest.mark.parametrize("distance", Distance)
@pytest.mark.parametrize("counted", [None, 5000])
def test_two_thousand_windows_of_the_reference_s_own_values_raise_no_alarm(
    distance: Distance, counted: int | None
) -> None:
    chance = np.random.default_rng(3)
    for _ in range(2000):
        weights = UNIFORM.weights if counted is None else chance.multinomial(counted, [0.1] * 10)
        reference = Reference(tuple(map(float, weights)), bins=UNIFORM.bins, count=counted)

        found = judge_distribution(chance.uniform(size=1000).tolist(), reference, distance, 1e-9, alpha=1e-6)

        assert not found.is_drifted


@pytest.mark.parametrize("distance", [Distance.PSI, Distance.JS])
def test_the_threshold_of_chance_is_about_as_seldom_exceeded_as_said(distance: Distance) -> None:
    chance, alpha, windows_count = np.random.default_rng(4), 0.05, 2000
    windows = chance.uniform(size=(windows_count, 1000))

    drifted = sum(judge_distribution(w.tolist(), UNIFORM, distance, 1e-9, alpha).is_drifted for w in windows)

    assert windows_count * alpha / 2 < drifted < windows_count * alpha * 1.5


def test_a_small_window_is_held_to_what_chance_makes_of_it_and_not_to_the_limit() -> None:
    small = judge_distribution(np.linspace(0, 0.999, 100).tolist(), UNIFORM, Distance.PSI, 0.2, 1e-6)
    large = judge_distribution(np.linspace(0, 0.999, 1000).tolist(), UNIFORM, Distance.PSI, 0.2, 1e-6)

    assert small.threshold == pytest.approx(chi2_quantile(1e-6, 9) / 100)
    assert large.threshold == 0.2


@pytest.mark.parametrize("distance", Distance)
def test_a_shift_by_a_quarter_of_the_values_is_found_in_every_window(distance: Distance) -> None:
    chance = np.random.default_rng(6)
    for _ in range(50):
        values = np.where(chance.uniform(size=1000) < 0.35, 0.05, chance.uniform(size=1000))

        assert judge_distribution(values.tolist(), UNIFORM, distance, 0.05, 2e-8).is_drifted


def test_ks_is_never_more_than_that_of_all_values_and_exact_at_the_edges() -> None:
    values = np.random.default_rng(7).uniform(size=1000) ** 1.2

    found = judge_distribution(values.tolist(), UNIFORM, Distance.KS, 0.2, 1e-6).distance

    assert 0 < found <= stats.kstest(values, "uniform").statistic
    assert found == pytest.approx(max(abs((values < edge).mean() - edge) for edge in UNIFORM.bins))


def test_values_that_the_reference_does_not_know_are_far_and_not_infinitely() -> None:
    kinds = Reference((0.5, 0.5), categories=("user", "bot"))

    same = judge_distribution(["user", "bot"] * 500, kinds, Distance.PSI, 0.2, 1e-6)
    new = judge_distribution(["robot"] * 1000, kinds, Distance.PSI, 0.2, 1e-6)

    assert (same.is_drifted, new.is_drifted, math.isinf(new.distance)) == (False, True, False)


def test_the_last_bin_has_its_end_and_what_lies_outside_is_counted() -> None:
    halves = Reference((1.0, 1.0), bins=(0.0, 1.0, 2.0))

    assert judge_distribution([0, 1.5] * 500, halves, Distance.JS, 0.1, 1e-6).distance == pytest.approx(0)
    assert judge_distribution([0.0, 2.0] * 500, halves, Distance.JS, 0.1, 1e-6).distance == pytest.approx(0)
    assert judge_distribution([-1, 2.1] * 500, halves, Distance.JS, 0.1, 1e-6).distance == pytest.approx(1)


def test_values_of_another_kind_are_left_out() -> None:
    found = judge_distribution([0.5, "x", None, True], UNIFORM, Distance.PSI, 0.2, 1e-6)

    assert found.count == 1
    assert judge_distribution([], UNIFORM, Distance.PSI, 0.2, 1e-6).count == 0
