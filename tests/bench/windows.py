"""How fast the window step is, and how much it keeps: `./scripts/bench windows [--quick]` prints a table.

Beside each run, DuckDB computes the same windows over the same events at once: the ratio is what can be compared
between machines. Then the clock moves on over idle entities, which must cost what no entities cost.
"""

import argparse
import time
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from freshet.flows.steps.windows.shard import WindowShard
from freshet.schemas.event import NEVER_US
from freshet.schemas.plan import Aggregate, Oracle, Range, ViewPlan
from freshet.schemas.view import View

_TIME = pa.timestamp("us", "UTC")
_START_US = 1_700_000_000_000_000
_BATCH_EVENTS = 5_000
_EVENTS_PER_S = 2_000
_LATENESS_US = 5_000_000
_FUNCTIONS = (("count", None), ("sum", 0), ("max", 0), ("avg", 1))
_MINUTES = (10, 60, 30, 5)
_INPUTS = pa.schema(
    [
        ("user", pa.string()),
        ("event_timestamp", _TIME),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_available_at", _TIME),
        ("_a0", pa.int64()),
        ("_a1", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Run:
    """One measurement."""

    features_count: int
    entities_count: int
    events_per_s: float
    rows_per_s: float
    state_bytes: int
    events_kept: int
    duckdb_events_per_s: float


def plan(features_count: int) -> ViewPlan:
    """Return a view of so many windowed features: four functions over up to four windows that decay."""
    made = []
    for index in range(features_count):
        function, argument = _FUNCTIONS[index % 4]
        minutes = _MINUTES[index // 4 % 4]
        frame = Range(minutes * 60_000_000, decay_us=max(2_000_000, minutes * 600_000))
        made.append(Aggregate(function, argument, "", frame))
    view = View("by_user", ("events",), (pa.field("user", pa.string()),), ())
    return ViewPlan(view, (), _INPUTS, tuple(made), (), "", Oracle((), ""), whole_history=False)


def events(count: int, entities_count: int) -> pa.Table:
    """Return events in order; each entity comes once, then keys follow a Zipf law."""
    random = np.random.default_rng(7)
    first = random.permutation(entities_count)
    keys = np.concatenate([first, random.zipf(1.2, max(0, count - entities_count)) % entities_count])[:count]
    times = _START_US + np.arange(count) * (1_000_000 // _EVENTS_PER_S)
    at = pa.array(times, pa.int64()).cast(_TIME)
    names = pa.array([f"user {key}" for key in keys.tolist()])
    numbers = (pa.array(random.integers(0, 1000, count)), pa.array(random.random(count)))
    places = (pa.array(np.zeros(count, np.int32)), pa.array(np.arange(count)))
    return pa.table([names, at, *places, at, *numbers], schema=_INPUTS)


def measure(features_count: int, entities_count: int, count: int) -> tuple[Run, WindowShard]:
    """Push events through the window step, batch by batch, and let DuckDB do the same."""
    made, taken = plan(features_count), events(count, entities_count)
    shard, rows_count, took_s = WindowShard(made), 0, 0.0
    for start in range(0, count, _BATCH_EVENTS):
        batch = taken.slice(start, _BATCH_EVENTS)
        newest_us = batch.column("event_timestamp")[-1].value
        begun = time.perf_counter()
        for rows in shard.add(batch, clock_us=newest_us, horizon_us=newest_us - _LATENESS_US, now_us=0):
            rows_count += rows.table.num_rows
        took_s += time.perf_counter() - begun
    alone_s = _duckdb_s(made, taken)
    rate = count / took_s
    run = Run(
        features_count,
        entities_count,
        rate,
        rows_count / took_s,
        shard.bytes_count,
        shard.events_count,
        count / alone_s,
    )
    return run, shard


def _duckdb_s(made: ViewPlan, taken: pa.Table) -> float:
    """Return how long DuckDB takes for the same windows on one thread, ticks apart."""
    windows = []
    for one in made.aggregates:
        assert isinstance(one.frame, Range)
        argument = "*" if one.argument is None else f"_a{one.argument}"
        frame = f"INTERVAL {one.frame.preceding_us} MICROSECOND PRECEDING AND CURRENT ROW"
        over = f"(PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN {frame})"
        windows.append(f"{one.function}({argument}) OVER {over}")
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.register("events", taken)
    begun = time.perf_counter()
    connection.sql(f"SELECT {', '.join(windows)} FROM events").to_arrow_table()  # ours
    return time.perf_counter() - begun


def idle_s(shard: WindowShard, steps_count: int = 200) -> float:
    """Return the CPU seconds of a clock step over entities of which nothing is due any more."""
    end_us = shard.clock_us + 2 * 3600 * 1_000_000
    list(shard.add(None, clock_us=end_us, horizon_us=NEVER_US, now_us=0))
    begun = time.process_time()
    for step in range(steps_count):
        list(shard.add(None, clock_us=end_us + step * 500_000, horizon_us=NEVER_US, now_us=0))
    return (time.process_time() - begun) / steps_count


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--quick", action="store_true", help="a tenth of the entities and events")
    scale = 10 if words.parse_args().quick else 1
    print("| features | entities | events/s | rows/s | to DuckDB | state MB | bytes an event kept | idle step µs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for entities_count in (1_000, 100_000, 1_000_000):
        for features_count in (1, 4, 16):
            entities = entities_count // scale
            run, shard = measure(features_count, entities, max(400_000 // scale, entities * 5 // 4))
            step_us = idle_s(shard) * 1e6
            print(
                f"| {features_count} | {entities:,} | {run.events_per_s:,.0f} | {run.rows_per_s:,.0f} |"
                f" {run.events_per_s / run.duckdb_events_per_s:.2f} | {run.state_bytes / 1e6:.1f} |"
                f" {run.state_bytes / max(1, run.events_kept):.0f} | {step_us:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
