"""The comparison with DuckDB's own answer finds whatever is planted, and nothing else."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pydantic import AwareDatetime

from freshet.flows.steps.oracle import Compared, compare
from freshet.flows.steps.sql import compile_views
from freshet.schemas import declaration
from freshet.schemas.event import Event, Stream, contract

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = "OVER (PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW)"


class Click(Event):
    stream = Stream("clicks", "user", "at")

    at: AwareDatetime
    user: str
    share: float | None


CONTRACT, _ = contract("clicks", Click)
assert CONTRACT is not None
DECLARED = {
    "featureDefinitions": [
        {"name": "clicks_1h", "dtype": "int64", "source": "clicks", "transformation": f"count(*) {WINDOW}"},
        {"name": "share_1h", "dtype": "float64", "source": "clicks", "transformation": f"sum(share) {WINDOW}"},
    ],
    "servingRequirements": {},
}
PLAN = compile_views(declaration.read(json.dumps(DECLARED)), {"clicks": CONTRACT}).plan("clicks_by_user")
EVENTS = pa.Table.from_pylist(
    [
        {
            "at": NOON + timedelta(minutes=minute), "user": user, "share": share,
            "event_timestamp": NOON + timedelta(minutes=minute), "_partition": 0, "_offset": offset, "_available_at": NOON,
        }
        for offset, (minute, user, share) in enumerate(
            [(0, "ada", 0.25), (0, "ada", 0.5), (30, "bob", None), (59, "ada", None), (61, "ada", 1e9)]
        )
    ],
    schema=CONTRACT.schema,
)  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"user": "ada", "event_timestamp": NOON, "clicks_1h": 2, "share_1h": 0.75},
    {"user": "bob", "event_timestamp": NOON + timedelta(minutes=30), "clicks_1h": 1, "share_1h": None},
    {"user": "ada", "event_timestamp": NOON + timedelta(minutes=59), "clicks_1h": 3, "share_1h": 0.75},
    {"user": "ada", "event_timestamp": NOON + timedelta(minutes=61), "clicks_1h": 2, "share_1h": 1e9},
]


def compared(rows: list[dict[str, Any]]) -> Compared:
    full = [{"created": NOON, "_version": 1, "_partition": 0, "_offset": 0, **row} for row in rows]
    return compare(PLAN, EVENTS, pa.Table.from_pylist(full, schema=PLAN.view.row_schema))


def changed(index: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} if at == index else row for at, row in enumerate(ROWS)]


def test_equal_rows_do_not_differ() -> None:
    assert compared(ROWS) == Compared(4, 8, 0, ())


@pytest.mark.parametrize(
    "rows",
    [
        changed(0, clicks_1h=3),
        changed(0, clicks_1h=None),
        changed(1, share_1h=0.0),
        changed(3, share_1h=1e9 * (1 + 2e-9)),
        changed(0, share_1h=None),
        ROWS[1:],
        ROWS[:-1],
    ],
    ids=["a count", "a lost value", "a made value", "a float", "a lost float", "a lost row", "the last row lost"],
)
def test_a_planted_difference_is_found(rows: list[dict[str, Any]]) -> None:
    found = compared(rows)

    assert found.differing_count == 1
    assert len(found.differing) == 1


@pytest.mark.parametrize("user", ["eve", None])
def test_a_row_that_no_event_explains_is_found(user: str | None) -> None:
    found = compared([*ROWS, {**ROWS[0], "user": user}])

    assert found.rows_count == 5
    assert found.differing_count == 1
    assert found.differing[0] == {
        "user": user, "event_timestamp": NOON, "clicks_1h (DuckDB)": None, "clicks_1h": 2,
        "share_1h (DuckDB)": None, "share_1h": 0.75,
    }  # fmt: skip


def test_a_row_that_stands_twice_is_found() -> None:
    assert compared([*ROWS, ROWS[0]]).rows_count == 5


def test_a_row_at_another_instant_is_two_differences() -> None:
    assert compared(changed(0, event_timestamp=NOON + timedelta(microseconds=1))).differing_count == 2


def test_the_last_digits_of_a_float_are_not_a_difference() -> None:
    assert compared(changed(3, share_1h=1e9 * (1 + 1e-12))).differing_count == 0


def test_at_most_twenty_differences_are_shown_and_all_are_counted() -> None:
    strangers = [{**ROWS[0], "user": f"stranger {index}"} for index in range(30)]

    found = compared([*ROWS, *strangers])

    assert (found.differing_count, len(found.differing)) == (30, 20)
