"""Bytewax by its own means: its Kafka source, two `fold_window` over its sliding windows, and Feast's online write.

Its sliding windows hop, here in tenths of their length, and give a row when one closes: a value is up to a tenth of its
window old, and its row's time is when the window closed. One worker. In its favour: `ordered=False`; a clock that stands and no
wake-ups, since by default one that is slower than its events drops them as late, and for events of the past never rests: so
windows of a user who is silent wait for the end; no recovery; the newest row of each user alone is written of those that come together.
At the end of the topic Bytewax closes all windows; what a stream spreads over an hour comes at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, SlidingWindower, fold_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from peer_meter import COUNTED_SECTION, HOPS, LENGTHS_MS, Meter, Online, Row, Task
from pipeline_work import ENTITY, LATENESS
from pydantic_core import from_json

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Visit = tuple[datetime, float, int, bool]
"""When, for how many seconds, the amount, and whether it is of the counted section."""
Closed = dict[str, tuple[int, list[Any]]]
"""The newest window of each user of those that closed together: its number, and what was folded."""


def add_short(sums: list[Any], visit: Visit) -> list[Any]:
    """Fold a visit into ten minutes: count, amount, seconds."""
    sums[0] += 1
    sums[1] += visit[2]
    sums[2] += visit[1]
    return sums


def add_long(sums: list[Any], visit: Visit) -> list[Any]:
    """Fold a visit into an hour: count, amount, its greatest, least seconds; of the counted section, count and amount."""
    _, seconds, amount, is_counted = visit
    sums[0] += 1
    sums[1] += amount
    sums[2] = max(sums[2], amount)
    sums[3] = min(sums[3], seconds)
    if is_counted:
        sums[4] += 1
        sums[5] += amount
    return sums


def merge(_: Any, __: Any) -> Any:
    """Never asked for: such windows do not merge."""
    raise AssertionError("sliding windows do not merge")


def newest_of(closed: list[tuple[str, tuple[int, list[Any]]]]) -> list[Closed]:
    """Keep the newest window of each user."""
    kept: Closed = {}
    for user, window in closed:
        if user not in kept or kept[user][0] < window[0]:
            kept[user] = window
    return [kept]


def features(short: str, sums: list[Any]) -> tuple[Any, ...]:
    """Return the features of a window from what was folded."""
    if short == "10m":
        return sums[0], sums[1], sums[2] / sums[0]
    return (*sums[:4], sums[5] / sums[0] if sums[4] else math.nan)


class Part(StatelessSinkPartition[Closed]):
    """Writes rows of windows that have closed."""

    def __init__(self, short: str, online: Online, batch: int) -> None:
        self._short, self._online, self._batch = short, online, batch
        self._length_ms, self._hop_ms = LENGTHS_MS[short], LENGTHS_MS[short] // HOPS

    def write_batch(self, items: list[Closed]) -> None:
        """Write each user's row."""
        for newest in items:
            rows: list[tuple[str, Row]] = [
                (user, (number * self._hop_ms + self._length_ms, features(self._short, sums)))
                for user, (number, sums) in newest.items()
            ]
            for first in range(0, len(rows), self._batch):
                self._online.write(dict(rows[first : first + self._batch]))


@dataclass(frozen=True)
class Sink(DynamicSink[Closed]):
    """A view in the online store."""

    short: str
    online: Online
    batch: int

    def build(self, *_: Any) -> Part:
        """Open it."""
        return Part(self.short, self.online, self.batch)


def flow(task: Task, meter: Meter, lates: list[int]) -> Dataflow:
    """Return the dataflow; `lates` gets the length of each batch that came too late for its windows."""

    def parse(messages: list[KafkaSourceMessage[bytes, bytes]]) -> Iterable[tuple[str, Visit]]:
        meter.begin()
        events = from_json(b"[" + b",".join([message.value for message in messages]) + b"]")
        return [
            (
                one[ENTITY],
                (datetime.fromisoformat(one["at"]), one["seconds"], one["amount"], one["section"] == COUNTED_SECTION),
            )
            for one in events
        ]

    def count_late(late: list[Any]) -> list[Any]:
        lates.append(len(late))
        return late

    made = Dataflow("peer")
    source = KafkaSource([task.brokers], [task.topic], tail=False, batch_size=task.batch)
    visits = op.flat_map_batch("parse", op.input("visits", made, source), parse)
    clock = EventClock(lambda visit: visit[0], LATENESS, now_getter=lambda: EPOCH, to_system_utc=lambda _: None)
    folds = {
        "10m": (lambda: [0, 0, 0.0], add_short),
        "1h": (lambda: [0, 0, -math.inf, math.inf, 0, 0], add_long),
    }
    for short, (build, add) in folds.items():
        length = timedelta(milliseconds=LENGTHS_MS[short])
        windower = SlidingWindower(length, length / HOPS, EPOCH)
        out = fold_window(f"fold_{short}", visits, clock, windower, build, add, merge, ordered=False)
        newest = op.flat_map_batch(f"newest_{short}", out.down, newest_of)
        op.output(f"online_{short}", newest, Sink(short, Online(task, meter, short), task.batch))
        op.inspect(f"late_{short}", op.flat_map_batch(f"count_late_{short}", out.late, count_late), lambda *_: None)
    return made


def main() -> None:
    """Run to the end of the topic."""
    task, meter, lates = Task.told(), Meter(), list[int]()
    run_main(flow(task, meter, lates))
    meter.tell(task.events_count, late_count=sum(lates))
