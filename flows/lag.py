"""How far the materializer is behind, by what Kafka tells: it is known whether or not any flow is well."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freshet.flows.steps.burrow import Status
from freshet.flows.steps.lag import Lag, PartitionLag
from freshet.schemas.errors import FreshetError
from freshet.schemas.standing import Standing

LOG = logging.getLogger("freshet")

_EVERY_S = 1.0
_RETENTION_EVERY_S = 300.0

Lags = Mapping[tuple[str, int], Lag]
"""By topic and partition."""


class Standings(Protocol):
    """Where a group stands, as `edges.standings.Standings` asks."""

    def of(self, topic: str, count: int) -> dict[int, Standing]:
        """Return the standing of each of a topic's partitions."""

    def written_at_s(self, topic: str, partition: int, offset: int) -> float | None:
        """Return when a message was written, or the next that is there; None if there is none."""

    def newest_at_s(self, topic: str, ends: Mapping[int, int]) -> dict[int, float | None]:
        """Return when each partition's newest message was written, by the time that it carries; None if unknown."""

    def retention_s(self, topic: str) -> float | None:
        """Return how long Kafka keeps a topic's messages; None if for ever, or if it does not say."""


class LagReader:
    """Looks at every partition of some topics, as many as each has at that moment.

    `target_s` is the age that no message should pass.
    """

    def __init__(
        self, standings: Standings, topics: Sequence[str], partitions_count: Callable[[str], int], target_s: float
    ) -> None:
        self._standings, self._topics, self._target_s = standings, topics, target_s
        self._partitions_count = partitions_count
        self._known: dict[tuple[str, int], PartitionLag] = {}
        self._retention: dict[str, tuple[float, float | None]] = {}

    def look(self, now_s: float) -> Lags:
        """Return the lag of each partition, at an instant in seconds since the epoch. Raises `Unavailable`."""
        found = {}
        for topic in self._topics:
            count, retention_s = self._partitions_count(topic), self._retention_s(topic, now_s)
            for part, standing in self._standings.of(topic, count).items():
                known = self._known.setdefault((topic, part), PartitionLag(self._target_s))
                found[topic, part] = known.look(standing, now_s, retention_s, self._written(topic, part))
        return found

    def newest_at_s(self, lags: Lags) -> dict[tuple[str, int], float | None]:
        """Return when the newest message of each partition was written, as far as Kafka knows. Raises `Unavailable`."""
        ends: dict[str, dict[int, int]] = {}
        for (topic, part), lag in lags.items():
            ends.setdefault(topic, {})[part] = lag.end_offset
        return {
            (topic, part): at_s
            for topic, own in ends.items()
            for part, at_s in self._standings.newest_at_s(topic, own).items()
        }

    def _written(self, topic: str, part: int) -> Callable[[int], float | None]:
        return lambda offset: self._standings.written_at_s(topic, part, offset)

    def _retention_s(self, topic: str, now_s: float) -> float | None:
        asked_s, kept_s = self._retention.get(topic, (None, None))
        if asked_s is None or now_s - asked_s >= _RETENTION_EVERY_S:
            kept_s = self._standings.retention_s(topic)
            self._retention[topic] = now_s, kept_s
        return kept_s


class LagExporter(Collector):
    """Gives Prometheus the lag of a group: looked at about once a second by a thread, whenever it is scraped.

    While Kafka does not answer there is nothing of it but when it did last.
    """

    def __init__(self, group: str, connect: Callable[[], LagReader]) -> None:
        self._group, self._connect = group, connect
        self._lock, self._ends, self._is_other = threading.Lock(), threading.Event(), threading.Event()
        self._lags: Lags = {}
        self._answered_s: float | None = None

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="lag", daemon=True).start()

    def follow(self, connect: Callable[[], LagReader]) -> None:
        """Look at other topics from the next look on."""
        self._connect = connect
        self._is_other.set()

    def end(self) -> None:
        """Look no more."""
        self._ends.set()

    def _run(self) -> None:
        reader, trouble, chance = None, "", random.Random()  # noqa: S311  # no secret
        while not self._ends.is_set():
            if self._is_other.is_set():
                self._is_other.clear()
                reader = None
            try:
                reader = reader or self._connect()
                self.note(reader.look(time.time()), time.time())
                trouble = ""
            except FreshetError as error:  # an outage, or a topic that nobody has made yet: the next look may answer
                self.note({}, None)
                if str(error) != trouble:
                    trouble = str(error)
                    LOG.warning("lag is not known: %s", error)
            # never in step with commits, or their age would seem to rise and fall
            self._ends.wait(_EVERY_S * chance.uniform(0.5, 1.5))

    def note(self, lags: Lags, answered_s: float | None) -> None:
        """Take what was seen, and when; None if Kafka did not answer."""
        with self._lock:
            self._lags = lags
            self._answered_s = answered_s or self._answered_s

    def collect(self) -> Iterator[Metric]:
        """Give kafka_exporter's metrics, and ours."""
        with self._lock:
            lags, answered_s = self._lags, self._answered_s
        yield from families(self._group, lags)
        if answered_s is not None:
            name, meaning = "freshet_lag_sampled_timestamp_seconds", "When Kafka last said how far the group is."
            yield GaugeMetricFamily(name, meaning, value=answered_s)

    def describe(self) -> Iterator[Metric]:
        """Name everything there may be, without asking Kafka."""
        return iter(families(self._group, {}))


def families(group: str, lags: Lags) -> list[GaugeMetricFamily]:
    """Return the metrics of a group's lag."""
    labels = ["consumergroup", "topic", "partition"]
    messages = GaugeMetricFamily("kafka_consumergroup_lag", "Messages not yet durable.", labels=labels)
    sums = GaugeMetricFamily("kafka_consumergroup_lag_sum", "The same, of a topic.", labels=labels[:2])
    age = GaugeMetricFamily("freshet_lag_seconds", "How long the oldest of them has waited.", labels=labels)
    status = GaugeMetricFamily("freshet_lag_status", "1 for how Burrow would call it.", labels=[*labels, "status"])
    drain = GaugeMetricFamily("freshet_lag_drain_seconds", "Until nothing waits, at this rate.", labels=labels)
    breach = GaugeMetricFamily("freshet_lag_breach_seconds", "Until the freshness target is passed.", labels=labels)
    left = GaugeMetricFamily("freshet_retention_left_seconds", "Until Kafka deletes the oldest of them.", labels=labels)
    totals: dict[str, int] = {}
    for (topic, part), lag in lags.items():
        place = [group, topic, str(part)]
        totals[topic] = totals.get(topic, 0) + lag.messages_count
        messages.add_metric(place, lag.messages_count)
        for family, value in (
            (age, lag.age_s), (drain, lag.drain_s), (breach, lag.breach_s), (left, lag.retention_left_s)
        ):  # fmt: skip
            if value is not None:
                family.add_metric(place, value)
        for one in Status:
            status.add_metric([*place, one.value], float(one is lag.status))
    for topic, total in totals.items():
        sums.add_metric([group, topic], total)
    return [messages, sums, age, status, drain, breach, left]
