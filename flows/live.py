"""The materializer as it runs: Kafka, the online store, the offline store, and metrics.

Also a plain Bytewax flow: `python -m bytewax.run "freshet.flows.live:flow()"` takes its settings from the environment.
"""

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from bytewax.dataflow import Dataflow
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freshet.flows import settings as settings_
from freshet.flows.edges import bytewax, kafka
from freshet.flows.edges.feast import FeastOnlineStore, open_store, store_config
from freshet.flows.edges.metrics import Metrics, Server
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.project import Project, expand
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.materializer import Edges, Online, archive_name, build, source_key
from freshet.flows.settings import Settings
from freshet.flows.steps.alerts import consumer_group
from freshet.flows.steps.lag import LagClock
from freshet.flows.steps.sql import compile_views
from freshet.schemas.declaration import Source
from freshet.schemas.errors import Unavailable
from freshet.schemas.event import EVENT_TIME, OFFSET, PARTITION, Contract
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reject
from freshet.schemas.view import VERSION, View

LOG = logging.getLogger("freshet")

_POLL_MESSAGES = 2000
_AHEAD_LIMIT_MS = 30_000
_IDLE_US = 500_000
_EXPIRY = timedelta(minutes=10)


@dataclass(frozen=True)
class Workspace:
    """A project, read and compiled, with the settings of this process."""

    project: Project
    source: Source
    contracts: Mapping[str, Contract]
    pipeline: Pipeline
    settings: Settings

    @classmethod
    def open(cls, settings: Settings) -> "Workspace":
        """Read and compile a project; raises `Refused` with everything that is wrong with it."""
        project = Project(settings.project.absolute())
        source = project.declaration()
        streams = {name for made in source.declaration.featureDefinitions for name in made.streams}
        contracts = project.contracts(streams)
        return cls(project, source, contracts, compile_views(source, contracts), settings)

    @property
    def declared_online_url(self) -> str:
        """The online store's URL as it is written, `${NAME}` and all: what may stand in a file."""
        return self.settings.online_store or self.source.declaration.infrastructure.onlineStore

    @property
    def online_url(self) -> str:
        """The online store's URL, with what the environment fills in."""
        return expand(self.declared_online_url, "onlineStore")

    @property
    def offline_root(self) -> Path:
        """The offline store's folder; a relative one is the project's."""
        declared = self.settings.offline_store or self.source.declaration.infrastructure.offlineStore
        return self.project.root / expand(declared, "offlineStore")

    @property
    def kafka(self) -> kafka.Kafka:
        """How to reach Kafka."""
        return kafka.Kafka(self.settings.brokers, self.settings.kafka)

    @property
    def group(self) -> str:
        """The consumer group under which progress is committed."""
        return consumer_group(self.pipeline.project)

    def online(self) -> Online:
        """Open the online store: our own writer for Redis, Feast's for any other. Raises `Unavailable`."""
        if self.online_url.startswith("sqlite:"):
            config = store_config(self.pipeline.project, self.online_url, self.project.registry)
            return FeastOnlineStore(open_store(config), self.pipeline.views)
        store = OnlineStore(self.online_url, self.pipeline.project, self.pipeline.views)
        store.ping()
        return store


class Alignment:
    """Keeps partitions side by side while catching up.

    Reading them one after another would make every row a correction. A partition whose records are ahead of the
    slowest by more than half a minute (of Kafka's own time) waits.
    """

    def __init__(self) -> None:
        self._times_ms: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, key: str, time_ms: int | None) -> None:
        """Note how far a partition was read; None once it is at its end, or was let go."""
        with self._lock:
            if time_ms is None:
                self._times_ms.pop(key, None)
            else:
                self._times_ms[key] = time_ms

    def must_wait(self, key: str) -> bool:
        """Say whether a partition is too far ahead."""
        with self._lock:
            own = self._times_ms.get(key)
            return own is not None and own - min(self._times_ms.values()) > _AHEAD_LIMIT_MS


class Partition(Protocol):
    """A Kafka partition that is read, as `kafka.PartitionReader` does."""

    topic: str
    partition: int
    partitions_count: int
    position: int

    @property
    def end_offset(self) -> int:
        """The offset after the last message that is known to be there."""

    @property
    def at_end(self) -> bool:
        """Whether everything that is known to be there was read."""

    @property
    def well(self) -> bool:
        """Whether no outage is being waited out."""

    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None:
        """Return what is there, or None."""

    def close(self) -> None:
        """Let go."""


class Offsets(Protocol):
    """Where progress is committed, as `kafka.GroupOffsets` does."""

    def commit(self, topic: str, partition: int, offset: int) -> None:
        """Commit an offset."""


@dataclass
class LiveReader:
    """Reads one Kafka partition for the flow, and commits what is durable.

    With `until` it ends there; otherwise it goes on, and says now and then that it is at the partition's end: then time
    may pass though no event comes. `committed` is what earlier runs committed: no commit goes back.
    """

    key: str
    partition: Partition
    offsets: Offsets
    alignment: Alignment
    on_durable: Callable[[], None]
    until: int | None
    committed: int
    now_us: Callable[[], int]
    told_us: int = 0

    def poll(self) -> Poll | None:
        """Return what came since, unless this partition must let others catch up."""
        if self.alignment.must_wait(self.key):
            return None
        begun_us = self.now_us()
        polled = self.partition.poll(_POLL_MESSAGES)
        if polled is None or polled.at_end:
            self.alignment.read(self.key, None)
        else:
            self.alignment.read(self.key, int(polled.timestamps_ms[-1]))
        if self.until is not None:
            return polled
        if polled is None:
            return self._at_end(begun_us)
        return replace(polled, caught_up_us=begun_us) if polled.at_end else polled

    def _at_end(self, time_us: int) -> Poll | None:
        """Say twice a second that nothing more was there; an outage is no such thing."""
        partition = self.partition
        if not (partition.at_end and partition.well) or time_us - self.told_us < _IDLE_US:
            return None
        self.told_us = time_us
        return Poll.of_nothing(
            partition.topic, partition.partition, partition.partitions_count, partition.end_offset, time_us
        )

    def finished(self) -> bool:
        """Say whether the end asked for is reached."""
        return self.until is not None and self.partition.position >= self.until

    def position(self) -> int:
        """Return the offset that is read next."""
        return self.partition.position

    def durable(self, position: int) -> None:
        """Commit: everything before is in every store."""
        if position > self.committed:
            self.offsets.commit(self.partition.topic, self.partition.partition, position)
            self.committed = position
        self.on_durable()

    def close(self) -> None:
        """Let go."""
        self.alignment.read(self.key, None)
        self.partition.close()


@dataclass(frozen=True, slots=True)
class Lag:
    """How many messages of a partition are not yet durable, and how long the oldest has waited; None if not known.

    `age_s` is a lower bound where `is_exact` is false: the message is older than what was seen of the partition.
    """

    messages_count: int | None
    age_s: float | None
    is_exact: bool


class LagCollector(Collector):
    """Lag in messages and seconds, asked of Kafka at each scrape: it does not depend on the flow's being well."""

    def __init__(self, cluster: kafka.Kafka, group: str, topics: Mapping[str, int]) -> None:
        self._offsets = kafka.GroupOffsets(cluster, group)
        self._group, self._topics = group, topics
        self._clocks = {(topic, part): LagClock() for topic, count in topics.items() for part in range(count)}
        self._lock = threading.Lock()

    def lags(self, now_s: float) -> dict[tuple[str, int], Lag]:
        """Return the lag of each (topic, partition); raises `Unavailable`."""
        found: dict[tuple[str, int], Lag] = {}
        with self._lock:
            for topic, count in self._topics.items():
                committed = self._offsets.committed(topic, count)
                for part, end in self._offsets.end_offsets(topic, count).items():
                    clock, done = self._clocks[topic, part], committed[part]
                    clock.observe(end, now_s)
                    done = 0 if done is None and end == 0 else done
                    if done is None:
                        found[topic, part] = Lag(None, None, is_exact=False)
                    else:
                        exact = done >= end or clock.reaches(done)
                        found[topic, part] = Lag(max(0, end - done), clock.lag_s(done, now_s), is_exact=exact)
        return found

    def collect(self) -> Iterator[Metric]:
        """Give Prometheus kafka_exporter's lag metrics, and ours in seconds; none of them if Kafka does not answer."""
        labels = ["consumergroup", "topic", "partition"]
        messages = GaugeMetricFamily("kafka_consumergroup_lag", "Messages not yet durable.", labels=labels)
        sums = GaugeMetricFamily("kafka_consumergroup_lag_sum", "The same, of a topic.", labels=labels[:2])
        seconds = GaugeMetricFamily("freshet_lag_seconds", "Age of the oldest of them.", labels=labels)
        try:
            found = self.lags(time.time())
        except Unavailable as error:
            LOG.warning("%s", error)
            return
        totals = dict.fromkeys(self._topics, 0)
        for (topic, part), lag in found.items():
            if lag.messages_count is not None:
                messages.add_metric([self._group, topic, str(part)], lag.messages_count)
                totals[topic] += lag.messages_count
            if lag.age_s is not None:
                seconds.add_metric([self._group, topic, str(part)], lag.age_s)
        for topic, total in totals.items():
            sums.add_metric([self._group, topic], total)
        yield from (messages, sums, seconds)

    def describe(self) -> Iterator[Metric]:
        """Name nothing in advance: registering must not ask Kafka."""
        return iter(())


@dataclass
class OnlyNew:
    """An offline store that is given only what it does not have.

    A run reads its topics from the beginning, and makes the same versions of the same rows again. What stands there
    from earlier runs is known by (entity, event time, version), events by their offset.
    """

    store: OfflineStore
    pipeline: Pipeline
    rows: dict[str, set[tuple[object, ...]]] = field(default_factory=dict)
    offsets: dict[str, dict[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, store: OfflineStore, pipeline: Pipeline, streams: Mapping[str, Contract]) -> "OnlyNew":
        """Learn what the store has."""
        known = cls(store, pipeline)
        for view in pipeline.views:
            known.rows[view.name] = set(_identities(view, store.read(view.name)))
        for stream in streams:
            name = archive_name(stream)
            newest = store.read(name).group_by(PARTITION).aggregate([(OFFSET, "max")]).to_pylist()
            known.offsets[name] = {row[PARTITION]: row[f"{OFFSET}_max"] for row in newest}
        return known

    def append(self, name: str, table: pa.Table) -> object:
        """Write the rows, or events, that are not there yet."""
        if name in self.offsets:
            known = self.offsets[name]
            pairs = zip(table.column(PARTITION).to_pylist(), table.column(OFFSET).to_pylist(), strict=True)
            fresh = [offset > known.get(partition, -1) for partition, offset in pairs]
        elif self.rows[name]:
            fresh = [key not in self.rows[name] for key in _identities(self.pipeline.plan(name).view, table)]
        else:
            return self.store.append(name, table)
        return self.store.append(name, table.filter(pa.array(fresh, pa.bool_())))


def _identities(view: View, rows: pa.Table) -> Iterator[tuple[object, ...]]:
    columns = [rows.column(name).to_pylist() for name in view.entity_names]
    times = rows.column(EVENT_TIME).cast(pa.int64()).to_pylist()
    return zip(*columns, times, rows.column(VERSION).to_pylist(), strict=True)


@dataclass
class Live:
    """A materializer, ready to run: the dataflow, what ends it, and what watches it."""

    dataflow: Dataflow
    stop: bytewax.Stop
    metrics: Metrics
    lag: LagCollector
    offline: OfflineStore
    workspace: Workspace
    readers: list[LiveReader]

    def run(self) -> None:
        """Run until stopped, or until the end that was asked for. Raises what went wrong first."""
        settings = self.workspace.settings
        server = Server(settings.metrics_address, self.metrics.registry, lambda: not self.stop)
        LOG.info("materializing %s; metrics at http://%s/metrics", self.workspace.pipeline.project, server.address)
        expiry = threading.Thread(target=self._expire, name="archive retention", daemon=True)
        expiry.start()
        try:
            with self.stop.on_signals():
                bytewax.run(self.dataflow, epoch=settings.epoch)
            for reader in self.readers:  # Bytewax closed the last epoch, and asked no source for more
                reader.durable(reader.position())
        finally:
            self.stop.request()
            server.close()
        LOG.info("stopped; every row taken is in both stores")

    def _expire(self) -> None:
        """Now and then drop archived events that are too old."""
        while not self.stop.wait(_EXPIRY):
            oldest = datetime.now(UTC) - self.workspace.settings.archive_retention
            for stream in self.workspace.contracts:
                self.offline.expire(archive_name(stream), EVENT_TIME, oldest)


def prepare(workspace: Workspace) -> OfflineStore:
    """Make the folders of all views and archives; raises `Refused` if they cannot be written."""
    offline = OfflineStore(workspace.offline_root)
    for view in workspace.pipeline.views:
        offline.prepare(view.name, view.row_schema)
    for stream, contract in workspace.contracts.items():
        offline.prepare(archive_name(stream), contract.schema)
    return offline


def open_live(workspace: Workspace, *, until_end: bool = False) -> Live:
    """Connect a project's materializer; with `until_end` it ends once it has read what is in Kafka by now.

    Raises `Refused` and `Unavailable`.
    """
    cluster, contracts = workspace.kafka, workspace.contracts
    counts = {name: kafka.partitions_count(cluster, made.stream.topic) for name, made in contracts.items()}
    online, offline = workspace.online(), prepare(workspace)
    metrics = Metrics(list(contracts), [view.name for view in workspace.pipeline.views])
    lag = LagCollector(cluster, workspace.group, {contracts[name].stream.topic: n for name, n in counts.items()})
    metrics.registry.register(lag)
    offsets = kafka.GroupOffsets(cluster, workspace.group)
    ends = {name: offsets.end_offsets(contracts[name].stream.topic, count) for name, count in counts.items()}
    parts = {source_key(name, part): (name, part) for name, count in counts.items() for part in range(count)}
    committed = {name: offsets.committed(contracts[name].stream.topic, count) for name, count in counts.items()}
    alignment, readers = Alignment(), list[LiveReader]()

    def open_reader(key: str, position: int | None) -> LiveReader:
        stream, part = parts[key]
        topic = contracts[stream].stream.topic
        reader = kafka.PartitionReader(cluster, topic, part, counts[stream], position)
        until = ends[stream][part] if until_end else None
        done = committed[stream][part] or 0
        opened = LiveReader(key, reader, offsets, alignment, metrics.epoch.set_to_current_time, until, done, _now_us)
        readers.append(opened)
        return opened

    edges = Edges(
        keys=list(parts),
        open_reader=open_reader,
        online=online,
        offline=OnlyNew.read(offline, workspace.pipeline, contracts),
        now_us=_now_us,
        metrics=metrics,
        on_rejects=_log_rejects,
        served_before={
            (name, part): offset or 0 for name, known in committed.items() for part, offset in known.items()
        },
    )
    dataflow = build(workspace.pipeline, contracts, edges, workspace.settings.shards)
    return Live(dataflow, edges.stop, metrics, lag, offline, workspace, readers)


def _now_us() -> int:
    return time.time_ns() // 1000


def _log_rejects(stream: str, rejects: Sequence[Reject]) -> None:
    """Log one line a reason, with the first event it befell: garbage must not flood the log."""
    for reason, count in Counter(reject.reason for reject in rejects).items():
        first = next(reject for reject in rejects if reject.reason is reason)
        place = f"{first.topic}/{first.partition}@{first.offset}"
        LOG.warning("rejected %d of %s as %s, the first at %s: %s", count, stream, reason, place, first.detail)


def flow() -> Dataflow:
    """Return the dataflow that the environment describes, for Bytewax's own command."""
    live = open_live(Workspace.open(settings_.read(os.environ)))
    with contextlib.suppress(ValueError):  # signals belong to the main thread; Bytewax's command imports in it
        live.stop.on_signals().__enter__()
    Server(live.workspace.settings.metrics_address, live.metrics.registry, lambda: not live.stop)
    return live.dataflow
