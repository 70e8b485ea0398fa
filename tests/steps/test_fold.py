"""One shard in the flow: its clock, and that what it may forget never depends on how its streams are cut into polls."""

import itertools
import os
import pickle

import pyarrow as pa
import pytest
from compacting import compact_all
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.windows.shard import WindowedRows
from freshet.schemas.event import NEVER_US
from freshet.schemas.plan import Aggregate, Oracle, Range, ViewPlan
from freshet.schemas.view import View

SOAK = int(os.environ.get("FRESHET_SOAK") or 1)
TIME = pa.timestamp("us", "UTC")
INPUTS = pa.schema(
    [
        ("user", pa.string()),
        ("event_timestamp", TIME),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_available_at", TIME),
    ]
)
VIEW = View("by_user", ("events",), (pa.field("user", pa.string()),), ())
LATENESS_US = 5
LATENESS = {"events": LATENESS_US}


def plan(frame: Range) -> ViewPlan:
    return ViewPlan(
        VIEW, (), INPUTS, (Aggregate("count", None, "BIGINT", frame),), (), "", Oracle((), ""), whole_history=False
    )


def table(events: list[tuple[int, int, int]]) -> pa.Table:
    times = pa.array([time for time, _, _ in events], pa.int64()).cast(TIME)
    partitions, offsets = [part for _, part, _ in events], [offset for _, _, offset in events]
    return pa.table([["ada"] * len(events), times, partitions, offsets, times], schema=INPUTS)


def item(
    partition: int, newest_us: int, count: int = 3, *, caught_up_us: int | None = None, inputs: pa.Table | None = None
) -> ShardInput:
    return ShardInput("by_user", 0, 0, "events", partition, count, newest_us, caught_up_us, inputs)


@settings(max_examples=300 * SOAK)
@given(
    steps=st.lists(st.tuples(st.integers(-LATENESS_US, 30), st.integers(0, 2)), min_size=1, max_size=80),
    cuts=st.lists(st.integers(1, 80), max_size=12),
    frame_us=st.integers(1, 40),
    decay_us=st.none() | st.integers(1, 9),
    between=st.sampled_from(["go on", "save"]),
)
def test_the_final_rows_do_not_depend_on_how_partitions_are_cut_into_polls(
    steps: list[tuple[int, int]], cuts: list[int], frame_us: int, decay_us: int | None, between: str
) -> None:
    clocks, events = {0: 0, 1: 0, 2: 0}, list[tuple[int, int, int]]()
    for offset, (step, partition) in enumerate(steps):
        events.append((clocks[partition] + step, partition, offset))
        clocks[partition] = max(clocks[partition], clocks[partition] + step)
    made = plan(Range(frame_us, decay_us=decay_us))
    fold, final = ShardFold(made, LATENESS), dict[int, tuple[int, int]]()
    newest = dict.fromkeys(clocks, -(10**9))

    def keep(parts: list[WindowedRows]) -> None:
        for rows in parts:
            times = rows.table.column("event_timestamp").cast(pa.int64()).to_pylist()
            versions, counts = (rows.table.column(name).to_pylist() for name in ("_version", "_w0"))
            for time, version, count in zip(times, versions, counts, strict=True):
                assert time not in final or version > final[time][0]
                final[time] = (version, count)

    bounds = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for start, end in itertools.pairwise(bounds):
        items = []
        for partition in sorted({part for _, part, _ in events[start:end]}):
            mine = [event for event in events[start:end] if event[1] == partition]
            newest[partition] = max(newest[partition], *(time for time, _, _ in mine))
            items.append(item(partition, newest[partition], inputs=table(mine)))
        horizon_us = fold.horizon_us()
        keep([*fold.fold(items, now_us=0)])
        compact_all(fold.shard, min(horizon_us, fold.shard.clock_us))
        if between == "save":
            state = pickle.loads(pickle.dumps(fold.state()))
            fold = ShardFold(made, LATENESS)
            fold.restore(state)

    clock = max(time for time, _, _ in events)
    instants = {time for time, _, _ in events}
    if decay_us is not None:
        ticks = {-(-(time + frame_us + 1) // decay_us) * decay_us for time in instants}
        instants |= {tick for tick in ticks if tick <= clock}
    counts = {q: len([1 for other, _, _ in events if q - frame_us <= other <= q]) for q in instants}
    assert {q: (count, count) for q, count in counts.items()} == final


def test_while_a_topic_is_caught_up_with_the_clock_is_event_time() -> None:
    fold = ShardFold(plan(Range(10)), LATENESS)
    list(fold.fold([item(0, 40), item(1, 70, caught_up_us=10**6)], now_us=10**6))

    assert fold.clock_us() == 70


def test_once_all_partitions_are_at_their_end_the_clock_is_wall_time() -> None:
    fold = ShardFold(plan(Range(10)), LATENESS)
    list(fold.fold([item(part, 40, caught_up_us=1000 + part) for part in range(3)], now_us=0))

    assert fold.clock_us() == 1000


def test_the_clock_never_goes_back() -> None:
    fold = ShardFold(plan(Range(10)), LATENESS)
    list(fold.fold([item(part, 40, caught_up_us=1000) for part in range(3)], now_us=0))
    list(fold.fold([item(part, 30, caught_up_us=500) for part in range(3)], now_us=0))

    assert (fold.clock_us(), fold.shard.clock_us) == (1000, 1000)


def test_time_makes_rows_at_the_end_of_a_topic_and_an_outage_of_one_partition_holds_it() -> None:
    fold = ShardFold(plan(Range(10, decay_us=5)), LATENESS)
    list(fold.fold([item(0, 40, inputs=table([(40, 0, 0)]))], now_us=0))
    partly = [*fold.fold([item(0, 40, caught_up_us=99), item(1, NEVER_US, caught_up_us=99)], now_us=0)]
    whole = [*fold.fold([item(2, NEVER_US, caught_up_us=60)], now_us=0)]

    assert partly == []
    assert whole[0].table.column("event_timestamp").cast(pa.int64()).to_pylist() == [55]


@pytest.mark.parametrize("told", [(0, 1), (0, 1, 2)])
def test_nothing_is_forgotten_before_every_partition_has_told_its_clock(told: tuple[int, ...]) -> None:
    fold = ShardFold(plan(Range(10)), LATENESS)
    list(fold.fold([item(part, 40 + part) for part in told], now_us=0))

    assert fold.horizon_us() == (35 if len(told) == 3 else NEVER_US)


def test_a_view_of_two_streams_waits_for_both_and_each_has_its_own_lateness() -> None:
    fold = ShardFold(plan(Range(10)), {"clicks": 5, "orders": 30})
    list(fold.fold([ShardInput("by_user", 0, 0, "clicks", 0, 1, 100, 900, None)], now_us=0))
    assert (fold.horizon_us(), fold.clock_us()) == (NEVER_US, 100)

    list(fold.fold([ShardInput("by_user", 0, 0, "orders", 0, 1, 110, 800, None)], now_us=0))
    assert (fold.horizon_us(), fold.clock_us()) == (80, 800)
