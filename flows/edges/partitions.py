"""Kafka's partitions as they are read: any number by one client, each from an offset of its own."""

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from freshet.flows.edges.kafka import GAP_HINT, GROUPLESS, Client, Kafka, partitions_count, with_cause
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import VERSION_HEADER
from freshet.schemas.poll import Poll
from freshet.schemas.record import header

LOG = logging.getLogger("freshet")

# What comes in a few milliseconds is fetched together: otherwise nearly each event is asked for by itself, and by this
# a broker is as busy as by all else. The embedded broker answers an empty fetch no sooner than it may. The client has
# one queue for all partitions: more is fetched while little is in it, so that none waits long behind others, and soon,
# not after librdkafka's second. A broker that has just started may not know its topics yet: librdkafka believes it, and
# asks again by itself only after five minutes.
_FETCH = {
    "fetch.wait.max.ms": 5,
    "fetch.min.bytes": 65536,
    "fetch.queue.backoff.ms": 10,
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 65536,
    "topic.metadata.refresh.interval.ms": 5000,
}
_OFFSET_GONE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)  # noqa: SLF001  # the client's own name
_PROBE_LIMIT_S = 0.5
_PROBE_PAUSE_S_MAX = 5.0
_QUIET_S = 10.0
"""After so long without a word about a partition, the cluster is asked."""
_RENEWAL_S = 10.0
"""So long a client may be at a loss, from its making on, before it is made anew."""
_STALL_S = 30.0
"""So long messages that are there may fail to come before the client is made anew."""
_READ_MESSAGES, _READ_WAIT_S = 2000, 0.05


class Partitions:
    """All the partitions that a process reads, by one client: it is made with the first, and closed with the last.

    What a client costs, its threads, its connections and its fetches, it costs once. Workers may share it: whatever is
    done with it is done under its lock. Messages of partitions that are not asked for wait here: `waiting_max` of
    them, and `waiting_bytes_max`, of which each partition has an equal share. One that has more waiting is fetched no
    further, so what waits takes no more memory however many partitions there are.
    """

    def __init__(self, kafka: Kafka, *, waiting_max: int = 160_000, waiting_bytes_max: int = 1 << 27) -> None:
        self.kafka, self.lock = kafka, threading.RLock()
        self._waiting_max, self._waiting_bytes_max = waiting_max, waiting_bytes_max
        self._readers: dict[tuple[str, int], PartitionReader] = {}
        self._client: Client | None = None

    def open(
        self, topic: str, partition: int, count: int, start_offset: int | None = None, *, accept_gap: bool = False
    ) -> "PartitionReader":
        """Begin to read a partition, one of `count`, from an offset or from its beginning.

        With `accept_gap` a start that is gone is moved to the first offset that is there; otherwise it is `Refused`.
        Raises `Unavailable`.
        """
        assert (topic, partition) not in self._readers, f"{topic}/{partition} is read already"
        with self.lock:
            if self._client is None:
                self._client = Client(
                    self.kafka,
                    _FETCH,
                    self._begin,
                    group_id=GROUPLESS,
                    enable_auto_offset_store=False,
                    auto_offset_reset="error",
                    enable_partition_eof=True,
                )
            try:
                low, high = self._client.watermarks(topic, partition)
                position = low if start_offset is None else start_offset
                if not low <= position <= high:
                    if not accept_gap:
                        _refuse_position(topic, partition, position, low, high)
                    position = start_offset = low
                first = OFFSET_BEGINNING if start_offset is None else start_offset
                reader = PartitionReader(self, self._client, TopicPartition(topic, partition, first), count)
                reader.position, reader.end_offset = position, high
                self._client.consumer.incremental_assign([reader.place])
                self._readers[topic, partition] = reader
            finally:
                self._close_unused()
            return reader

    def _begin(self, consumer: Consumer) -> None:
        """Have a new consumer read on where each reader is."""
        for reader in self._readers.values():
            reader.begin()
        consumer.assign([reader.place for reader in self._readers.values()])

    def pull(self, reader: "PartitionReader", messages_count: int, wait_s: float) -> None:
        """Hand out what is there, until a reader has something of its own or nothing is left."""
        while not reader.has_waiting:
            came = reader.client.consumer.consume(messages_count, wait_s)
            for (topic, partition), some in itertools.groupby(came, _place_of):
                messages = list(some)
                for whose in self._whose(topic, partition):
                    whose.give(messages)
            if len(came) < messages_count:
                return

    def _whose(self, topic: str | None, partition: int | None) -> Iterable["PartitionReader"]:
        """Return for whom a message is; an error that is of no partition is for all of its topic, or for all."""
        if topic is not None and partition is not None:
            reader = self._readers.get((topic, partition))
            return [] if reader is None else [reader]
        return [reader for reader in self._readers.values() if topic in {None, reader.topic}]

    def is_much(self, messages_count: int, bytes_count: int) -> bool:
        """Say whether of one partition more waits than its share."""
        parts = len(self._readers)
        return messages_count * parts > self._waiting_max or bytes_count * parts > self._waiting_bytes_max

    def begin_alone(self, reader: "PartitionReader") -> None:
        """Have the client begin one partition again."""
        self._unassign(reader)
        reader.begin()
        reader.client.consumer.incremental_assign([reader.place])

    def are_others_well(self, reader: "PartitionReader", since: float) -> bool:
        """Say whether any other partition was read well after an instant of the monotonic clock."""
        return any(other.well_at > since for other in self._readers.values() if other is not reader)

    def release(self, reader: "PartitionReader") -> None:
        """Read a partition no more; releasing it twice is releasing it once."""
        with self.lock:
            if self._readers.get((reader.topic, reader.partition)) is reader:
                del self._readers[reader.topic, reader.partition]
                try:
                    if self._readers:
                        self._unassign(reader)
                finally:
                    self._close_unused()

    @staticmethod
    def _unassign(reader: "PartitionReader") -> None:
        reader.client.consumer.resume([reader.place])  # librdkafka remembers a pause beyond an assignment
        reader.client.consumer.incremental_unassign([reader.place])

    def _close_unused(self) -> None:
        if not self._readers and self._client is not None:
            self._client.consumer.close()
            self._client = None


def _place_of(message: Message) -> tuple[str | None, int | None]:
    return message.topic(), message.partition()


class PartitionReader:
    """Reads one partition, as `Partitions.open` makes it.

    `position` is the offset that is read next, `end_offset` the one after the last message that is known to be there.

    librdkafka's client is not trusted to say that it is cut off: where it is quiet the cluster is asked, and a client
    that stays at a loss, or to which messages that are there do not come, is made anew.
    """

    def __init__(self, partitions: Partitions, client: Client, place: TopicPartition, count: int) -> None:
        self.topic, self.partition, self.partitions_count = place.topic, place.partition, count
        self.position = self.end_offset = 0
        self.client, self.is_paused = client, False
        self._partitions, self._first = partitions, place.offset
        self._waiting, self._waiting_bytes, self._is_end_known = list[Message](), 0, True
        self.well_at = self._begun_at = self._came_at = time.monotonic()
        self._failing_since: float | None = None
        self._began_alone = False
        self._probe_at, self._said = 0.0, ""

    @property
    def place(self) -> TopicPartition:
        """The partition, and where a client goes on with it."""
        return TopicPartition(self.topic, self.partition, self._first)

    def begin(self) -> None:
        """Learn that the client begins to fetch again, at `place`: what waited here comes again, and its end."""
        self._waiting, self._waiting_bytes, self.is_paused, self._is_end_known = [], 0, False, False
        self._begun_at = time.monotonic()

    @property
    def has_waiting(self) -> bool:
        """Whether something came that was not taken yet."""
        return bool(self._waiting)

    def give(self, messages: Sequence[Message]) -> None:
        """Have messages wait here, in order; of a partition of which much does nothing more is fetched for a while."""
        self._waiting += messages
        self._waiting_bytes += sum(map(len, messages))
        self._is_end_known = True  # the broker's answer that brought them says it
        is_much = self._partitions.is_much(len(self._waiting), self._waiting_bytes)
        if is_much and not self.is_paused:  # what the client has of it beyond these is dropped, and fetched again
            self.client.consumer.pause([self.place])
            self.is_paused = True

    def _taken(self, messages_count: int) -> Sequence[Message]:
        """Take what waits, at most so many; once nothing does, more is fetched."""
        taken, self._waiting = self._waiting[:messages_count], self._waiting[messages_count:]
        self._waiting_bytes = sum(map(len, self._waiting))  # mostly of none
        if self.is_paused and not self._waiting:
            self.client.consumer.resume([self.place])
            self.begin()
        return taken

    @property
    def at_end(self) -> bool:
        """Whether everything was read that is known to be there, which is not known while it is not fetched."""
        return self._is_end_known and not self._waiting and self.position >= self.end_offset

    @property
    def well(self) -> bool:
        """Whether nothing that the cluster said, or left unsaid, is being waited out."""
        return self._failing_since is None

    @property
    def trouble(self) -> str:
        """What is being waited out; nothing if all is well."""
        said = self._cause or "no answer"
        return "" if self.well else f'kafka "{self._partitions.kafka.brokers}" is not available: {said}'

    @property
    def _cause(self) -> str:
        """What the client said, since all was well here, that is not: of the partition, or of the brokers."""
        return self._said or self.client.heard.since(self.well_at)

    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None:
        """Return what is there, at most so many messages; None if nothing is.

        An outage is waited out as long as the cluster's patience says, then raised as `Unavailable`; a position that
        is no longer in the partition is `Refused`.
        """
        with self._partitions.lock:
            self._partitions.pull(self, messages_count, wait_s)
            good: list[Message] = []
            for message in self._taken(messages_count):
                error = message.error()
                if error is None:
                    good.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  # the client's own name for it
                    self._advance(message.offset())  # past a transaction's markers, which are no message
                else:
                    self._heed(error)
            if good:
                self._be_well()
            elif self._cause or not self.well or time.monotonic() - self.well_at > _QUIET_S:
                self._probe()
            _, high = self.client.consumer.get_watermark_offsets(self.place, cached=True)
            self.end_offset = max(self.end_offset, int(high))
            return self._as_poll(good) if good else None

    def _as_poll(self, messages: Sequence[Message]) -> Poll:
        offsets = np.array([message.offset() for message in messages], np.int64)
        self._advance(int(offsets[-1]) + 1)
        self.end_offset = max(self.end_offset, self.position)
        headers = [message.headers() for message in messages]
        some = any(headers)  # most producers send none
        return Poll(
            topic=self.topic,
            partition=self.partition,
            partitions_count=self.partitions_count,
            values=[message.value() for message in messages],
            keys=[message.key() for message in messages],
            versions=[header(found, VERSION_HEADER) for found in headers] if some else [None] * len(messages),
            timestamps_ms=np.array([message.timestamp()[1] for message in messages], np.int64),
            offsets=offsets,
            end_offset=self.end_offset,
            at_end=self.at_end,
            headers=headers if some else None,
        )

    def _heed(self, error: KafkaError) -> None:
        """Raise what waiting does not mend; remember the rest, which librdkafka tries again by itself."""
        if error.code() in _OFFSET_GONE:
            low, high = self.client.watermarks(self.topic, self.partition)
            _refuse_position(self.topic, self.partition, self.position, low, high)
        if error.fatal() or error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise self._partitions.kafka.unavailable(f"{self.topic}/{self.partition}: {error.str()}")
        self._said = error.str()

    def _probe(self) -> None:
        """Ask whether all is well: an idle partition brings no message to tell by, and librdkafka may not know."""
        now, kafka = time.monotonic(), self._partitions.kafka
        if self.well and self._cause:
            self._failing_since = now
        if now < self._probe_at:
            return
        limit_s = min(_PROBE_LIMIT_S, kafka.patience_s)
        try:
            _, high = self.client.consumer.get_watermark_offsets(self.place, timeout=limit_s)
        except KafkaException as error:
            since = self._failing_since = now if self._failing_since is None else self._failing_since
            if now - since > kafka.patience_s:
                said = with_cause(error, self._cause)
                raise kafka.unavailable(f"{self.topic}/{self.partition}: {said}") from error
            self._probe_at = now + min(now - since, _PROBE_PAUSE_S_MAX)  # twice as long each time
            if now - max(since, self._begun_at) > _RENEWAL_S:
                self._begin_again(since)
        else:
            self._be_well()
            self.end_offset, self._is_end_known = max(self.end_offset, int(high)), True
            if self.at_end:
                self._came_at = now
            elif now - max(self._came_at, self._begun_at) > _STALL_S:
                self._begin_again(self._came_at)

    def _be_well(self) -> None:
        self._failing_since, self._said, self.well_at = None, "", time.monotonic()

    def _begin_again(self, since: float) -> None:
        """Read on as anew: alone, the first time, if others were read well since; otherwise by a new client."""
        LOG.warning("%s/%d: its client is at a loss, and begins anew at %d", self.topic, self.partition, self.position)
        self._began_alone = not self._began_alone and self._partitions.are_others_well(self, since)
        if self._began_alone:
            self._partitions.begin_alone(self)
        else:
            self.client.renew()

    def _advance(self, position: int) -> None:
        """Note how far was read."""
        self.position = self._first = max(self.position, position)
        self._came_at, self._began_alone = time.monotonic(), False

    def close(self) -> None:
        """Let go of the partition."""
        self._partitions.release(self)


def _refuse_position(topic: str, partition: int, position: int, low: int, high: int) -> NoReturn:
    """Raise that a position is not among the offsets that are there."""
    fact = f"partition {partition} does not have the offset {position} that is to be read next"
    raise Refused([Problem("topic", topic, fact, f"offsets from {low} up to {high}", GAP_HINT)])


def records(kafka: Kafka, topic: str) -> Iterator[Poll]:
    """Give all that is in a topic by now, one partition after another.

    Raises `Unavailable`, and `Refused` for a topic that is not there.
    """
    count = partitions_count(kafka, topic)
    for partition in range(count):
        yield from _read(Partitions(kafka).open(topic, partition, count), None)


@dataclass(frozen=True, slots=True)
class Log:
    """A cluster's messages, as whoever looks for some of them reads them."""

    kafka: Kafka

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return, by partition, the offset of the first message that is there and the one after the last.

        Raises `Unavailable`, and `Refused` for a topic that is not there.
        """
        client = Client(self.kafka, group_id=GROUPLESS, allow_auto_create_topics=False)
        try:
            count = client.partitions_count(topic)
            return {partition: client.watermarks(topic, partition) for partition in range(count)}
        finally:
            client.consumer.close()

    def span(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Poll]:
        """Give what a partition still has from an offset up to another, which is not after its end, or a bit more.

        Raises `Unavailable`.
        """
        return _read(Partitions(self.kafka).open(topic, partition, 0, start, accept_gap=True), stop)


def _read(reader: PartitionReader, stop: int | None) -> Iterator[Poll]:
    """Give what a reader finds up to an offset, or to where its partition ends now; then let go of it."""
    until = reader.end_offset if stop is None else stop
    try:
        while reader.position < until:
            # The client waits for as many as it is asked for.
            polled = reader.poll(min(_READ_MESSAGES, until - reader.position), _READ_WAIT_S)
            yield from [] if polled is None else [polled]
    finally:
        reader.close()
