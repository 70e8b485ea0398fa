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
from freshet.schemas.errors import Refused
from freshet.schemas.event import Event, Stream, contract
from freshet.schemas.plan import ViewPlan

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
    "views": {"clicks_by_user": {"decay": "15 min"}},
}


def plan_of(*definitions: dict[str, Any], **more: Any) -> ViewPlan:
    named = [
        {"name": f"f{number}", "source": "clicks", "decay": "off", **made} for number, made in enumerate(definitions)
    ]
    declared = {"featureDefinitions": named, "servingRequirements": {}, **more}
    return compile_views(declaration.read(json.dumps(declared)), {"clicks": CONTRACT}).plans[0]


def clicked(*clicks: tuple[float, str, float | None]) -> pa.Table:
    """Clicks as (minutes after noon, user, share)."""
    return pa.Table.from_pylist(
        [
            {
                "at": NOON + timedelta(minutes=minute), "user": user, "share": share,
                "event_timestamp": NOON + timedelta(minutes=minute), "_partition": 0, "_offset": offset,
                "_available_at": NOON,
            }
            for offset, (minute, user, share) in enumerate(clicks)
        ],
        schema=CONTRACT.schema,
    )  # fmt: skip


PLAN = compile_views(declaration.read(json.dumps(DECLARED)), {"clicks": CONTRACT}).plan("clicks_by_user")
EVENTS = clicked((0, "ada", 0.25), (0, "ada", 0.5), (30, "bob", None), (59, "ada", None), (61, "ada", 1e9))
ROWS: list[dict[str, Any]] = [
    {"user": "ada", "event_timestamp": NOON, "clicks_1h": 2, "share_1h": 0.75, "_version": 2},
    {"user": "bob", "event_timestamp": NOON + timedelta(minutes=30), "clicks_1h": 1, "share_1h": None, "_version": 1},
    {"user": "ada", "event_timestamp": NOON + timedelta(minutes=59), "clicks_1h": 3, "share_1h": 0.75, "_version": 3},
    {"user": "ada", "event_timestamp": NOON + timedelta(minutes=61), "clicks_1h": 2, "share_1h": 1e9, "_version": 2},
    {"user": "ada", "event_timestamp": NOON + timedelta(minutes=75), "clicks_1h": 2, "share_1h": 1e9, "_version": 2},
]
UNTIL = NOON + timedelta(minutes=80)


def microseconds(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def made_of(plan: ViewPlan, rows: list[dict[str, Any]]) -> pa.Table:
    full = [{"created": NOON, "_version": 1, "_partition": 0, "_offset": 0, **row} for row in rows]
    return pa.Table.from_pylist(full, schema=plan.view.row_schema)


def compared(rows: list[dict[str, Any]]) -> Compared:
    return compare(PLAN, EVENTS, made_of(PLAN, rows), microseconds(UNTIL))


def changed(index: int, **changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} if at == index else row for at, row in enumerate(ROWS)]


def test_equal_rows_do_not_differ() -> None:
    assert compared(ROWS) == Compared(5, 10, 0, ())


@pytest.mark.parametrize(
    "rows",
    [
        changed(0, clicks_1h=3),
        changed(0, clicks_1h=None),
        changed(1, share_1h=0.0),
        changed(3, share_1h=1e9 * (1 + 2e-9)),
        changed(0, share_1h=None),
        changed(2, _version=2),
        ROWS[1:],
        ROWS[:-1],
    ],
    ids=[
        "a count",
        "a lost value",
        "a made value",
        "a float",
        "a lost float",
        "a version",
        "a lost row",
        "a lost tick",
    ],
)
def test_a_planted_difference_is_found(rows: list[dict[str, Any]]) -> None:
    found = compared(rows)

    assert found.differing_count == 1
    assert len(found.differing) == 1


@pytest.mark.parametrize("user", ["eve", None])
def test_a_row_that_no_event_explains_is_found(user: str | None) -> None:
    found = compared([*ROWS, {**ROWS[0], "user": user}])

    assert found.rows_count == 6
    assert found.differing_count == 1
    assert found.differing[0] == {
        "user": user, "event_timestamp": NOON, "clicks_1h (DuckDB)": None, "clicks_1h": 2,
        "share_1h (DuckDB)": None, "share_1h": 0.75, "_version (DuckDB)": None, "_version": 2,
    }  # fmt: skip


def test_a_row_that_stands_twice_is_found() -> None:
    assert compared([*ROWS, ROWS[0]]).rows_count == 6


def test_a_row_at_another_instant_is_two_differences() -> None:
    assert compared(changed(0, event_timestamp=NOON + timedelta(microseconds=1))).differing_count == 2


def test_the_last_digits_of_a_float_are_not_a_difference() -> None:
    assert compared(changed(3, share_1h=1e9 * (1 + 1e-12))).differing_count == 0


def test_at_most_twenty_differences_are_shown_and_all_are_counted() -> None:
    strangers = [{**ROWS[0], "user": f"stranger {index}"} for index in range(30)]

    found = compared([*ROWS, *strangers])

    assert (found.differing_count, len(found.differing)) == (30, 20)


def test_rows_after_the_clock_are_not_compared() -> None:
    assert compare(PLAN, EVENTS, made_of(PLAN, ROWS), microseconds(NOON + timedelta(minutes=60))).rows_count == 3


# Where DuckDB cancels, exact arithmetic judges


OVER_10M = WINDOW.replace("1 hour", "10 minutes")


def judged(transformation: str, values: list[float | None], got: float | None) -> Compared:
    """The last of some events a minute apart has this value of a feature."""
    plan = plan_of({"dtype": "float64", "transformation": transformation})
    events = clicked(*((minute, "ada", value) for minute, value in enumerate(values)))
    whole = compare(plan, events, made_of(plan, []), microseconds(NOON + timedelta(days=1)))
    last = NOON + timedelta(minutes=len(values) - 1)
    row = {"user": "ada", "event_timestamp": last, "f0": got, "_version": min(len(values), 11)}
    assert whole.differing_count == len(values)
    return compare(plan, events, made_of(plan, [row]), microseconds(NOON + timedelta(days=1)))


@pytest.mark.parametrize(
    ("transformation", "values", "got"),
    [
        (f"sum(share) {OVER_10M}", [1e16, 1.0, -1e16], 1.0),
        (f"avg(share) {OVER_10M}", [1e16, 2.0, None, -1e16], 2 / 3),
        (f"1 + sum(share) {OVER_10M} * 2", [1e16, 1.0, -1e16], 3.0),
        (f"var_samp(share) {OVER_10M}", [1e15 + 1, 1e15 + 2, 1e15 + 3], 1.0),
        (f"stddev_pop(share) {OVER_10M}", [1e15 + 1, 1e15 + 3], 1.0),
        (f"sum(share) FILTER (WHERE share <> 5) {OVER_10M}", [1e16, 5.0, 1.0, -1e16], 1.0),
    ],
)
def test_a_sum_that_duckdb_loses_is_judged_exactly(transformation: str, values: list[float | None], got: float) -> None:
    right = judged(transformation, values, got)
    wrong = judged(transformation, values, got * (1 + 1e-6))

    assert right.differing_count == len(values) - 1
    assert wrong.differing_count == len(values)


@pytest.mark.parametrize(
    ("values", "total"),
    [([float("inf"), 1.0], float("inf")), ([float("inf"), float("-inf")], None), ([float("nan"), 1.0], None)],
)
def test_infinities_add_up_as_ieee_says_and_nan_is_null(values: list[float | None], total: float | None) -> None:
    assert judged(f"sum(share) {OVER_10M}", values, total).differing_count == len(values) - 1


def test_an_approximate_count_may_be_off_by_its_error_and_no_more() -> None:
    plan = plan_of({"dtype": "int64", "transformation": f"approx_count_distinct(share) {OVER_10M}"})
    events = clicked(*((number / 3000, "ada", float(number)) for number in range(3000)))
    last = NOON + timedelta(minutes=2999 / 3000)

    def differing(count: int) -> int:
        row = {"user": "ada", "event_timestamp": last, "f0": count, "_version": 3000}
        return compare(plan, events, made_of(plan, [row]), microseconds(last)).differing_count

    assert (differing(3200), differing(4000)) == (2999, 3000)


def test_a_sum_that_duckdb_cannot_hold_is_said_and_no_traceback() -> None:
    plan = plan_of({"dtype": "float64", "transformation": f"sum(CAST(share AS DECIMAL(38, 0))) {OVER_10M}"})
    events = clicked(*((minute, "ada", 9e37) for minute in range(9)))

    with pytest.raises(Refused, match="cannot be compared: DuckDB cannot compute it from these events"):
        compare(plan, events, made_of(plan, []), microseconds(UNTIL))
