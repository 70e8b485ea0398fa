"""One shard in the flow: what it may forget never depends on how its stream is cut into polls."""

import itertools

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.schemas.plan import Aggregate, Range, ViewPlan
from freshet.schemas.view import View

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
VIEW = View("by_user", "events", (pa.field("user", pa.string()),), ())
LATENESS_US = 5


def plan(frame_us: int) -> ViewPlan:
    count = Aggregate("count", None, "BIGINT", Range(frame_us))
    return ViewPlan(VIEW, "", INPUTS, (count,), (), "", "", frame_us)


def table(events: list[tuple[int, int, int]]) -> pa.Table:
    times = pa.array([time for time, _, _ in events], pa.int64()).cast(TIME)
    partitions, offsets = [part for _, part, _ in events], [offset for _, _, offset in events]
    return pa.table([["ada"] * len(events), times, partitions, offsets, times], schema=INPUTS)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(-LATENESS_US, 30), st.integers(0, 2)), min_size=1, max_size=80),
    cuts=st.lists(st.integers(1, 80), max_size=12),
    frame_us=st.integers(1, 40),
)
def test_the_final_rows_do_not_depend_on_how_partitions_are_cut_into_polls(
    steps: list[tuple[int, int]], cuts: list[int], frame_us: int
) -> None:
    clocks, events = {0: 0, 1: 0, 2: 0}, list[tuple[int, int, int]]()
    for offset, (step, partition) in enumerate(steps):
        events.append((clocks[partition] + step, partition, offset))
        clocks[partition] = max(clocks[partition], clocks[partition] + step)
    fold = ShardFold(plan(frame_us), LATENESS_US)
    newest = dict.fromkeys(clocks, -(10**9))
    final: dict[int, tuple[int, int]] = {}

    bounds = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for start, end in itertools.pairwise(bounds):
        items = []
        for partition in sorted({part for _, part, _ in events[start:end]}):
            mine = [event for event in events[start:end] if event[1] == partition]
            newest[partition] = max(newest[partition], *(time for time, _, _ in mine))
            items.append(ShardInput("by_user", partition, 3, newest[partition], table(mine)))
        rows = fold.fold(items, now_us=0)
        assert rows is not None
        times = rows.table.column("event_timestamp").cast(pa.int64()).to_pylist()
        for time, version, count in zip(
            times, rows.table.column("_version").to_pylist(), rows.table.column("_w0").to_pylist(), strict=True
        ):
            final[time] = max(final.get(time, (0, 0)), (version, count))

    expected = {
        time: (count, count)
        for time, _, _ in events
        if (count := len([1 for other, _, _ in events if time - frame_us <= other <= time]))
    }
    assert expected == final
