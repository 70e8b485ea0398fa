"""Quix Streams by its own means: its consumer, two of its windows with their state in RocksDB, and Feast's online write.

`sliding`: windows that end at each event, as declared; each event also changes every window that an earlier one of the same
user opened, so an event costs as much as the window holds. `hopping`: windows that hop in tenths of their length, of which
the longest one under way is taken: what it lacks is up to a tenth. In its favour: no changelog topic, so state that
is lost is read anew from Kafka; the newest row of each user alone is written at a checkpoint.
"""

import math
from typing import Any

from peer_meter import COUNTED_SECTION, HOPS, LENGTHS_MS, Meter, Online, Row, Task
from quixstreams import Application
from quixstreams.dataframe.windows import Count, Max, Mean, Min, Sum
from quixstreams.dataframe.windows.aggregations import Aggregator
from quixstreams.models import JSONDeserializer
from quixstreams.sinks import BaseSink

_NO_LIMIT_S = 3600.0


class Share(Aggregator):
    """The amount of the counted section by all events: events, events of the section, their amount."""

    def initialize(self) -> list[int]:
        """Begin."""
        return [0, 0, 0]

    def agg(self, old: list[int], new: Any, timestamp: int) -> list[int]:  # noqa: ARG002  # as Quix calls it
        """Add an event."""
        if new["section"] != COUNTED_SECTION:
            return [old[0] + 1, old[1], old[2]]
        return [old[0] + 1, old[1] + 1, old[2] + new["amount"]]

    def result(self, value: list[int]) -> float:
        """Divide."""
        return value[2] / value[0] if value[1] else math.nan


class Newest(Aggregator):
    """The time of the newest event: Quix gives a window's result the window's own time."""

    def initialize(self) -> int:
        """Begin."""
        return 0

    def agg(self, old: int, new: Any, timestamp: int) -> int:  # noqa: ARG002  # as Quix calls it
        """Add an event."""
        return max(old, timestamp)

    def result(self, value: int) -> int:
        """Return it."""
        return value


class Sink(BaseSink):
    """Keeps the newest row of each user, and writes them at each checkpoint."""

    def __init__(self, online: Online, batch: int) -> None:
        super().__init__()
        self._online, self._batch, self._rows = online, batch, dict[str, tuple[int, Row]]()

    def add(self, value: Any, key: Any, *_: Any, offset: int, **__: Any) -> None:  # type: ignore[override]
        """Keep a row; of one event's windows the first is the longest."""
        kept = self._rows.get(key)
        if kept is None or kept[0] != offset:
            self._rows[key] = offset, (value["at_ms"], [value[name] for name in self._online.names])

    def flush(self) -> None:
        """Write all that are kept."""
        rows = [(user, row) for user, (_, row) in self._rows.items()]
        self._rows.clear()
        for first in range(0, len(rows), self._batch):
            self._online.write(dict(rows[first : first + self._batch]))


AGGREGATIONS = {
    "10m": {"visits_count_10m": Count(), "amount_sum_10m": Sum("amount"), "seconds_avg_10m": Mean("seconds")},
    "1h": {
        "visits_count_1h": Count(),
        "amount_sum_1h": Sum("amount"),
        "amount_max_1h": Max("amount"),
        "seconds_min_1h": Min("seconds"),
        "arts_share_1h": Share(),
    },
}


def main() -> None:
    """Run until all events are processed."""
    task, meter = Task.told(), Meter()

    class Read(JSONDeserializer):
        def __call__(self, value: Any, ctx: Any) -> Any:
            meter.begin()
            return super().__call__(value, ctx)

    processed = [0]

    def count(_: str, __: int, ___: int) -> None:
        processed[0] += 1
        if processed[0] == task.events_count:
            app.stop()

    app = Application(
        task.brokers,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        commit_every=task.batch,
        commit_interval=_NO_LIMIT_S,
        state_dir=task.folder,
        use_changelog_topics=task.more["changelog"],
        on_message_processed=count,
        loglevel="ERROR",
    )
    visits = app.dataframe(app.topic(task.topic, value_deserializer=Read(), key_deserializer="str"))
    for short, aggregations in AGGREGATIONS.items():
        length_ms = LENGTHS_MS[short]
        window = (
            visits.hopping_window(length_ms, length_ms // HOPS, name=f"hopping_{short}")
            if task.more["windows"] == "hopping"
            else visits.sliding_window(length_ms, name=f"sliding_{short}")
        )
        window.agg(**aggregations, at_ms=Newest()).current().sink(Sink(Online(task, meter, short), task.batch))
    app.run()
    meter.tell(task.events_count)
