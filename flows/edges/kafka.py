"""Kafka: partitions read by assignment, offsets kept under a group without members, and a producer that checks.

librdkafka's defaults that would lose or split data are set otherwise: a read from an offset that is gone is an error
(not a jump to the end), the partitioner is Java's murmur2, production is idempotent and waits for every report.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka import Producer as RawProducer
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import ValidationError
from pydantic_core import to_json

from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import VERSION_HEADER, Contract, Event
from freshet.schemas.poll import Poll

_ANSWER_LIMIT_S = 10.0
_OUTAGE_LIMIT_S = 60.0
_ELECTING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)
_ELECTION_WAIT_S = 0.1
_GROUPLESS = "freshet-no-group"


@dataclass(frozen=True, slots=True)
class Kafka:
    """How to reach a cluster. `options` are librdkafka's own, with secrets in them, and are never printed."""

    brokers: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def config(self, **more: Any) -> dict[str, Any]:
        """Return a client's configuration; words of `more` join with dots."""
        ours = {name if name.endswith("_cb") else name.replace("_", "."): value for name, value in more.items()}
        return {
            "bootstrap.servers": self.brokers,
            "socket.keepalive.enable": True,
            "log_level": 2,
            **ours,
            **self.options,
        }

    def unavailable(self, error: object) -> Unavailable:
        """Return the exception that says which cluster does not answer, and why."""
        return Unavailable(f'kafka "{self.brokers}" is not available: {error}. Hint: is it running there?')


def partitions_count(kafka: Kafka, topic: str) -> int:
    """Return how many partitions a topic has; raises `Unavailable`, or `Refused` for a topic that is not there."""
    consumer = Consumer(kafka.config(group_id=_GROUPLESS, allow_auto_create_topics=False))
    try:
        metadata = consumer.list_topics(topic, timeout=_ANSWER_LIMIT_S).topics[topic]
    except KafkaException as error:
        raise kafka.unavailable(error.args[0].str()) from error
    finally:
        consumer.close()
    if metadata.error is not None or not metadata.partitions:
        why = metadata.error.str() if metadata.error else "it has no partitions"
        hint = "run `freshet apply`, which makes it"
        raise Refused([Problem("topic", topic, f"cannot be read at {kafka.brokers}", why, hint)])
    return len(metadata.partitions)


def create_topics(kafka: Kafka, topics: Mapping[str, int]) -> dict[str, str]:
    """Make topics with so many partitions; say for each whether it was `created` or `exists`.

    The embedded broker knows no such call; it makes a topic, with its own number of partitions, when asked for it.
    """
    admin = AdminClient(kafka.config())
    try:
        cluster = admin.list_topics(timeout=_ANSWER_LIMIT_S)
    except KafkaException as error:
        raise kafka.unavailable(error.args[0].str()) from error
    done = {topic: "exists" for topic in topics if topic in cluster.topics and cluster.topics[topic].partitions}
    missing = {topic: count for topic, count in topics.items() if topic not in done}
    if str(cluster.cluster_id).startswith("mockCluster"):
        for topic in missing:
            admin.list_topics(topic, timeout=_ANSWER_LIMIT_S)
    elif missing:
        wanted = [NewTopic(topic, count) for topic, count in missing.items()]
        for topic, made in admin.create_topics(wanted, request_timeout=_ANSWER_LIMIT_S).items():
            try:
                made.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise kafka.unavailable(f"it made no topic {topic}: {error.args[0].str()}") from error
    return done | dict.fromkeys(missing, "created")


def _elected(ask: Callable[[], Any]) -> Any:
    """Ask again, for so long, while a partition or group that is new or moves has no leader yet."""
    deadline = time.monotonic() + _ANSWER_LIMIT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _ELECTING or time.monotonic() > deadline:
                raise
        time.sleep(_ELECTION_WAIT_S)


class PartitionReader:
    """Reads one partition, from an offset or from its beginning."""

    def __init__(self, kafka: Kafka, topic: str, partition: int, count: int, start_offset: int | None = None) -> None:
        self.topic, self.partition, self.partitions_count = topic, partition, count
        self._kafka = kafka
        self._errors: list[str] = []
        self._failing_since: float | None = None
        self._consumer = Consumer(
            kafka.config(
                group_id=_GROUPLESS,
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="error",
                fetch_wait_max_ms=10,
                queued_max_messages_kbytes=65536,
                error_cb=lambda error: self._errors.append(error.str()),
            )
        )
        low, high = self._watermarks()
        if start_offset is not None and not low <= start_offset <= high:
            self.close()
            fact = f"partition {partition} no longer has offset {start_offset}"
            hint = "rebuild from the event archive, or accept the gap by starting anew"
            raise Refused([Problem("topic", topic, fact, f"offsets {low} to {high}", hint)])
        self.position = low if start_offset is None else start_offset
        self.end_offset = high
        start = TopicPartition(topic, partition, OFFSET_BEGINNING if start_offset is None else start_offset)
        self._consumer.assign([start])

    def _watermarks(self) -> tuple[int, int]:
        try:
            part = TopicPartition(self.topic, self.partition)
            found = _elected(lambda: self._consumer.get_watermark_offsets(part, timeout=_ANSWER_LIMIT_S))
        except KafkaException as error:
            self.close()
            raise self._kafka.unavailable(self._cause(error.args[0].str())) from error
        assert found is not None, "a watermark query with a limit answers or raises"
        return int(found[0]), int(found[1])

    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None:
        """Return what is there, at most so many messages; None if nothing is.

        What librdkafka retries by itself is waited out for a minute; then, or for others at once, `Unavailable`.
        """
        messages = self._consumer.consume(messages_count, wait_s)
        good: list[Message] = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            else:
                self._raise_or_wait(error)
        if good:
            self._failing_since = None
            self._errors.clear()
        elif self._errors:
            self._waited(self._cause(""))
        self._refresh_end()
        return self._as_poll(good) if good else None

    def _refresh_end(self) -> None:
        _, high = self._consumer.get_watermark_offsets(TopicPartition(self.topic, self.partition), cached=True)
        self.end_offset = max(self.end_offset, int(high))

    def _as_poll(self, messages: Sequence[Message]) -> Poll:
        offsets = np.array([message.offset() for message in messages], np.int64)
        self.position = int(offsets[-1]) + 1
        return Poll(
            topic=self.topic,
            partition=self.partition,
            partitions_count=self.partitions_count,
            values=[message.value() for message in messages],
            keys=[message.key() for message in messages],
            versions=[_version(message.headers()) for message in messages],
            timestamps_ms=np.array([message.timestamp()[1] for message in messages], np.int64),
            offsets=offsets,
            end_offset=max(self.end_offset, self.position),
            at_end=self.at_end,
        )

    @property
    def at_end(self) -> bool:
        """Whether everything that is known to be there was read."""
        return self.position >= self.end_offset

    def _raise_or_wait(self, error: KafkaError) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001  # the client's own name for it
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):  # noqa: SLF001  # as above
            low, high = self._watermarks()
            fact = f"partition {self.partition} no longer has offset {self.position}"
            hint = "rebuild from the event archive, or accept the gap by starting anew"
            raise Refused([Problem("topic", self.topic, fact, f"offsets {low} to {high}", hint)])
        if error.fatal() or code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise self._kafka.unavailable(f"{self.topic}/{self.partition}: {error.str()}")
        self._waited(error.str())

    def _waited(self, cause: str) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since > _OUTAGE_LIMIT_S:
            raise self._kafka.unavailable(self._cause(cause))
        self._consumer.poll(0)

    def _cause(self, otherwise: str) -> str:
        return self._errors[-1] if self._errors else otherwise

    def close(self) -> None:
        """Let go of the partition."""
        self._consumer.close()


def _version(headers: Sequence[tuple[str, bytes | None]] | None) -> bytes | None:
    for name, value in headers or ():
        if name == VERSION_HEADER:
            return value
    return None


class GroupOffsets:
    """The offsets that a group without members has committed, and where the partitions end."""

    def __init__(self, kafka: Kafka, group: str) -> None:
        self._kafka, self.group = kafka, group
        self._consumer = Consumer(kafka.config(group_id=group, enable_auto_commit=False))

    def commit(self, topic: str, partition: int, offset: int) -> None:
        """Commit one offset: everything before it is done with. Raises `Unavailable`."""
        self._asked(
            lambda: self._consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)
        )

    def committed(self, topic: str, count: int) -> dict[int, int | None]:
        """Return each partition's committed offset, None where there is none."""
        wanted = [TopicPartition(topic, partition) for partition in range(count)]
        found = self._asked(lambda: self._consumer.committed(wanted, timeout=_ANSWER_LIMIT_S))
        return {part.partition: None if part.offset == OFFSET_INVALID else part.offset for part in found}

    def end_offsets(self, topic: str, count: int) -> dict[int, int]:
        """Return the offset after each partition's last message."""
        return {partition: self._end_offset(TopicPartition(topic, partition)) for partition in range(count)}

    def _end_offset(self, part: TopicPartition) -> int:
        return int(self._asked(lambda: self._consumer.get_watermark_offsets(part, timeout=_ANSWER_LIMIT_S))[1])

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return _elected(ask)
        except KafkaException as error:
            raise self._kafka.unavailable(error.args[0].str()) from error

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of sent events: how many the cluster has, and what it said of the others."""

    count: int
    failed: tuple[str, ...] = ()


class Producer:
    """Publishes the events of one stream: each is checked against its contract before it leaves, and none is lost.

    ```python
    with Producer(Kafka("localhost:9092"), contract) as producer:
        producer.send({"user": "Ada", …})  # or a contract's model, or JSON; `Refused` if it breaks the contract
    # here every event was confirmed by the cluster; otherwise `Unavailable` was raised
    ```
    """

    def __init__(self, kafka: Kafka, contract: Contract, *, linger_ms: int = 5) -> None:
        self._kafka, self._contract = kafka, contract
        self._headers = [(VERSION_HEADER, str(contract.stream.version).encode())]
        self._delivered = 0
        self._failed: list[str] = []
        self._errors: list[str] = []
        self._producer = RawProducer(
            kafka.config(
                enable_idempotence=True,
                partitioner="murmur2_random",  # Java's: the default would put a key where other producers do not
                linger_ms=linger_ms,
                delivery_timeout_ms=int(_OUTAGE_LIMIT_S * 1000),
                error_cb=lambda error: self._errors.append(error.str()),
            )
        )

    def send(self, event: Event | Mapping[str, object] | bytes | str, *, timestamp_ms: int | None = None) -> None:
        """Send one event; raises `Refused` if it breaks its contract. Its key is the contract's."""
        checked = self._checked(event)
        key = getattr(checked, self._contract.stream.key)
        value = checked.model_dump_json().encode()
        options: dict[str, Any] = {} if timestamp_ms is None else {"timestamp": timestamp_ms}
        while True:
            try:
                self._producer.produce(
                    self._contract.stream.topic,
                    value,
                    None if key is None else str(key).encode(),
                    on_delivery=self._report,
                    headers=self._headers,
                    **options,
                )
            except BufferError:
                self._producer.poll(0.1)  # the queue is full: let reports make room
            else:
                break
        self._producer.poll(0)

    def poll(self, wait_s: float) -> None:
        """Hear reports for so long; also the way to wait between events."""
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            self._producer.poll(left)

    def _checked(self, event: Event | Mapping[str, object] | bytes | str) -> Event:
        model = self._contract.model
        if isinstance(event, model):
            return event
        try:
            return model.model_validate_json(event if isinstance(event, bytes | str) else to_json(event))
        except ValidationError as error:
            name = self._contract.name
            raise Refused(
                Problem(
                    "event", ".".join(map(str, found["loc"])) or name, f"breaks the contract of {name}", found["msg"]
                )
                for found in error.errors(include_url=False)
            ) from error

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._delivered += 1
        else:
            self._failed.append(f"{message.topic()}: {error.str()}")

    def flush(self, limit_s: float = _OUTAGE_LIMIT_S) -> Delivered:
        """Wait until the cluster has confirmed everything sent; raises `Unavailable` if it does not in time."""
        waiting = self._producer.flush(limit_s)
        if waiting:
            raise self._kafka.unavailable(f"{waiting} events are not confirmed: {(self._errors or ['no answer'])[-1]}")
        if self._failed:
            raise self._kafka.unavailable(f"{len(self._failed)} events were refused, the first: {self._failed[0]}")
        return Delivered(self._delivered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()


def topics_of(contracts: Iterable[Contract]) -> dict[str, int]:
    """Return the topics of some streams, and how many partitions each is declared to have."""
    return {contract.stream.topic: contract.stream.partitions for contract in contracts}
