"""Windows against the slow obvious truth: every frame of every row, folded by Python over a list."""

import math
import os
import pickle
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from compacting import compact_all
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.flows.steps.sql import Arguments
from freshet.flows.steps.windows.shard import WindowedRows, WindowShard
from freshet.schemas.event import NEVER_US
from freshet.schemas.plan import Aggregate, Exclude, Lag, Oracle, Range, Rows, ViewPlan
from freshet.schemas.view import Kind, View

SOAK = int(os.environ.get("FRESHET_SOAK") or 1)
TIME = pa.timestamp("us", "UTC")
INPUTS = {
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)),
    "float64": (pa.float64(), st.floats() | st.sampled_from([1e16, 1.0, -1e16, -0.0, 0.1])),
    "string": (pa.string(), st.text(max_size=2)),
    "bool": (pa.bool_(), st.booleans()),
    "decimal": (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "wide decimal": (pa.decimal128(38, 9), st.decimals(-(10**26), 10**26, places=9)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "timestamp": (TIME, st.integers(-(10**15), 10**15)),
}
NUMBERS = ("int64", "float64", "decimal", "uint64")
ORDERED = ("count", "min", "max", "mode", "count_distinct", "quantile_disc")
SUMS = ("sum", "avg")
SPREADS = ("var_samp", "var_pop", "stddev_samp", "stddev_pop", "quantile_cont")
HOLISTIC = ("mode", "count_distinct", "quantile_disc", "quantile_cont", "list")
BOXED = ("first_value", "last_value", "list")
RANKED = ("arg_min", "arg_max")


@dataclass(frozen=True)
class Event:
    entity: str
    time: int
    partition: int
    offset: int
    value: Any
    event_id: str | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.time, self.event_id is None, self.event_id or "", self.partition, self.offset)


def plan(kind: str, aggregates: Sequence[Aggregate], *, whole_history: bool) -> ViewPlan:
    """A plan over one value: argument 0 is the value, 1 the value in a box, 2 the value with its rank."""
    arrow = INPUTS[kind][0]
    inputs = pa.schema(
        [
            ("user", pa.string()),
            ("event_timestamp", TIME),
            ("_partition", pa.int32()),
            ("_offset", pa.int64()),
            ("_available_at", TIME),
            ("_id", pa.string()),
            ("_a0", arrow),
            ("_a1", pa.struct([("v", arrow)])),
            ("_a2", pa.struct([("v", pa.int64()), ("k", arrow)])),
            ("_p0", arrow),
        ]
    )
    view = View("by_user", ("events",), (pa.field("user", pa.string()),), ())
    payload = ("_p0",) if whole_history else ()
    return ViewPlan(view, (), inputs, tuple(aggregates), payload, "", Oracle((), ""), whole_history)


def table(events: Sequence[Event], schema: pa.Schema) -> pa.Table:
    boxes = [None if event.value is None else {"v": event.value} for event in events]
    ranked = [None if event.value is None else {"v": event.offset, "k": event.value} for event in events]
    values = [event.value for event in events]
    return pa.table(
        [
            [event.entity for event in events],
            pa.array([event.time for event in events], pa.int64()).cast(TIME),
            [event.partition for event in events],
            [event.offset for event in events],
            pa.array([event.offset for event in events], pa.int64()).cast(TIME),
            pa.array([event.event_id for event in events], pa.string()),
            pa.array(values, schema.field("_a0").type),
            pa.array(boxes, schema.field("_a1").type),
            pa.array(ranked, schema.field("_a2").type),
            pa.array(values, schema.field("_a0").type),
        ],
        schema=schema,
    )


def newest_versions(parts: Sequence[WindowedRows]) -> dict[tuple[str, int], dict[str, Any]]:
    final: dict[tuple[str, int], dict[str, Any]] = {}
    for part in parts:
        times = part.table.column("event_timestamp").cast(pa.int64()).to_pylist()
        for row, time in zip(part.table.to_pylist(), times, strict=True):
            key = (row["user"], time)
            assert key not in final or row["_version"] > final[key]["_version"], "a version was written twice"
            final[key] = row
    return final


# The truth


def truth(events: Sequence[Event], plan: ViewPlan, clock: int) -> dict[tuple[str, int], dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for entity in {event.entity for event in events}:
        mine = sorted((event for event in events if event.entity == entity), key=lambda event: event.order)
        instants = {event.time for event in mine}
        instants |= {
            tick for event in mine for frame in plan.ranges for tick in ticks(frame, event.time) if tick <= clock
        }
        for instant in instants:
            past = [event for event in mine if event.time <= instant]
            row: dict[str, Any] = {}
            if plan.payload:
                row["_p0"] = past[-1].value
            edges = [low_edge(frame, instant) for frame in plan.ranges]
            reach = -math.inf if plan.whole_history else min(edges)
            row["_version"] = sum(event.time >= reach for event in past)
            row["_offset"] = past[-1].offset if row["_version"] else -1
            row["_partition"] = past[-1].partition if row["_version"] else -1
            for index, aggregate in enumerate(plan.aggregates):
                row[f"_w{index}"] = folded(aggregate, framed(aggregate.frame, past, instant))
            rows[entity, instant] = row
    return rows


def floored(value: int, frame: Range) -> int:
    return (value - frame.origin_us) // frame.resolution_us * frame.resolution_us + frame.origin_us


def low_edge(frame: Range, instant: int) -> float:
    return -math.inf if frame.preceding_us is None else floored(instant - frame.preceding_us, frame)


def ticks(frame: Range, time: int) -> list[int]:
    if frame.decay_us is None:
        return []
    changes = []
    if frame.preceding_us is not None:
        gone = time
        while low_edge(frame, gone) <= time:
            gone += 1
        changes.append(gone)
    if frame.ending_us:
        changes.append(time + frame.ending_us)
    return [-(-change // frame.decay_us) * frame.decay_us for change in changes]


def framed(frame: Range | Rows, past: list[Event], instant: int) -> list[Event]:
    current = past[-1]
    if isinstance(frame, Rows):
        low = 0 if frame.preceding is None else max(0, len(past) - 1 - frame.preceding)
        held = past[low : max(0, len(past) - frame.ending)]
    else:
        held = [event for event in past if low_edge(frame, instant) <= event.time <= instant - frame.ending_us]
    ties = [event for event in held if event.time == current.time]
    left_out: list[Event] = {
        Exclude.NOTHING: [],
        Exclude.CURRENT_ROW: [current],
        Exclude.TIES: [event for event in ties if event is not current],
        Exclude.GROUP: ties,
    }[frame.exclude]
    return [event for event in held if event not in left_out]


def folded(aggregate: Aggregate, frame: list[Event]) -> Any:
    if aggregate.argument is None:
        return len(frame)
    there = [event for event in frame if event.value is not None]
    if aggregate.function in RANKED:
        best = min if aggregate.function == "arg_min" else max
        return best(there, key=lambda event: sql_order(event.value)).offset if there else None
    values = [event.value for event in there]
    if aggregate.parameter is not None:
        return QUANTILES[aggregate.function](values, aggregate.parameter) if values else None
    return SQL[aggregate.function](values)


def sql_order(value: Any) -> Any:
    return (math.isnan(value), value) if isinstance(value, float) else value


def sql_sum(values: list[Any]) -> Any:
    if not values:
        return None
    if not isinstance(values[0], float):
        total = sum(values)
        return None if isinstance(total, Decimal) and abs(total) >= 10**36 else total
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special)
    exact = sum(map(Fraction, values))
    try:
        return float(exact)
    except OverflowError:  # beyond the greatest double
        return math.inf if exact > 0 else -math.inf


def variance(fewer: int) -> Callable[[list[Any]], Any]:
    def exact(values: list[Any]) -> Any:
        if len(values) <= fewer:
            return None
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            return math.nan
        numbers = [*map(Fraction, values)]
        mean = sum(numbers) / len(numbers)
        spread = sum((number - mean) ** 2 for number in numbers) / (len(numbers) - fewer)
        try:
            return float(spread)
        except OverflowError:
            return math.inf

    return exact


def root(of: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def rooted(values: list[Any]) -> Any:
        spread = of(values)
        return None if spread is None else math.sqrt(spread)

    return rooted


def between(values: list[Any], p: Fraction) -> Any:
    ordered = sorted(map(float, values), key=sql_order)
    place = (len(ordered) - 1) * float(p)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    weight = place - math.floor(place)
    return low if weight == 0 else low * (1 - weight) + high * weight


SQL: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "sum": sql_sum,
    "avg": lambda values: float(sql_sum(values)) / len(values) if values else None,
    "min": lambda values: min(values, key=sql_order, default=None),
    "max": lambda values: max(values, key=sql_order, default=None),
    "mode": lambda values: min(statistics.multimode(values), key=sql_order) if values else None,
    "count_distinct": lambda values: len(set(values)),
    "first_value": lambda values: values[0] if values else None,
    "last_value": lambda values: values[-1] if values else None,
    "list": lambda values: values or None,
    "var_samp": variance(1),
    "var_pop": variance(0),
    "stddev_samp": root(variance(1)),
    "stddev_pop": root(variance(0)),
}
QUANTILES: dict[str, Callable[[list[Any], Fraction], Any]] = {
    "quantile_disc": lambda values, p: sorted(values, key=sql_order)[max(1, math.ceil(len(values) * p)) - 1],
    "quantile_cont": between,
}


def equal(expected: Any, got: Any) -> bool:
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(equal, expected, got))
    if expected is None or got is None:
        return expected is None and got is None
    if isinstance(expected, float) or isinstance(got, float):
        expected, got = float(expected), float(got)
        if not (math.isfinite(expected) and math.isfinite(got)):
            return str(expected) == str(got) or math.isclose(expected, got, rel_tol=1e-12)
        return math.isclose(expected, got, rel_tol=1e-12, abs_tol=5e-324)
    return bool(Decimal(expected) == got if isinstance(got, Decimal) else expected == got)


# The law


def functions_of(kind: str) -> list[str]:
    sums = SUMS if kind in NUMBERS else ()
    return [*ORDERED, *sums, *(SPREADS if kind == "float64" else ()), *BOXED, *RANKED]


@st.composite
def frames(draw: st.DrawFn, *, mergeable: bool) -> Range | Rows:
    exclude = draw(st.sampled_from(Exclude))
    if draw(st.integers(0, 3)) == 0:
        preceding = draw(st.integers(0, 4) | st.none() if mergeable else st.integers(0, 4))
        ending = draw(st.integers(0, 3 if preceding is None else preceding))
        return Rows(preceding, ending, exclude)
    decay = draw(st.none() | st.integers(1, 7))
    if mergeable and draw(st.integers(0, 3)) == 0:
        return Range(None, draw(st.sampled_from([0, 0, 3])), exclude=exclude, decay_us=decay)
    if draw(st.booleans()):
        preceding = draw(st.integers(0, 12)) if mergeable else 0
        return Range(preceding, 0, draw(st.integers(1, 8)), draw(st.integers(0, 3)), exclude, decay)
    preceding = draw(st.integers(0, 12))
    return Range(preceding, draw(st.sampled_from([0, 0, preceding, preceding // 2])), exclude=exclude, decay_us=decay)


@st.composite
def aggregates(draw: st.DrawFn, kind: str) -> Aggregate:
    function = draw(st.sampled_from(functions_of(kind)))
    frame = draw(frames(mergeable=function not in HOLISTIC))
    argument = 1 if function in BOXED else 2 if function in RANKED else 0
    if function == "count" and draw(st.booleans()):
        return Aggregate("count", None, "", frame)
    parameter = draw(st.sampled_from([Fraction(1, 2), Fraction(9, 10), Fraction(0), Fraction(1)]))
    return Aggregate(function, argument, "", frame, parameter if function in QUANTILES else None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ViewPlan, list[list[Event]], list[int], int]:
    kind = draw(st.sampled_from(sorted(INPUTS)))
    made = draw(st.lists(aggregates(kind), min_size=1, max_size=4))
    whole = any(
        isinstance(one.frame, Rows) or one.frame.preceding_us is None or one.function in ("first_value", "last_value")
        for one in made
    )
    value = st.none() | INPUTS[kind][1]
    if kind == "float64" and draw(st.booleans()):
        value = st.none() | st.sampled_from([0.5, 1.5, 2.5])
    lateness = draw(st.sampled_from([0, 1, 6]))
    entities = draw(st.sampled_from(["a", "abc"]))
    ahead = st.integers(-lateness, 9) | st.integers(-lateness, 1)
    step = st.tuples(st.sampled_from(entities), ahead, st.integers(0, 2), value, st.none() | st.sampled_from("xyz"))
    events, newest = list[Event](), 0
    for offset, (entity, ahead, partition, content, event_id) in enumerate(
        draw(st.lists(step, min_size=1, max_size=50))
    ):
        events.append(Event(entity, newest + ahead, partition, offset, content, event_id))
        newest = max(newest, newest + ahead)
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=6)))
    batches = [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    idle = draw(st.lists(st.sampled_from([0, 0, 0, 3, 40]), min_size=len(batches), max_size=len(batches)))
    return plan(kind, made, whole_history=whole), batches, idle, lateness


@settings(max_examples=500 if SOAK == 1 else 1000 * SOAK)
@given(cases(), st.sampled_from(["keep", "compact", "compact some", "save"]))
def test_final_rows_are_the_folds_of_their_frames_however_events_arrive(
    case: tuple[ViewPlan, list[list[Event]], list[int], int], between_batches: str
) -> None:
    plan, batches, idle, lateness = case
    shard, parts, newest = WindowShard(plan), list[WindowedRows](), NEVER_US
    for batch, pause in zip(batches, idle, strict=True):
        horizon = newest - lateness if between_batches.startswith("compact") else NEVER_US
        newest = max([newest, *(event.time for event in batch)])
        parts += shard.add(table(batch, plan.inputs), clock_us=newest, horizon_us=horizon, now_us=0)
        parts += shard.add(None, clock_us=newest + pause, horizon_us=horizon, now_us=0)
        if between_batches == "compact":
            compact_all(shard, min(newest - lateness, shard.clock_us))
        if between_batches == "compact some":
            shard.compact(min(newest - lateness, shard.clock_us), 2)
        if between_batches == "save":
            state = pickle.loads(pickle.dumps(shard.state()))
            shard = WindowShard(plan)
            shard.restore(state)
    parts += shard.add(None, clock_us=newest + 60, horizon_us=NEVER_US, now_us=0)

    got = newest_versions(parts)

    expected = truth([event for batch in batches for event in batch], plan, newest + 60)
    for row in got.values():
        for name, value in row.items():
            if name.startswith(("_p", "_w")):
                row[name] = [*map(microseconds, value)] if isinstance(value, list) else microseconds(value)
    assert expected.keys() == got.keys()
    for key, row in expected.items():
        for name, value in row.items():
            assert equal(value, got[key][name]), (key, name, value, got[key][name])


def microseconds(value: Any) -> Any:
    return round(value.timestamp() * 10**6) if hasattr(value, "timestamp") else value


# Rules, one by one


def count(frame: Range | Rows) -> Aggregate:
    return Aggregate("count", None, "BIGINT", frame)


def rows_of(plan: ViewPlan, events: Sequence[Event], clock_us: int = 0) -> dict[tuple[str, int], dict[str, Any]]:
    shard = WindowShard(plan)
    newest = max([clock_us, *(event.time for event in events)])
    return newest_versions([*shard.add(table(events, plan.inputs), clock_us=newest, horizon_us=NEVER_US, now_us=0)])


def test_long_windows_of_one_hot_entity_agree_with_numpy() -> None:
    rng = np.random.default_rng(7)
    times = np.sort(rng.integers(0, 5_000, 3_000))
    values = rng.integers(-1000, 1000, len(times))
    aggregates = [Aggregate(name, 0, "", Range(1_500)) for name in ("sum", "max", "quantile_disc", "count_distinct")]
    hot = plan(
        "int64", [*aggregates[:2], replace(aggregates[2], parameter=Fraction(1, 4)), aggregates[3]], whole_history=False
    )
    events = [
        Event("a", int(time), 0, offset, int(value))
        for offset, (time, value) in enumerate(zip(times, values, strict=True))
    ]
    shuffled = [events[index] for index in rng.permutation(len(events))]
    shard, parts = WindowShard(hot), list[WindowedRows]()
    for at in range(0, 3_000, 700):
        parts += shard.add(table(shuffled[at : at + 700], hot.inputs), clock_us=5_000, horizon_us=-1, now_us=0)

    got = newest_versions(parts)

    for time in np.unique(times).tolist():
        frame = np.sort(values[(times >= time - 1_500) & (times <= time)])
        quarter = frame[max(1, math.ceil(len(frame) / 4)) - 1]
        assert [got["a", time][f"_w{index}"] for index in range(4)] == [
            frame.sum(), frame[-1], quarter, len(np.unique(frame)),
        ]  # fmt: skip
        assert len(frame) == got["a", time]["_version"]


def test_an_event_counts_until_the_microsecond_at_which_its_window_ends() -> None:
    got = rows_of(
        plan("int64", [count(Range(10))], whole_history=False),
        [Event("a", 0, 0, 0, 1), Event("a", 10, 0, 1, 1), Event("a", 21, 0, 2, 1)],
    )

    assert {time: row["_w0"] for (_, time), row in got.items()} == {0: 1, 10: 2, 21: 1}


def test_a_large_number_leaves_a_sum_without_a_trace() -> None:
    summed = plan("float64", [Aggregate("sum", 0, "DOUBLE", Range(10))], whole_history=False)
    got = rows_of(
        summed, [Event("a", time, 0, time, value) for time, value in ((0, 1e16), (5, 1.0), (6, -1e16), (11, 0.5))]
    )

    assert {time: row["_w0"] for (_, time), row in got.items()} == {0: 1e16, 5: 1e16, 6: 1.0, 11: 1.5 - 1e16}


def test_a_sum_of_decimals_has_all_of_their_digits() -> None:
    summed = plan("wide decimal", [Aggregate("sum", 0, "", Range(10))], whole_history=False)
    prices = ["12345678901234567890.123456789", "0.000000001", "99999999999999999999999999999", "-1.5"]
    events = [Event("a", 20 * (number // 2) + number, 0, number, Decimal(price)) for number, price in enumerate(prices)]

    assert [str(row["_w0"]) for _, row in sorted(rows_of(summed, events).items())] == [
        "12345678901234567890.123456789",
        "12345678901234567890.123456790",
        "99999999999999999999999999999.000000000",
        "99999999999999999999999999997.500000000",
    ]


def test_entities_of_many_columns_stay_apart_however_many_values_each_has() -> None:
    counted = plan("int64", [count(Range(10))], whole_history=False)
    names, number = [f"key_{number}" for number in range(6)], 2000  # of which 2000**6 are not counted in 64 bits
    view = replace(counted.view, entity=tuple(pa.field(name, pa.string()) for name in names))
    keys = {name: [f"{name} {index}" for index in range(number)] for name in names}
    events = table([Event("a", 5, 0, offset, 1) for offset in range(number)], counted.inputs)
    for name in names:
        events = events.append_column(name, pa.array(keys[name]))

    shard = WindowShard(replace(counted, view=view, inputs=events.schema))
    [part] = shard.add(events, clock_us=5, horizon_us=NEVER_US, now_us=0)

    assert part.table.select(names).to_pydict() == keys


def test_ties_of_rows_and_firsts_break_by_event_id_then_partition_then_offset() -> None:
    listing = plan("int64", [Aggregate("list", 1, "", Rows(9))], whole_history=True)
    events = [
        Event("a", 5, 0, 7, 1, "z"),
        Event("a", 5, 1, 3, 2, "b"),
        Event("a", 5, 0, 9, 3, "b"),
        Event("a", 5, 0, 8, 4, "b"),
        Event("a", 5, 0, 1, 5, None),
    ]

    for arrangement in (events, events[::-1]):
        shard, parts = WindowShard(listing), list[WindowedRows]()
        for event in arrangement:
            parts += shard.add(table([event], listing.inputs), clock_us=5, horizon_us=NEVER_US, now_us=0)
        assert newest_versions(parts)["a", 5]["_w0"] == [4, 3, 2, 1, 5]


def test_rows_follow_a_window_at_ticks_though_no_event_comes() -> None:
    decaying = plan("int64", [count(Range(10, decay_us=4))], whole_history=False)
    shard = WindowShard(decaying)
    first = [
        *shard.add(
            table([Event("a", 1, 0, 0, 1), Event("a", 3, 0, 1, 1)], decaying.inputs),
            clock_us=3,
            horizon_us=NEVER_US,
            now_us=0,
        )
    ]
    quiet = [*shard.add(None, clock_us=11, horizon_us=NEVER_US, now_us=0)]
    later = [*shard.add(None, clock_us=20, horizon_us=NEVER_US, now_us=0)]

    assert quiet == []
    assert {time: row["_w0"] for (_, time), row in newest_versions(first).items()} == {1: 1, 3: 2}
    assert {time: row["_w0"] for (_, time), row in newest_versions(later).items()} == {12: 1, 16: 0}
    assert set(later[0].kinds.to_pylist()) == {Kind.DECAY}
    assert later[0].available_at.to_pylist() == [12, 16]


def test_a_late_event_corrects_ticks_and_makes_its_own() -> None:
    decaying = plan("int64", [count(Range(10, decay_us=4))], whole_history=False)
    shard = WindowShard(decaying)
    parts = [*shard.add(table([Event("a", 5, 0, 0, 1)], decaying.inputs), clock_us=30, horizon_us=NEVER_US, now_us=0)]
    late = [
        *shard.add(
            table([Event("a", 6, 0, 1, 1), Event("a", 1, 0, 2, 1)], decaying.inputs),
            clock_us=30,
            horizon_us=NEVER_US,
            now_us=0,
        )
    ]

    assert {time: row["_w0"] for (_, time), row in newest_versions(parts).items()} == {5: 1, 16: 0}
    assert {time: row["_w0"] for (_, time), row in newest_versions(late).items()} == {
        1: 1,
        5: 2,
        6: 3,
        12: 2,
        16: 1,
        20: 0,
    }
    assert set(late[0].kinds.to_pylist()) == {Kind.EVENT, Kind.CORRECTION}


def test_a_tumbling_window_begins_empty_at_its_start() -> None:
    tumbling = plan("int64", [count(Range(0, resolution_us=10, origin_us=3, decay_us=1))], whole_history=False)
    got = rows_of(tumbling, [Event("a", 4, 0, 0, 1), Event("a", 12, 0, 1, 1), Event("a", 14, 0, 2, 1)], clock_us=40)

    assert {time: row["_w0"] for (_, time), row in got.items()} == {4: 1, 12: 2, 13: 0, 14: 1, 23: 0}


def test_lag_columns_are_computed_anew_for_the_events_behind_a_late_one() -> None:
    inputs = pa.schema([*plan("int64", [], whole_history=True).inputs, ("_r0", pa.int64())])
    lagging = replace(
        plan("int64", [Aggregate("sum", 3, "", Range(100))], whole_history=True),
        inputs=inputs,
        lags=(Lag("_r0", 1),),
        lagged_sql="SELECT _r0 - _l0 AS _a3 FROM lagged",
        arguments=pa.schema([("_a3", pa.int64())]),
        payload=(),
    )
    shard, parts = WindowShard(lagging, Arguments(lagging).compute), list[WindowedRows]()
    for time, value in ((10, 7), (30, 9), (20, 1)):
        event = table([Event("a", time, 0, time, value)], plan("int64", [], whole_history=True).inputs)
        event = event.append_column("_r0", pa.array([value], pa.int64()))
        parts += shard.add(event, clock_us=30, horizon_us=NEVER_US, now_us=0)

    got = newest_versions(parts)

    assert {time: row["_w0"] for (_, time), row in got.items()} == {10: None, 20: -6, 30: 2}


# Sketches


def test_approximate_distinct_counts_are_exact_up_to_1024_and_near_beyond() -> None:
    sketching = plan("uint64", [Aggregate("approx_count_distinct", 0, "", Range(10**9))], whole_history=False)
    hashes = np.random.default_rng(3).integers(0, 2**64, 3_000, np.uint64).tolist()
    got = rows_of(sketching, [Event("a", index, 0, index, value) for index, value in enumerate(hashes)])

    assert got["a", 1022]["_w0"] == 1023
    assert got["a", 2_999]["_w0"] == pytest.approx(3_000, rel=0.1)


def test_approximate_quantiles_are_within_one_percent() -> None:
    p = Fraction(9, 10)
    sketching = plan("float64", [Aggregate("approx_quantile", 0, "", Range(10**9), p)], whole_history=False)
    values = np.random.default_rng(4).normal(0, 100, 3_000).tolist()
    got = rows_of(sketching, [Event("a", index, 0, index, value) for index, value in enumerate(values)])

    for index in (0, 1, 17, 2_999):
        exact = sorted(values[: index + 1])[max(1, math.ceil((index + 1) * p)) - 1]
        assert got["a", index]["_w0"] == pytest.approx(exact, rel=0.0101)


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, 5e-324, 1.7e308, -1.7e308])
def test_approximate_quantiles_know_the_ends_of_the_doubles(value: float) -> None:
    sketching = plan("float64", [Aggregate("approx_quantile", 0, "", Range(10), Fraction(1, 2))], whole_history=False)

    assert rows_of(sketching, [Event("a", 0, 0, 0, value)])["a", 0]["_w0"] == pytest.approx(value, rel=0.0101)


@settings(max_examples=100 * SOAK)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(0, 2**64 - 1)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
    st.sampled_from(["approx_count_distinct", "approx_quantile"]),
)
def test_sketches_are_the_same_for_every_arrangement(
    drawn: list[tuple[int, int | None]], random: Any, name: str
) -> None:
    kind = "uint64" if name == "approx_count_distinct" else "float64"
    made = [
        Event("a", time, 0, offset, float(value) if value is not None and kind == "float64" else value)
        for offset, (time, value) in enumerate(drawn)
    ]
    frames = (Range(9), Range(None), Range(9, resolution_us=4))
    sketching = plan(kind, [Aggregate(name, 0, "", frame, Fraction(1, 2)) for frame in frames], whole_history=True)
    shuffled = random.sample(made, len(made))
    shard, parts = WindowShard(sketching), list[WindowedRows]()
    for event in shuffled:
        parts += shard.add(table([event], sketching.inputs), clock_us=30, horizon_us=NEVER_US, now_us=0)

    expected, got = rows_of(sketching, made), newest_versions(parts)

    assert expected.keys() == got.keys()
    for key, row in expected.items():
        assert {name: row[name] for name in row if name != "created"} == {
            name: got[key][name] for name in row if name != "created"
        }


# State


@pytest.mark.parametrize(
    "frame", [Range(10), Range(10, decay_us=5), Range(40, resolution_us=8, decay_us=1), Range(None), Rows(3)]
)
@pytest.mark.parametrize("most", [1, 10, 1000])
def test_forgetting_what_cannot_matter_changes_no_row_and_bounds_the_state(frame: Range | Rows, most: int) -> None:
    rolling = plan("int64", [count(frame)], whole_history=not (isinstance(frame, Range) and frame.preceding_us))
    keeping, forgetting = WindowShard(rolling), WindowShard(rolling)
    for step in range(300):
        events = [Event(f"e{step % 7}", step * 4 + at, 0, step * 3 + at, at) for at in range(3)]
        shown = []
        for shard, horizon in ((keeping, NEVER_US), (forgetting, step * 4 - 30)):
            parts = [*shard.add(table(events, rolling.inputs), clock_us=step * 4 + 2, horizon_us=horizon, now_us=0)]
            shown.append([part.table.drop(["created"]).to_pylist() for part in parts])
            if horizon > NEVER_US:
                shard.compact(horizon, most)
        assert shown[0] == shown[1]
    assert keeping.events_count == 900
    assert forgetting.events_count < 120
    assert 5 * forgetting.bytes_count < keeping.bytes_count


def test_entities_of_which_nothing_can_matter_any_more_leave_nothing_behind() -> None:
    rolling = plan("int64", [count(Range(10, decay_us=2))], whole_history=False)
    shard = WindowShard(rolling)
    list(
        shard.add(
            table([Event(f"user {n}", 0, 0, n, 1) for n in range(50)], rolling.inputs),
            clock_us=0,
            horizon_us=NEVER_US,
            now_us=0,
        )
    )
    list(shard.add(None, clock_us=100, horizon_us=90, now_us=0))

    compact_all(shard, 90)

    assert (shard.entities_count, shard.events_count) == (0, 0)


def test_compaction_comes_by_itself_once_much_room_was_taken() -> None:
    rolling = plan("int64", [count(Range(10))], whole_history=False)
    shard = WindowShard(rolling)
    for start in range(0, 200_000, 5_000):
        events = [Event(f"e{time % 9}", time, 0, time, 1) for time in range(start, start + 5_000)]
        list(shard.add(table(events, rolling.inputs), clock_us=start + 4_999, horizon_us=start - 100, now_us=0))

    assert shard.events_count < 40_000


def test_created_rises_though_the_clock_steps_back() -> None:
    counting = plan("int64", [count(Range(10))], whole_history=False)
    shard = WindowShard(counting)
    both = table([Event("a", 1, 0, 0, 1), Event("b", 1, 0, 1, 1)], counting.inputs)
    first = [*shard.add(both, clock_us=1, horizon_us=0, now_us=500)]
    second = [*shard.add(table([Event("a", 2, 0, 2, 1)], counting.inputs), clock_us=2, horizon_us=0, now_us=100)]

    assert first[0].table.column("created").cast(pa.int64()).to_pylist() == [500, 501]
    assert second[0].table.column("created").cast(pa.int64()).to_pylist() == [502]


def test_only_the_last_row_of_an_entity_in_a_batch_is_newest() -> None:
    counting = plan("int64", [count(Range(10))], whole_history=False)
    events = [Event("a", 1, 0, 0, 1), Event("a", 2, 0, 1, 1), Event("b", 1, 0, 2, 1)]
    rows = [*WindowShard(counting).add(table(events, counting.inputs), clock_us=2, horizon_us=0, now_us=0)]

    assert rows[0].newest.to_pylist() == [False, True, True]


@pytest.mark.parametrize("frame", [Range(10), Range(0, resolution_us=20, decay_us=1)])
def test_aggregates_of_all_values_keep_each_though_their_events_are_tied_or_old(frame: Range) -> None:
    counting = plan("int64", [Aggregate("count_distinct", 0, "", frame)], whole_history=False)
    shard = WindowShard(counting)
    first = [Event("a", 1, 0, 0, 1), Event("a", 1, 0, 1, 2), Event("a", 2, 0, 2, 3)]
    list(shard.add(table(first, counting.inputs), clock_us=8, horizon_us=8, now_us=0))
    compact_all(shard, 8)

    rows = [*shard.add(table([Event("a", 9, 0, 3, 4)], counting.inputs), clock_us=9, horizon_us=8, now_us=0)]

    assert newest_versions(rows)["a", 9]["_w0"] == 4
