"""The loop that a plain user writes: consume a batch, keep windows in Python, push what came of it to Feast.

Each user has running sums and, for extremes, queues that only rise or fall, so an event costs the same however many are in
a window. Either the newest row of each user in a batch is pushed online or, with `all`, every event's; all rows go to parquet files,
as Feast's own offline push rewrites its one file each time and takes no folder. Nothing is kept over a crash, nothing is checked, no duplicate is
dropped, and an event out of order is not put in its place.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Message
from peer_meter import COUNTED_SECTION, LENGTHS_MS, Meter, Online, Row, Task, frame
from pipeline_work import ENTITY
from pydantic_core import from_json

_FILE_ROWS_MIN, _POLL_S = 10_000, 0.2


class Windows:
    """The windows of one user.

    >>> user = Windows()
    >>> user.add(0, 30.0, 5, True)
    (1, 5, 30.0, 1, 5, 5, 30.0, 5.0)
    >>> user.add(600_000, 20.0, 1, False)
    (2, 6, 25.0, 2, 6, 5, 20.0, 2.5)
    >>> user.add(600_001, 40.0, 2, False)[:3]
    (2, 3, 30.0)
    """

    __slots__ = ("_amount", "_counted", "_long", "_max", "_min", "_short", "_short_amount", "_short_seconds")

    def __init__(self) -> None:
        self._short, self._long = deque[tuple[int, float, int]](), deque[tuple[int, int, bool]]()
        self._max, self._min = deque[tuple[int, int]](), deque[tuple[int, float]]()
        self._short_amount, self._short_seconds, self._amount = 0, 0.0, 0
        self._counted = [0, 0]  # of the counted section, events and amount

    def add(self, ms: int, seconds: float, amount: int, counted: bool) -> tuple[Any, ...]:  # noqa: FBT001  # an event's own
        """Take the next event; return the features after it, in the order of the declaration."""
        self._short.append((ms, seconds, amount))
        self._short_amount += amount
        self._short_seconds += seconds
        since = ms - LENGTHS_MS["10m"]
        while self._short[0][0] < since:
            _, gone_seconds, gone = self._short.popleft()
            self._short_amount -= gone
            self._short_seconds -= gone_seconds
        self._long.append((ms, amount, counted))
        self._amount += amount
        if counted:
            self._counted[0] += 1
            self._counted[1] += amount
        since = ms - LENGTHS_MS["1h"]
        while self._long[0][0] < since:
            _, gone, was_counted = self._long.popleft()
            self._amount -= gone
            if was_counted:
                self._counted[0] -= 1
                self._counted[1] -= gone
        while self._max and self._max[-1][1] <= amount:
            self._max.pop()
        self._max.append((ms, amount))
        while self._max[0][0] < since:
            self._max.popleft()
        while self._min and self._min[-1][1] >= seconds:
            self._min.pop()
        self._min.append((ms, seconds))
        while self._min[0][0] < since:
            self._min.popleft()
        short_count, count = len(self._short), len(self._long)
        share = self._counted[1] / count if self._counted[0] else math.nan
        mean = self._short_seconds / short_count
        return (
            short_count, self._short_amount, mean, count, self._amount, self._max[0][1], self._min[0][1], share,
        )  # fmt: skip


class Users:
    """The windows of all users."""

    def __init__(self) -> None:
        self._windows: dict[str, Windows] = {}

    def rows(self, values: Sequence[bytes]) -> Iterator[tuple[str, Row]]:
        """Give the row that each message makes, and whose it is."""
        for event in from_json(b"[" + b",".join(values) + b"]"):
            user, ms = event[ENTITY], round(datetime.fromisoformat(event["at"]).timestamp() * 1000)
            windows = self._windows.get(user)
            if windows is None:
                windows = self._windows[user] = Windows()
            is_counted = event["section"] == COUNTED_SECTION
            yield user, (ms, windows.add(ms, event["seconds"], event["amount"], is_counted))


class Files:
    """Rows in parquet files of ten thousand rows or more."""

    def __init__(self, folder: Path, names: Sequence[str], meter: Meter) -> None:
        self._folder, self._names, self._meter, self._count = folder, names, meter, 0
        self._rows: list[tuple[str, Row]] = []
        folder.mkdir()

    def add(self, rows: list[tuple[str, Row]]) -> None:
        """Keep rows, and write them once there are enough."""
        self._rows += rows
        if len(self._rows) >= _FILE_ROWS_MIN:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        if not self._rows:
            return
        columns = zip(*(values for _, (_, values) in self._rows), strict=True)
        times = pa.array([at_ms for _, (at_ms, _) in self._rows], pa.timestamp("ms", "UTC"))
        users = [user for user, _ in self._rows]
        table = pa.table({ENTITY: users, "event_timestamp": times, **dict(zip(self._names, columns, strict=True))})
        pq.write_table(table, self._folder / f"part-{self._count:06d}.parquet")
        self._meter.wrote(offline=len(self._rows))
        self._count += 1
        self._rows = []


def every(rows: Sequence[tuple[str, Row]], names: Sequence[str]) -> pd.DataFrame:
    """Return all rows as Feast takes them, several of a user too."""
    made = frame({str(number): row for number, (_, row) in enumerate(rows)}, names)
    return made.assign(**{ENTITY: [user for user, _ in rows]})


def consumed(consumer: Consumer, task: Task) -> Iterator[list[bytes]]:
    """Give all messages of the topic, in batches."""
    read_count = 0
    while read_count < task.events_count:
        messages: list[Message] = consumer.consume(task.batch, _POLL_S)
        for message in messages:
            assert message.error() is None, message.error()
        if messages:
            read_count += len(messages)
            yield [message.value() for message in messages]


def main() -> None:
    """Consume to the end and push."""
    task, meter = Task.told(), Meter()
    online, users = Online(task, meter), Users()
    files = Files(Path(task.folder) / "rows", online.names, meter)
    consumer = Consumer(
        {
            "bootstrap.servers": task.brokers,
            "group.id": task.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([task.topic])
    for values in consumed(consumer, task):
        meter.begin()
        rows = list(users.rows(values))
        online.push(every(rows, online.names) if task.more["all"] else frame(dict(rows), online.names))
        files.add(rows)
        consumer.commit(asynchronous=True)
    files.flush()
    consumer.close()
    meter.tell(task.events_count)


def push_alone() -> None:
    """Push rows that are there already, an event's each: what `FeatureStore.push` takes by itself."""
    task, meter = Task.told(), Meter()
    online, users = Online(task, meter), Users()
    values = iter((Path(task.folder) / "events").read_bytes().splitlines())
    frames, count = [], 0
    while batch := list(islice(values, task.batch)):
        rows = list(users.rows(batch))
        count += len(rows)
        frames.append(every(rows, online.names))
    meter.begin()
    for made in frames:
        online.push(made)
    meter.tell(count)
