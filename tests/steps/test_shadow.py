"""How rows of two declarations differ is said feature by feature."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from freshet.flows.steps.shadow import Differences, Differing, Example, differences

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")


def minute(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


def rows(kind: pa.DataType, **values: list[Any]) -> pa.Table:
    """Rows of users, one a minute, with a value of `n` each."""
    lines = [(user, minute(at), value) for user, own in values.items() for at, value in enumerate(own)]
    columns = [pa.array([line[0] for line in lines]), pa.array([line[1] for line in lines], TIME)]
    return pa.table([*columns, pa.array([line[2] for line in lines], kind)], ["user", "event_timestamp", "n"])


def compared(old: pa.Table, new: pa.Table) -> Differing:
    [found] = differences(["user"], old, new, {"n": "n"}).features
    return found


def test_what_is_the_same_differs_nowhere() -> None:
    same = rows(pa.int64(), ada=[1, None, 3])

    assert compared(same, same) == Differing("n", "n", 3, 0, None, None, 0, ())


def test_numbers_differ_by_so_much_and_the_largest_differences_are_shown() -> None:
    old = rows(pa.int64(), ada=[1, 2, 3, 4], bob=[1])

    found = compared(old, rows(pa.int64(), ada=[1, 3, 0, 9], bob=[3]))

    assert (found.rows_count, found.differing_count, found.share) == (5, 4, 0.8)
    assert (found.median, found.largest) == (2.5, 5.0)
    assert found.examples == (
        Example({"user": "ada"}, minute(3), 4, 9),
        Example({"user": "ada"}, minute(2), 3, 0),
        Example({"user": "bob"}, minute(0), 1, 3),
    )


def test_a_value_that_becomes_null_differs_and_is_counted() -> None:
    found = compared(rows(pa.float64(), ada=[1.0, None, 2.0]), rows(pa.float64(), ada=[None, 5.0, 2.0]))

    assert (found.differing_count, found.nulls_count, found.median, found.largest) == (2, 1, None, None)
    assert found.examples == (Example({"user": "ada"}, NOON, 1.0, None), Example({"user": "ada"}, minute(1), None, 5.0))


def test_an_infinite_difference_is_the_largest() -> None:
    inf = float("inf")

    found = compared(rows(pa.float64(), ada=[1.0, inf, 2.0]), rows(pa.float64(), ada=[inf, -inf, 3.0]))

    assert (found.differing_count, found.median, found.largest) == (3, inf, inf)


@pytest.mark.parametrize(
    ("old", "new", "differing_count"),
    [
        (rows(pa.int64(), ada=[1, 2]), rows(pa.float64(), ada=[1.0, 2.5]), 1),
        (rows(pa.int64(), ada=[1, 2]), rows(pa.string(), ada=["1", "two"]), 1),
        (rows(pa.string(), ada=["a", "b"]), rows(pa.string(), ada=["a", "B"]), 1),
        (rows(pa.bool_(), ada=[True, None]), rows(pa.bool_(), ada=[True, None]), 0),
        (rows(pa.list_(pa.int64()), ada=[[1], None]), rows(pa.list_(pa.int64()), ada=[[1, 2], None]), 1),
    ],
)
def test_values_of_any_type_are_compared(old: pa.Table, new: pa.Table, differing_count: int) -> None:
    assert compared(old, new).differing_count == differing_count


def test_rows_that_only_one_of_both_has_are_counted_and_not_compared() -> None:
    old, new = rows(pa.int64(), ada=[1, 2], bob=[1]), rows(pa.int64(), ada=[1], eve=[4, 5])

    assert differences(["user"], old, new, {}) == Differences(1, 2, 2, ())


def test_a_renamed_feature_is_compared_with_what_it_was() -> None:
    old, new = rows(pa.int64(), ada=[1]), rows(pa.int64(), ada=[2]).rename_columns(["user", "event_timestamp", "m"])

    [found] = differences(["user"], old, new, {"m": "n"}).features

    assert (found.feature, found.was, found.differing_count) == ("m", "n", 1)
