"""Kafka's twin: topics in memory, with the same readers, producers and offsets as `kafka`, for tests without a broker.

One contract suite (tests/edges/test_kafka.py) holds the twin and real brokers to the same behaviour.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Self

import numpy as np

from freshet.flows.edges.kafka import Delivered, encode
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import Contract, Event
from freshet.schemas.poll import Poll


@dataclass(frozen=True, slots=True)
class _Record:
    key: bytes | None
    value: bytes | None
    version: bytes | None
    timestamp_ms: int


@dataclass
class _Partition:
    """Records by offset; those before `low` are gone."""

    records: list[_Record] = field(default_factory=list)
    low: int = 0


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryLog:
    """A cluster in memory. `now_ms` gives records their time where the producer gives none."""

    def __init__(self, now_ms: Callable[[], int] = _wall_ms) -> None:
        self._now_ms = now_ms
        self.well = True
        """Whether it answers; while it does not, readers find nothing, and know why."""
        self._topics: dict[str, list[_Partition]] = {}
        self._committed: dict[tuple[str, str, int], int] = {}

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
        timestamp_ms: int | None = None,
    ) -> int:
        """Write any bytes to a partition, as a producer without a contract does; return their offset."""
        records = self._topics[topic][partition].records
        records.append(_Record(key, value, version, self._now_ms() if timestamp_ms is None else timestamp_ms))
        return len(records) - 1

    def forget_before(self, topic: str, partition: int, offset: int) -> None:
        """Let everything before an offset be gone, as retention does."""
        self._topics[topic][partition].low = offset

    def reader(self, topic: str, partition: int, start_offset: int | None = None) -> "MemoryReader":
        """Open a partition, at an offset or at its beginning."""
        return MemoryReader(self, topic, partition, self._topics[topic], start_offset)

    def producer(self, contract: Contract) -> "MemoryProducer":
        """Open a producer of one stream's events."""
        return MemoryProducer(self, contract)

    def offsets(self, group: str) -> "MemoryOffsets":
        """Open a group's offsets."""
        return MemoryOffsets(self._topics, self._committed, group)


class MemoryReader:
    """Reads one partition, as `kafka.PartitionReader` does."""

    def __init__(
        self, log: MemoryLog, topic: str, partition: int, partitions: list[_Partition], start_offset: int | None
    ) -> None:
        self._log = log
        self.topic, self.partition, self.partitions_count = topic, partition, len(partitions)
        self._read = partitions[partition]
        self.position = self._read.low if start_offset is None else start_offset
        if not self._read.low <= self.position <= self.end_offset:
            self._refuse_position()

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

    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None:
        """Return what is there, at most so many messages; None if nothing is. There is nothing to wait for."""
        del wait_s
        if self.position < self._read.low:
            self._refuse_position()
        records = self._read.records[self.position : self.position + messages_count] if self.well else []
        if not records:
            return None
        offsets = np.arange(self.position, self.position + len(records), dtype=np.int64)
        self.position += len(records)
        return Poll(
            topic=self.topic,
            partition=self.partition,
            partitions_count=self.partitions_count,
            values=[record.value for record in records],
            keys=[record.key for record in records],
            versions=[record.version for record in records],
            timestamps_ms=np.array([record.timestamp_ms for record in records], np.int64),
            offsets=offsets,
            end_offset=self.end_offset,
            at_end=self.at_end,
        )

    def _refuse_position(self) -> NoReturn:
        fact = f"partition {self.partition} does not have the offset {self.position} that is to be read next"
        hint = "rebuild from the event archive, or accept the gap by starting anew"
        have = f"offsets from {self._read.low} up to {self.end_offset}"
        raise Refused([Problem("topic", self.topic, fact, have, hint)])

    def close(self) -> None:
        """Let go of nothing."""


class MemoryOffsets:
    """A group's committed offsets, as `kafka.GroupOffsets` keeps them."""

    def __init__(
        self, topics: dict[str, list[_Partition]], committed: dict[tuple[str, str, int], int], group: str
    ) -> None:
        self._topics, self._committed, self.group = topics, committed, group

    def commit(self, topic: str, partition: int, offset: int) -> None:
        """Commit one offset: everything before it is done with."""
        self._committed[self.group, topic, partition] = offset

    def committed(self, topic: str, count: int) -> dict[int, int | None]:
        """Return each partition's committed offset, None where there is none."""
        return {part: self._committed.get((self.group, topic, part)) for part in range(count)}

    def end_offsets(self, topic: str, count: int) -> dict[int, int]:
        """Return the offset after each partition's last message."""
        return {part: len(self._topics[topic][part].records) for part in range(count)}

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
        topic, version = self._contract.stream.topic, str(self._contract.stream.version).encode()
        partition = partition_of(key, self._log.partitions_count(topic))
        self._log.append(topic, partition, value, key=key, version=version, timestamp_ms=timestamp_ms)
        self._count += 1

    def flush(self) -> Delivered:
        """Say how many events were sent: all of them are there."""
        return Delivered(self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def partition_of(key: bytes, partitions_count: int) -> int:
    """Return the partition to which Kafka's own clients, and ours, send a key.

    Source: `BuiltInPartitioner.partitionForKey` of Apache Kafka: murmur2, its sign bit cleared, modulo the count.
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions_count


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit hash of a key, without sign. Source: `Utils.murmur2` of Apache Kafka.

    >>> murmur2(b"21") - 2**32  # from Kafka's own tests, where it has a sign
    -973932308
    """
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    state = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        state = state * factor & mask ^ word
    if rest := data[whole:]:
        state = (state ^ int.from_bytes(rest, "little")) * factor & mask
    state = (state ^ state >> 13) * factor & mask
    return state ^ state >> 15
