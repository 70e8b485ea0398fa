"""How far a consumer is behind in a partition, from samples of its offsets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.burrow import Status
from freshet.flows.steps.lag import Lag, LagClock, PartitionLag
from freshet.schemas.standing import Standing


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


# What is known of a partition


def looks(target_s: float, *seen: tuple[float, int, int], retention_s: float | None = None) -> Lag:
    """Return the last of some looks, each at a second, with what was committed and where the partition ended."""
    made = PartitionLag(target_s)
    return [made.look(Standing(0, end, done), at_s, retention_s, lambda _: None) for at_s, done, end in seen][-1]


def test_nothing_that_waits_is_no_lag_and_will_not_be_late() -> None:
    lag = looks(10.0, (0.0, 5, 5), (1.0, 9, 9))

    assert lag == Lag(9, 0, 0.0, True, Status.OK, 0.0, math.inf, math.inf)


def test_of_a_group_that_never_committed_everything_waits_from_the_first_message_on() -> None:
    lag = PartitionLag(10.0).look(Standing(20, 50), 100.0, None, lambda offset: 40.0 if offset == 20 else None)

    assert (lag.messages_count, lag.age_s, lag.is_exact, lag.breach_s) == (30, 60.0, True, 0.0)


def test_before_the_samples_reach_back_a_message_is_asked_once_when_it_was_written() -> None:
    asked = list[int]()
    made = PartitionLag(10.0)

    for second in range(5):
        lag = made.look(Standing(0, 100 + second, 7), 100.0 + second, None, asked.append)

    assert asked == [7]
    assert (lag.age_s, lag.is_exact) == (4.0, False)  # nobody knows more than that


def test_what_goes_down_is_done_when_the_rate_says() -> None:
    lag = looks(1000.0, *((float(second), 10 * second, 300 + 5 * second) for second in range(31)))

    assert lag.messages_count == 150
    assert lag.drain_s == pytest.approx(30.0)


def test_what_grows_is_never_done() -> None:
    assert looks(1000.0, *((float(second), second, 10 + 5 * second) for second in range(31))).drain_s == math.inf


def test_a_stopped_consumer_breaches_the_target_when_its_oldest_message_is_that_old() -> None:
    lag = looks(100.0, *((float(second), 10, 10 + second) for second in range(41)))

    assert lag.age_s == pytest.approx(40.0)
    assert lag.breach_s == pytest.approx(60.0)


def test_ages_that_come_and_go_with_commits_are_no_trend() -> None:
    """A commit every three seconds: the age is 0, 1, 2, 0, 1, 2, …"""
    for length in range(30, 60):
        seen = ((float(second), 10 * (second // 3 * 3), 10 * second) for second in range(length))

        assert looks(100.0, *seen).breach_s == math.inf


def test_with_few_looks_no_trend_is_told() -> None:
    lag = looks(100.0, (0.0, 10, 10), (1.0, 10, 20), (2.0, 10, 30))

    assert (lag.drain_s, lag.breach_s) == (None, None)


def test_kafka_deletes_what_waits_once_it_is_as_old_as_it_keeps_messages() -> None:
    seen = [(0.0, 10, 10), (30.0, 10, 20)]

    assert looks(5.0, *seen, retention_s=3600.0).retention_left_s == pytest.approx(3600.0 - 30.0)
    assert looks(5.0, *seen, retention_s=20.0).retention_left_s == 0.0
    assert looks(5.0, *seen).retention_left_s == math.inf


def test_commits_count_by_when_they_were_made_and_the_same_offset_twice_counts_twice() -> None:
    made = PartitionLag(10.0)

    for second in range(5):
        lag = made.look(Standing(0, 50 + second, 10, second - 0.5), float(second), None, lambda _: None)
    assert lag.status is Status.STALL

    assert made.look(Standing(0, 60, 10, 3.5), 60.0, None, lambda _: None).status is Status.STOP
