"""Kafka's twin: topics in memory, with the same readers, producers and offsets as `kafka`, for tests without a broker.

One contract suite (tests/edges/test_kafka.py) holds the twin and real brokers to the same behaviour.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Self

import numpy as np

from freshet.flows.edges.kafka import GAP_HINT, Delivered, encode, records_of
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import VERSION_HEADER, Contract, Event
from freshet.schemas.finding import Alarm
from freshet.schemas.poll import Poll
from freshet.schemas.record import NO_TIME_MS, Headers, Record, header, partition_of
from freshet.schemas.rejects import Reject, dead_letter, dead_letter_topic, receipt, redriven
from freshet.schemas.standing import Standing


@dataclass(frozen=True, slots=True)
class _Record:
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


@dataclass
class _Partition:
    """Records by offset; those before `low` are gone."""

    records: list[_Record] = field(default_factory=list)
    low: int = 0


@dataclass(frozen=True, slots=True)
class _Commit:
    offset: int
    at_ms: int


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryLog:
    """A cluster in memory. `now_ms` gives records their time where the producer gives none."""

    def __init__(self, now_ms: Callable[[], int] = _wall_ms) -> None:
        self._now_ms = now_ms
        self.well = True
        """Whether it answers; while it does not, readers find nothing, and know why."""
        self.delivers = True
        """Whether what is there comes; while it is on its way, readers find nothing, and know that it is there."""
        self._topics: dict[str, list[_Partition]] = {}
        self._committed: dict[tuple[str, str, int], _Commit] = {}

    def create_topics(self, topics: Mapping[str, int]) -> dict[str, str]:
        """Make topics with so many partitions; say for each whether it was `created` or `exists`."""
        done = {topic: "exists" if topic in self._topics else "created" for topic in topics}
        for topic, count in topics.items():
            self._topics.setdefault(topic, [_Partition() for _ in range(count)])
        return done

    def partitions_count(self, topic: str) -> int:
        """Return how many partitions a topic has; raises `Refused` for a topic that is not there."""
        if topic not in self._topics:
            hint = "run `freshet apply`, which makes it"
            raise Refused([Problem("topic", topic, "cannot be read in memory", "Unknown topic or partition", hint)])
        return len(self._topics[topic])

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        version: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> int:
        """Write any bytes to a partition, as a producer without a contract does; return their offset."""
        records = self._topics[topic][partition].records
        headers = headers if version is None else (*headers, (VERSION_HEADER, version))
        records.append(_Record(key, value, headers, self._now_ms() if timestamp_ms is None else timestamp_ms))
        return len(records) - 1

    def send(self, record: Record) -> tuple[int, int]:
        """Write a record to the partition of its key, or to the first one; return the partition and the offset."""
        count = self.partitions_count(record.topic)
        partition = 0 if record.key is None else partition_of(record.key, count)
        time_ms = None if record.timestamp_ms < 0 else record.timestamp_ms
        offset = self.append(
            record.topic, partition, record.value, key=record.key, headers=record.headers, timestamp_ms=time_ms
        )
        return partition, offset

    def check_well(self) -> None:
        """Raise `Unavailable` if it does not answer."""
        if not self.well:
            raise Unavailable('kafka "memory" is not available: it is not well')

    def forget_before(self, topic: str, partition: int, offset: int) -> None:
        """Let everything before an offset be gone, as retention does."""
        self._topics[topic][partition].low = offset

    def reader(
        self, topic: str, partition: int, start_offset: int | None = None, *, accept_gap: bool = False
    ) -> "MemoryReader":
        """Open a partition, at an offset or at its beginning."""
        return MemoryReader(self, topic, partition, self._topics[topic], start_offset, accept_gap=accept_gap)

    def producer(self, contract: Contract) -> "MemoryProducer":
        """Open a producer of one stream's events."""
        return MemoryProducer(self, contract)

    def publisher(self) -> "MemoryPublisher":
        """Open what publishes events for many at once."""
        return MemoryPublisher(self)

    def dead_letters(self, group: str) -> "MemoryDeadLetters":
        """Open what keeps the events that a group did not accept."""
        return MemoryDeadLetters(self, group)

    def redriver(self, group: str) -> "MemoryRedriver":
        """Open what sends dead letters again."""
        del group  # nobody else is there
        return MemoryRedriver(self)

    def findings(self, project: str) -> "MemoryFindings":
        """Open what publishes a project's alarms."""
        return MemoryFindings(self, project)

    def canaries(self) -> "MemoryCanaries":
        """Open what publishes canaries."""
        return MemoryCanaries(self)

    def records(self, topic: str) -> Iterator[Poll]:
        """Give all that is in a topic by now, one partition after another."""
        for partition in range(self.partitions_count(topic)):
            polled = self.reader(topic, partition).poll(sys.maxsize)
            yield from [] if polled is None else [polled]

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return each partition's first offset and the one after its last."""
        self.check_well()
        self.partitions_count(topic)
        return {number: (part.low, len(part.records)) for number, part in enumerate(self._topics[topic])}

    def span(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Poll]:
        """Give what a partition still has from an offset up to another, or a bit more."""
        self.check_well()
        reader = self.reader(topic, partition, start, accept_gap=True)
        polled = reader.poll(max(0, stop - reader.position))
        yield from [] if polled is None else [polled]

    def offsets(self, group: str) -> "MemoryOffsets":
        """Open a group's offsets."""
        return MemoryOffsets(self._topics, self._committed, group, self._now_ms)

    def standings(self, group: str) -> "MemoryStandings":
        """Look at a group from outside."""
        return MemoryStandings(self._topics, self._committed, group)


class MemoryReader:
    """Reads one partition, as `partitions.PartitionReader` does."""

    def __init__(
        self,
        log: MemoryLog,
        topic: str,
        partition: int,
        partitions: list[_Partition],
        start_offset: int | None,
        *,
        accept_gap: bool = False,
    ) -> None:
        self._log = log
        self.topic, self.partition, self.partitions_count = topic, partition, len(partitions)
        self._read = partitions[partition]
        self.position = self._read.low if start_offset is None else start_offset
        if not self._read.low <= self.position <= self.end_offset:
            if not accept_gap:
                self._refuse_position()
            self.position = self._read.low

    @property
    def end_offset(self) -> int:
        """The offset after the last message."""
        return len(self._read.records)

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self.position >= self.end_offset

    @property
    def well(self) -> bool:
        """Whether nothing is being waited out."""
        return self._log.well

    @property
    def trouble(self) -> str:
        """What is being waited out; nothing if all is well."""
        return "" if self.well else "kafka in memory is not available"

    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None:
        """Return what is there, at most so many messages; None if nothing is. There is nothing to wait for."""
        del wait_s
        if not self._read.low <= self.position <= self.end_offset:
            self._refuse_position()
        records = self._read.records[self.position : self.position + messages_count]
        if not (self.well and self._log.delivers):
            records = []
        if not records:
            return None
        offsets = np.arange(self.position, self.position + len(records), dtype=np.int64)
        self.position += len(records)
        headers = [[*record.headers] or None for record in records]
        return Poll(
            topic=self.topic,
            partition=self.partition,
            partitions_count=self.partitions_count,
            values=[record.value for record in records],
            keys=[record.key for record in records],
            versions=[header(record.headers, VERSION_HEADER) for record in records],
            timestamps_ms=np.array([record.timestamp_ms for record in records], np.int64),
            offsets=offsets,
            end_offset=self.end_offset,
            at_end=self.at_end,
            headers=headers if any(headers) else None,
        )

    def _refuse_position(self) -> NoReturn:
        fact = f"partition {self.partition} does not have the offset {self.position} that is to be read next"
        have = f"offsets from {self._read.low} up to {self.end_offset}"
        raise Refused([Problem("topic", self.topic, fact, have, GAP_HINT)])

    def close(self) -> None:
        """Let go of nothing."""


class MemoryOffsets:
    """A group's committed offsets, as `kafka.GroupOffsets` keeps them."""

    def __init__(
        self,
        topics: dict[str, list[_Partition]],
        committed: dict[tuple[str, str, int], _Commit],
        group: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._topics, self._committed, self.group, self._now_ms = topics, committed, group, now_ms

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit offsets by topic and partition: everything before is done with."""
        for (topic, partition), offset in offsets.items():
            self._committed[self.group, topic, partition] = _Commit(offset, self._now_ms())

    def committed(self, topic: str, count: int) -> dict[int, int | None]:
        """Return each partition's committed offset, None where there is none."""
        found = {part: self._committed.get((self.group, topic, part)) for part in range(count)}
        return {part: None if commit is None else commit.offset for part, commit in found.items()}

    def end_offsets(self, topic: str, count: int) -> dict[int, int]:
        """Return the offset after each partition's last message."""
        return {part: len(self._topics[topic][part].records) for part in range(count)}

    def close(self) -> None:
        """Let go of nothing."""


class MemoryStandings:
    """Where a group stands, as `standings.Standings` asks."""

    def __init__(
        self, topics: dict[str, list[_Partition]], committed: dict[tuple[str, str, int], _Commit], group: str
    ) -> None:
        self._topics, self._committed, self.group = topics, committed, group

    def of(self, topic: str, count: int) -> dict[int, Standing]:
        """Return the standing of each of a topic's partitions."""
        found = {}
        for part, kept in enumerate(self._topics[topic][:count]):
            commit = self._committed.get((self.group, topic, part))
            committed = (None, None) if commit is None else (commit.offset, commit.at_ms / 1000)
            found[part] = Standing(kept.low, len(kept.records), *committed)
        return found

    def written_at_s(self, topic: str, partition: int, offset: int) -> float | None:
        """Return when a message was written, or the next that is there; None if there is none."""
        kept = self._topics[topic][partition]
        there = kept.records[max(offset, kept.low) :]
        return there[0].timestamp_ms / 1000 if there else None

    def newest_at_s(self, topic: str, ends: Mapping[int, int]) -> dict[int, float | None]:
        """Return when each partition's newest message was written, by the time that it carries; None if unknown."""
        there = {part: self._topics[topic][part] for part in ends}
        newest_ms = {
            part: max((one.timestamp_ms for one in kept.records[kept.low :]), default=0) for part, kept in there.items()
        }
        return {part: at_ms / 1000 if at_ms > 0 else None for part, at_ms in newest_ms.items()}

    def retention_s(self, topic: str) -> float | None:
        """Return None: all is kept for ever."""
        assert topic in self._topics, topic
        return None

    def close(self) -> None:
        """Let go of nothing."""


class MemoryProducer:
    """Publishes the events of one stream, as `kafka.Producer` does: checked before they leave, and keyed alike."""

    def __init__(self, log: MemoryLog, contract: Contract) -> None:
        self._log, self._contract = log, contract
        self._count = 0

    def send(self, event: Event | Mapping[str, object] | bytes | str, *, timestamp_ms: int | None = None) -> None:
        """Send one event; raises `Refused` if it breaks its contract."""
        key, value = encode(self._contract, event)
        headers = ((VERSION_HEADER, str(self._contract.stream.version).encode()),)
        time_ms = NO_TIME_MS if timestamp_ms is None else timestamp_ms
        self._log.send(Record(self._contract.stream.topic, key, value, headers, time_ms))
        self._count += 1

    def flush(self) -> Delivered:
        """Say how many events were sent: all of them are there."""
        return Delivered(self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


class MemoryPublisher:
    """The twin of `Publisher`, in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def publish(self, contract: Contract, events: Sequence[bytes]) -> list[tuple[int, int]]:
        """Publish events, JSON each; return where each is. Raises `Refused`, and then none was sent; `Unavailable`."""
        records = records_of(contract, events)
        self._log.check_well()
        return [self._log.send(record) for record in records]

    def close(self) -> None:
        """Do nothing."""


class MemoryDeadLetters:
    """Keeps rejects, as `dead_letters.DeadLetters` does; what is not flushed yet is not there."""

    def __init__(self, log: MemoryLog, group: str) -> None:
        self._log, self._group = log, group
        self._waiting: list[Record] = []

    def put(self, rejects: Sequence[Reject]) -> None:
        """Send rejects to the dead letters of their topics."""
        for reject in rejects:
            self._log.partitions_count(dead_letter_topic(reject.topic))
            self._waiting.append(dead_letter(reject, self._group))

    def flush(self) -> None:
        """Return once all are there; raises `Unavailable` if the cluster is not well."""
        if self._waiting:
            self._log.check_well()
        for record in self._waiting:
            self._log.send(record)
        self._waiting = []


class MemoryRedriver:
    """Sends dead letters again, as `dead_letters.Redriver` does."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def send(self, rejects: Sequence[Reject]) -> None:
        """Send events to where they came from, each with its receipt: all of them or none."""
        self._log.check_well()
        for reject in rejects:
            for record in (redriven(reject), receipt(reject)):
                self._log.send(record)

    def close(self) -> None:
        """Let go of nothing."""


class MemoryFindings:
    """Publishes alarms, as `findings.Findings` does."""

    def __init__(self, log: MemoryLog, project: str) -> None:
        self._log, self._project = log, project

    def deliver(self, alarms: Sequence[Alarm]) -> None:
        """Publish all; raises `Unavailable` if the cluster is not well, `Refused` for a topic that is not there."""
        self._log.check_well()
        for alarm in alarms:
            self._log.send(alarm.as_record(self._project))


class MemoryCanaries:
    """Publishes canaries, as `canaries.CanaryWriter` does."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def publish(self, records: Sequence[Record], delivered: Callable[[int, int, int], object]) -> None:
        """Publish all; raises `Unavailable` if the cluster is not well."""
        self._log.check_well()
        for index, record in enumerate(records):
            delivered(index, *self._log.send(record))
