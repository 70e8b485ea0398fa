"""Quantities, in the forms people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.schemas import units

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("10ms", SECOND / 100),
        ("10 ms", SECOND / 100),
        (" 10ms ", SECOND / 100),
        ("10 msec", SECOND / 100),
        ("10 milliseconds", SECOND / 100),
        ("250us", 250 * SECOND / 10**6),
        ("250 µs", 250 * SECOND / 10**6),  # the micro sign
        ("250 μs", 250 * SECOND / 10**6),  # the Greek letter
        ("2s", 2 * SECOND),
        ("2 S", 2 * SECOND),
        ("0.5 s", SECOND / 2),
        ("1 second", SECOND),
        ("30 secs", 30 * SECOND),
        ("5 minutes", 300 * SECOND),
        ("5 min", 300 * SECOND),
        ("5 mins", 300 * SECOND),
        ("5m", 300 * SECOND),
        ("1.5h", 5400 * SECOND),
        ("2 hrs", 7200 * SECOND),
        ("1 Hour", 3600 * SECOND),
        ("7 days", timedelta(days=7)),
        ("1d", timedelta(days=1)),
        ("2 weeks", timedelta(days=14)),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, length: timedelta) -> None:
    assert units.duration(text) == length


@pytest.mark.parametrize(
    "text",
    ["", " ", "ms", "10", "-5s", "+5s", "0s", "0.1us", "5 months", "1 year", "1h30m", "10 m s", "1e3s", "１０s", "5 minutess",
     "ten seconds", "NaN s", "inf s", "1,5 s", "9" * 30 + "d", "5\x00s"],
)  # fmt: skip
def test_what_is_not_a_duration_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="^a duration "):
        units.duration(text)


@given(st.timedeltas(min_value=timedelta(microseconds=1)))
def test_a_duration_is_read_back_as_it_is_spelled(length: timedelta) -> None:
    assert units.duration(units.spell(length)) == length


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("p99 < 10ms", "p99 < 10ms"),
        ("p99<10ms", "p99 < 10ms"),
        ("P99 <= 10 ms", "p99 < 10ms"),
        ("p99 ≤ 10 ms", "p99 < 10ms"),
        ("p99.9 < 1 s", "p99.9 < 1s"),
        ("p50 under 2 minutes", "p50 < 2m"),
        ("p95 below 2s", "p95 < 2s"),
        ("p99 10ms", "p99 < 10ms"),
        ("< 5s", "p99 < 5s"),
        ("5 minutes", "p99 < 5m"),
        ("  p99 < 10ms  ", "p99 < 10ms"),
    ],
)
def test_objectives_are_read_as_people_write_them(text: str, spelled: str) -> None:
    assert str(units.objective(text)) == spelled
    assert units.objective(spelled) == units.objective(text)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "p99", "p99 <", "p0 < 1s", "p100 < 1s", "p999 < 1s", "p99 > 10ms", "p99 = 10ms", "99% < 10ms", "< 0s"],
)
def test_what_is_not_an_objective_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="^(an objective|a duration|a percentile) "):
        units.objective(text)


@pytest.mark.parametrize(
    ("text", "bytes_a_day"),
    [
        ("50GB/day", 50e9),
        ("50 GB / day", 50e9),
        ("50gb per day", None),
        ("50 GB/d", 50e9),
        ("50GB", 50e9),
        ("1.5 TB/day", 1.5e12),
        ("1 GiB/day", 2**30),
        ("100 bytes/s", 8_640_000),
        ("10 MB/hour", 240e6),
        ("10 MB/12 hours", 20e6),
        ("0GB/day", 0),
    ],
)
def test_volumes_are_read_as_people_write_them(text: str, bytes_a_day: float | None) -> None:
    if bytes_a_day is None:
        with pytest.raises(ValueError, match="^a volume "):
            units.volume(text)
    else:
        assert units.volume(text).bytes_per_day == bytes_a_day


@pytest.mark.parametrize(
    "text", ["", "/day", "much", "50", "50XB/day", "-1GB/day", "50GB/never", "50GB/0 days", "50GB/day/day"]
)
def test_what_is_not_a_volume_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="^a (volume|duration) "):
        units.volume(text)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for read in (units.duration, units.objective, units.volume):
        try:
            read(text)
        except ValueError as error:
            assert str(error).startswith("a")
