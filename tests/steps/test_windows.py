"""Windows against the slow obvious truth: every frame of every row, folded by Python over a list."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.flows.steps.windows.shard import WindowedRows, WindowShard
from freshet.schemas.plan import Aggregate, Range, ViewPlan
from freshet.schemas.view import View

TIME = pa.timestamp("us", "UTC")
FUNCTIONS = ("count", "sum", "avg", "min", "max")
INPUTS = {
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)),
    "float64": (pa.float64(), st.floats() | st.sampled_from([1e16, 1.0, -1e16, -0.0, 0.1])),
    "string": (pa.string(), st.text(max_size=3)),
    "bool": (pa.bool_(), st.booleans()),
    "decimal": (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "timestamp": (TIME, st.integers(-(10**15), 10**15)),
}
SUMMABLE = ("int64", "float64", "bool", "decimal", "uint64")


@dataclass(frozen=True)
class Event:
    entity: str
    time: int
    partition: int
    offset: int
    value: Any


def plan(kind: str, frames: Sequence[int], reach: int | None) -> ViewPlan:
    functions = [name for name in FUNCTIONS if kind in SUMMABLE or name in ("count", "min", "max")]
    aggregates = [Aggregate(name, 0, "", Range(frame)) for frame in frames for name in functions]
    aggregates += [Aggregate("count", None, "BIGINT", Range(frame)) for frame in frames]
    arrow = INPUTS[kind][0]
    inputs = pa.schema(
        [
            ("user", pa.string()),
            ("event_timestamp", TIME),
            ("_partition", pa.int32()),
            ("_offset", pa.int64()),
            ("_available_at", TIME),
            ("_a0", arrow),
            ("_p0", arrow),
        ]
    )
    view = View("by_user", "events", (pa.field("user", pa.string()),), ())
    return ViewPlan(view, "", inputs, tuple(aggregates), ("_p0",), "", "", reach)


def table(events: Sequence[Event], schema: pa.Schema) -> pa.Table:
    return pa.table(
        [
            [event.entity for event in events],
            pa.array([event.time for event in events], pa.int64()).cast(TIME),
            [event.partition for event in events],
            [event.offset for event in events],
            pa.array([event.offset for event in events], pa.int64()).cast(TIME),
            pa.array([event.value for event in events], schema.field("_a0").type),
            pa.array([event.value for event in events], schema.field("_a0").type),
        ],
        schema=schema,
    )


def newest_versions(parts: Sequence[WindowedRows | None]) -> dict[tuple[str, int], dict[str, Any]]:
    final: dict[tuple[str, int], dict[str, Any]] = {}
    for part in parts:
        if part is None:
            continue
        times = part.table.column("event_timestamp").cast(pa.int64()).to_pylist()
        for row, time in zip(part.table.to_pylist(), times, strict=True):
            key = (row["user"], time)
            if key not in final or row["_version"] > final[key]["_version"]:
                final[key] = row
    return final


def truth(events: Sequence[Event], plan: ViewPlan) -> dict[tuple[str, int], dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for event in sorted(events, key=lambda event: (event.time, event.partition, event.offset)):
        mine = [other for other in events if other.entity == event.entity and other.time <= event.time]
        row: dict[str, Any] = {"_p0": event.value, "_offset": event.offset}
        reach = plan.reach_us
        row["_version"] = len([other for other in mine if reach is None or other.time >= event.time - reach])
        for index, aggregate in enumerate(plan.aggregates):
            frame = [other.value for other in mine if other.time >= event.time - aggregate.frame.preceding_us]
            there = [value for value in frame if value is not None]
            row[f"_w{index}"] = len(frame) if aggregate.argument is None else SQL[aggregate.function](there)
        rows[event.entity, event.time] = row
    return rows


def sql_sum(values: list[Any]) -> Any:
    if not values:
        return None
    if not isinstance(values[0], float):
        return sum(values)
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special)
    exact = sum(map(Fraction, values))
    try:
        return float(exact)
    except OverflowError:  # beyond the greatest double
        return math.inf if exact > 0 else -math.inf


def sql_order(value: Any) -> Any:
    return (math.isnan(value), value) if isinstance(value, float) else value


SQL: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "sum": sql_sum,
    "avg": lambda values: float(sql_sum(values)) / len(values) if values else None,
    "min": lambda values: min(values, key=sql_order, default=None),
    "max": lambda values: max(values, key=sql_order, default=None),
}


def equal(expected: Any, got: Any) -> bool:
    if expected is None or got is None:
        return expected is None and got is None
    if isinstance(expected, float):
        if math.isnan(expected) or math.isinf(expected) or math.isinf(got):
            return str(expected) == str(got) or math.isclose(expected, got, rel_tol=1e-12)
        return math.isclose(expected, got, rel_tol=1e-12, abs_tol=5e-324)
    return bool(Decimal(expected) == got if isinstance(got, Decimal) else expected == got)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ViewPlan, list[list[Event]]]:
    kind = draw(st.sampled_from(sorted(INPUTS)))
    frames = draw(st.lists(st.integers(1, 12), min_size=1, max_size=2, unique=True))
    reach = draw(st.sampled_from([max(frames), None]))
    value = st.none() | INPUTS[kind][1]
    event = st.tuples(st.sampled_from("abc"), st.integers(-5, 40), st.integers(0, 2), value)
    drawn = draw(st.lists(event, min_size=1, max_size=60))
    events = [
        Event(entity, time, partition, offset, value) for offset, (entity, time, partition, value) in enumerate(drawn)
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=5)))
    batches = [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    return plan(kind, frames, reach), batches


@settings(max_examples=300, deadline=None)
@given(cases())
def test_final_rows_are_the_folds_of_their_frames_however_events_arrive(
    case: tuple[ViewPlan, list[list[Event]]],
) -> None:
    plan, batches = case
    shard = WindowShard(plan)

    got = newest_versions([shard.add(table(batch, plan.inputs), horizon_us=-(10**18), now_us=0) for batch in batches])

    expected = truth([event for batch in batches for event in batch], plan)
    if plan.inputs.field("_p0").type == TIME:
        for row in got.values():
            for name, value in row.items():
                if hasattr(value, "timestamp") and name not in ("created", "event_timestamp"):
                    row[name] = round(value.timestamp() * 10**6)
    assert expected.keys() == got.keys()
    for key, row in expected.items():
        for name, value in row.items():
            assert equal(value, got[key][name]), (key, name, value, got[key][name])


def test_long_windows_of_one_hot_entity_agree_with_numpy() -> None:
    rng = np.random.default_rng(7)
    times = np.sort(rng.integers(0, 10_000, 6_000))
    values = rng.integers(-1000, 1000, len(times))
    hot = plan("int64", [3_000], 3_000)
    events = [
        Event("a", int(time), 0, offset, int(value))
        for offset, (time, value) in enumerate(zip(times, values, strict=True))
    ]
    shuffled = [events[index] for index in rng.permutation(len(events))]
    shard = WindowShard(hot)
    parts = [
        shard.add(table(shuffled[at : at + 700], hot.inputs), horizon_us=-1, now_us=0) for at in range(0, 6_000, 700)
    ]

    got = newest_versions(parts)

    greatest = next(i for i, aggregate in enumerate(hot.aggregates) if aggregate.function == "max")
    for time in np.unique(times).tolist():
        frame = values[(times >= time - 3_000) & (times <= time)]
        assert frame.max() == got["a", time][f"_w{greatest}"]
        assert frame.sum() == got["a", time]["_w1"]
        assert len(frame) == got["a", time]["_version"]


@pytest.mark.parametrize("reach", [10, None])
def test_forgetting_what_cannot_matter_changes_no_row_and_bounds_the_state(reach: int | None) -> None:
    rolling = plan("int64", [10], reach)
    keeping, forgetting = WindowShard(rolling), WindowShard(rolling)
    for step in range(300):
        events = [Event(f"e{step % 7}", step * 4 + at, 0, step * 3 + at, at) for at in range(3)]
        kept = keeping.add(table(events, rolling.inputs), horizon_us=-1, now_us=0)
        left = forgetting.add(table(events, rolling.inputs), horizon_us=step * 4 - 30, now_us=0)

        assert kept is not None
        assert left is not None
        assert kept.table.drop(["created"]).equals(left.table.drop(["created"]))
    assert keeping.events_count == 900
    assert forgetting.events_count < 100


def test_created_rises_though_the_clock_steps_back() -> None:
    counting = plan("int64", [10], 10)
    shard = WindowShard(counting)
    first = shard.add(
        table([Event("a", 1, 0, 0, 1), Event("b", 1, 0, 1, 1)], counting.inputs), horizon_us=0, now_us=500
    )
    second = shard.add(table([Event("a", 2, 0, 2, 1)], counting.inputs), horizon_us=0, now_us=100)

    assert first is not None
    assert second is not None
    assert first.table.column("created").cast(pa.int64()).to_pylist() == [500, 501]
    assert second.table.column("created").cast(pa.int64()).to_pylist() == [502]


def test_only_the_last_row_of_an_entity_in_a_batch_is_newest() -> None:
    counting = plan("int64", [10], 10)
    rows = WindowShard(counting).add(
        table([Event("a", 1, 0, 0, 1), Event("a", 2, 0, 1, 1), Event("b", 1, 0, 2, 1)], counting.inputs),
        horizon_us=0,
        now_us=0,
    )

    assert rows is not None
    assert rows.newest.to_pylist() == [False, True, True]
