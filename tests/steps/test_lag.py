"""Lag in seconds, from samples of a partition's end offset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.lag import LagClock


def clock(*samples: tuple[int, float]) -> LagClock:
    made = LagClock()
    for end_offset, at_s in samples:
        made.observe(end_offset, at_s)
    return made


def test_nothing_is_known_without_a_sample_or_a_commit() -> None:
    assert clock().lag_s(5, 1.0) is None
    assert clock((5, 0.0)).lag_s(None, 1.0) is None
    assert not clock().reaches(0)


def test_an_idle_topic_has_no_lag_however_long_it_idles() -> None:
    assert clock((100, 0.0), (100, 1000.0)).lag_s(100, 99_999.0) == 0.0


def test_a_commit_past_the_sampled_end_is_no_lag() -> None:
    assert clock((100, 0.0)).lag_s(130, 9.0) == 0.0


def test_lag_is_interpolated_between_samples() -> None:
    assert clock((0, 0.0), (100, 10.0), (300, 20.0)).lag_s(200, 21.0) == pytest.approx(6.0)


def test_a_stretch_without_change_counts_from_its_end() -> None:
    """Nothing came between 0 and 60 s, so an event after offset 100 cannot have waited since 0."""
    assert clock((100, 0.0), (100, 60.0), (200, 61.0)).lag_s(100, 62.0) == pytest.approx(2.0)


def test_what_is_older_than_every_sample_is_at_least_as_old_as_the_oldest() -> None:
    seen = clock((100, 5.0), (200, 10.0))

    assert seen.lag_s(7, 12.0) == 7.0
    assert not seen.reaches(7)
    assert seen.reaches(100)


def test_a_topic_made_anew_starts_anew() -> None:
    assert clock((900, 0.0), (10, 5.0), (20, 6.0)).lag_s(15, 7.0) == pytest.approx(1.5)


def test_only_so_many_samples_are_kept() -> None:
    long = clock(*((index, float(index)) for index in range(10_000)))

    assert not long.reaches(0)
    assert long.reaches(9_990)


@given(steps=st.lists(st.tuples(st.integers(0, 50), st.floats(0.1, 10)), min_size=1, max_size=30), data=st.data())
def test_lag_never_exceeds_the_age_of_the_samples_and_falls_as_more_is_committed(
    steps: list[tuple[int, float]], data: st.DataObject
) -> None:
    end, now = 0, 0.0
    seen = LagClock()
    for more, seconds in steps:
        end, now = end + more, now + seconds
        seen.observe(end, now)
    less = data.draw(st.integers(0, end))
    more_done = data.draw(st.integers(less, end))

    lag, smaller = seen.lag_s(less, now), seen.lag_s(more_done, now)

    assert lag is not None
    assert smaller is not None
    assert 0.0 <= smaller <= lag + 1e-9
    assert lag <= now
