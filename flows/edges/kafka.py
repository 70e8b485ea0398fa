"""Kafka: how it is reached, offsets kept under a group without members, and a producer that checks; `partitions` reads.

librdkafka's defaults that would lose or split data are set otherwise: a read from an offset that is gone is an error
(not a jump to the end), the partitioner is Java's murmur2, production is idempotent and waits for every report.
"""

import contextlib
import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from confluent_kafka import (
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
from pydantic_core import PydanticSerializationError, to_json

from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import VERSION_HEADER, Contract, Event, misfit
from freshet.schemas.record import NO_TIME_MS, Record
from freshet.schemas.rejects import dead_letter_topic
from freshet.schemas.undelivered import named

_ANSWER_LIMIT_S = 10.0
_ASK_AGAIN_S = 0.05
_OVERDUE_S = 5.0
"""So much later than it should librdkafka may give up a message: it looks for such once a second."""
GROUPLESS = "freshet-no-group"
_HINTS = {
    r"SASL authentication|Authentication failed": "user and password are FRESHET_KAFKA_SASL_USERNAME and …_PASSWORD",
    "certificate verify failed": "FRESHET_KAFKA_SSL_CA_LOCATION names the file of the CA that signed its certificate",
    "authorization failed": "its ACLs must let this user describe, read and write",
    "Unknown topic or partition": "run `freshet apply`, which makes it",
    "no leader for": "a broker of the cluster is down or cut off: start it, or mend the network",
    r"security\.protocol|SSL handshake|ApiVersionRequest": "FRESHET_KAFKA_SECURITY_PROTOCOL is what it speaks there",
}
"""What to look at, by what librdkafka says."""
_ELECTING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)
_PARTITIONS_MAX = 100_000  # librdkafka's own limit
GAP_HINT = (
    "what is between is lost to Freshet; to go on without it, run `freshet run materializer --accept-gap`,"
    " which reads on at the first offset that is there"
)
"""What to do when a resume offset is gone."""
LARGER = "raise message.max.bytes, here and at the broker"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kafka:
    """How to reach a cluster.

    `options` are librdkafka's own, with secrets in them, and are never printed. They tune; what keeps data from being
    lost or split, a client sets itself. `patience_s` is how long an outage is waited out.
    """

    brokers: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    patience_s: float = 60.0

    def config(self, tuned: Mapping[str, Any] | None = None, **fixed: Any) -> dict[str, Any]:
        """Return a client's configuration: options replace what is `tuned`, and nothing that is `fixed`.

        Words of `fixed` join with dots.
        """
        ours = {name if name.endswith("_cb") else name.replace("_", "."): value for name, value in fixed.items()}
        quiet = {"socket.keepalive.enable": True, "log_level": 2}
        return {**quiet, **(tuned or {}), **self.options, **ours, "bootstrap.servers": self.brokers}

    def client(self, kind: Callable[[dict[str, Any]], T], tuned: Mapping[str, Any] | None = None, **fixed: Any) -> T:
        """Make a client of the given kind, as `config` says; raises `Refused` for options that librdkafka refuses."""
        try:
            return kind(self.config(tuned, **fixed))
        except KafkaException as error:
            hint = "they are librdkafka's: sasl.password is FRESHET_KAFKA_SASL_PASSWORD, or stands below [kafka]"
            said = error.args[0].str()
            raise Refused([Problem("settings", "FRESHET_KAFKA_*", "cannot be used", said, hint)]) from error

    @property
    def answer_limit_s(self) -> float:
        """How long one question may wait for its answer."""
        return min(_ANSWER_LIMIT_S, self.patience_s)

    def unavailable(self, error: object) -> Unavailable:
        """Return the exception that says which cluster does not answer, and why."""
        said = str(error)
        hint = next((hint for words, hint in _HINTS.items() if re.search(words, said)), "is it running there?")
        return Unavailable(f'kafka "{self.brokers}" is not available: {said}. Hint: {hint}')


class Heard:
    """What a client said in passing since all was well, and when: the root cause behind a bare `timed out`."""

    def __init__(self) -> None:
        self.newest, self._at = "", 0.0

    def __call__(self, error: KafkaError) -> None:
        """Note an error, as librdkafka's callback."""
        # That all brokers are down follows the reason for which the last one is, and says less.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self.newest:  # noqa: SLF001  # the client's own name
            self.newest = error.str()
        self._at = time.monotonic()

    def since(self, at: float) -> str:
        """Return what was said last, if that was after an instant of the monotonic clock."""
        return self.newest if self._at > at else ""

    def behind(self, error: KafkaException) -> str:
        """Return an error with its cause."""
        return with_cause(error, self.newest)


def with_cause(error: KafkaException, cause: str) -> str:
    """Return what an error says, and its cause where one is known."""
    return f"{error.args[0].str()} ({cause})" if cause else str(error.args[0].str())


class Client:
    """A consumer that is asked questions; a question without an answer is `Unavailable`, with the root cause.

    `begin` is given each consumer that takes the place of another.
    """

    def __init__(
        self,
        kafka: Kafka,
        tuned: Mapping[str, Any] | None = None,
        begin: Callable[[Consumer], None] = lambda _: None,
        **fixed: Any,
    ) -> None:
        self.kafka, self.heard = kafka, Heard()
        self._tuned, self._begin, self._fixed = tuned, begin, fixed
        self.consumer = self._made()

    def _made(self) -> Consumer:
        return self.kafka.client(Consumer, self._tuned, error_cb=self.heard, enable_auto_commit=False, **self._fixed)

    def renew(self) -> None:
        """Make the client anew.

        One that is told by a broker that starts or stops that the cluster has no brokers drops every one it knew, and
        then connects to none any more. Source: https://github.com/confluentinc/librdkafka/issues/5301.
        """
        self.consumer.close()
        self.consumer = self._made()
        self._begin(self.consumer)

    def ask(self, question: Callable[[Consumer, float], T]) -> T:
        """Return the answer; the question is given the consumer and a limit in seconds.

        It is asked again, up to that limit, while a partition or group that is new or moves has no leader. After a
        failure the next question is asked by a new client.
        """
        deadline = time.monotonic() + self.kafka.answer_limit_s
        while True:
            try:
                return question(self.consumer, self.kafka.answer_limit_s)
            except KafkaException as error:
                if error.args[0].code() not in _ELECTING or time.monotonic() > deadline:
                    self.consumer.poll(0)  # the way to hear what was said in passing
                    self.renew()
                    raise self.kafka.unavailable(self.heard.behind(error)) from error
            time.sleep(_ASK_AGAIN_S)

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the offset of a partition's first message and the one after its last."""
        part = TopicPartition(topic, partition)
        low, high = self.ask(lambda consumer, limit_s: consumer.get_watermark_offsets(part, timeout=limit_s))
        return int(low), int(high)

    def partitions_count(self, topic: str) -> int:
        """Return how many partitions a topic has; raises `Refused` for one that is not there. The client makes none."""
        metadata = self.ask(lambda consumer, limit_s: consumer.list_topics(topic, timeout=limit_s)).topics[topic]
        if metadata.error is not None or not metadata.partitions:
            why = metadata.error.str() if metadata.error else "it has no partitions"
            hint = "run `freshet apply`, which makes it"
            raise Refused([Problem("topic", topic, f"cannot be read at {self.kafka.brokers}", why, hint)])
        return len(metadata.partitions)


def partitions_count(kafka: Kafka, topic: str) -> int:
    """Return how many partitions a topic has; raises `Unavailable`, or `Refused` for a topic that is not there."""
    client = Client(kafka, group_id=GROUPLESS, allow_auto_create_topics=False)
    try:
        return client.partitions_count(topic)
    finally:
        client.consumer.close()


class PartitionCounts:
    """How many partitions topics have, asked again after `every_s`: by then there may be more."""

    def __init__(self, kafka: Kafka, every_s: float = 30.0) -> None:
        self._kafka, self._every_s = kafka, every_s
        self._known: dict[str, tuple[float, int]] = {}

    def of(self, topic: str) -> int:
        """Return how many a topic has; raises `Unavailable`, or `Refused` for a topic that is not there."""
        now_s = time.monotonic()
        asked_s, count = self._known.get(topic, (-math.inf, 0))
        if now_s - asked_s >= self._every_s:
            count = partitions_count(self._kafka, topic)
            self._known[topic] = now_s, count
        return count


def create_topics(kafka: Kafka, topics: Mapping[str, int]) -> dict[str, str]:
    """Make topics with so many partitions; say for each whether it was `created` or `exists`.

    Each can be used once this returns. Raises `Refused` for a name or number that Kafka does not take, and
    `Unavailable`. The embedded broker knows no such call; it makes a topic, with its own number of partitions, when
    asked for it.
    """
    heard = Heard()
    admin = kafka.client(AdminClient, error_cb=heard)
    try:
        cluster = admin.list_topics(timeout=kafka.answer_limit_s)
        there = {topic for topic in topics if topic in cluster.topics and cluster.topics[topic].partitions}
        missing = {topic: count for topic, count in topics.items() if topic not in there}
        if missing and not str(cluster.cluster_id).startswith("mockCluster"):
            _request_topics(admin, missing, kafka.answer_limit_s)
        for topic, count in missing.items():
            _await_topic(kafka, admin, topic, count)
    except KafkaException as error:
        admin.poll(0)
        raise kafka.unavailable(heard.behind(error)) from error
    return {topic: "exists" if topic in there else "created" for topic in topics}


def _request_topics(admin: AdminClient, topics: Mapping[str, int], limit_s: float) -> None:
    problems = [
        Problem("topic", topic, "cannot be made", f"{count} partitions", f"write 1 to {_PARTITIONS_MAX} in its stream")
        for topic, count in topics.items()
        if not 1 <= count <= _PARTITIONS_MAX
    ]
    if problems:
        raise Refused(problems)
    wanted = [NewTopic(topic, count) for topic, count in topics.items()]
    for topic, made in admin.create_topics(wanted, request_timeout=limit_s).items():
        try:
            made.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_EXCEPTION:
                hint = "write a name of letters, digits, dots, underscores and hyphens in its stream"
                problems.append(Problem("topic", topic, "cannot be made", error.args[0].str(), hint))
            elif error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    if problems:
        raise Refused(problems)


def _await_topic(kafka: Kafka, admin: AdminClient, topic: str, count: int) -> None:
    """Wait until the brokers know a new topic and who leads it; asking is what makes the embedded broker make it."""
    deadline = time.monotonic() + kafka.answer_limit_s
    while True:
        found = admin.list_topics(topic, timeout=kafka.answer_limit_s).topics[topic]
        if found.partitions and all(part.leader >= 0 for part in found.partitions.values()):
            return
        if time.monotonic() > deadline:
            raise kafka.unavailable(f"topic {topic} with {count} partitions was made, but has no leader")
        time.sleep(_ASK_AGAIN_S)


class GroupOffsets:
    """The offsets that a group without members has committed, and where the partitions end."""

    def __init__(self, kafka: Kafka, group: str) -> None:
        self.group = group
        self._client = Client(kafka, group_id=group)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit offsets by topic and partition: everything before is done with. Raises `Unavailable`.

        Kafka keeps when, as the commit's metadata: otherwise a commit of the same offset would not be seen.
        """
        now_ms = str(time.time_ns() // 1_000_000)
        parts = [TopicPartition(topic, part, offset, now_ms) for (topic, part), offset in offsets.items()]
        self._checked(self._client.ask(lambda consumer, _: consumer.commit(offsets=parts, asynchronous=False)))

    def committed(self, topic: str, count: int) -> dict[int, int | None]:
        """Return each partition's committed offset, None where there is none."""
        wanted = [TopicPartition(topic, partition) for partition in range(count)]
        found = self._checked(self._client.ask(lambda consumer, limit_s: consumer.committed(wanted, timeout=limit_s)))
        return {part.partition: None if part.offset == OFFSET_INVALID else part.offset for part in found}

    def end_offsets(self, topic: str, count: int) -> dict[int, int]:
        """Return the offset after each partition's last message."""
        return {partition: self._client.watermarks(topic, partition)[1] for partition in range(count)}

    def _checked(self, parts: Sequence[TopicPartition]) -> Sequence[TopicPartition]:
        """Raise what is said of a single partition: the call as a whole has an answer all the same."""
        for part in parts:
            if part.error is not None:
                cause = f"group {self.group}, {part.topic}/{part.partition}: {part.error.str()}"
                raise self._client.kafka.unavailable(cause)
        return parts

    def close(self) -> None:
        """Let go of the connection."""
        self._client.consumer.close()


def encode(contract: Contract, event: Event | Mapping[str, object] | bytes | str) -> tuple[bytes, bytes]:
    """Return the key and the value under which an event is published; raises `Refused` if it breaks its contract.

    What is checked are the very bytes that leave. The key is the contract's key field as text, in UTF-8.
    """
    name = contract.name
    try:
        value = _as_json(event)
        checked = contract.model.model_validate_json(value)
    except PydanticSerializationError as error:
        raise Refused([Problem("event", name, "cannot be written as JSON", str(error))]) from error
    except ValidationError as error:
        raise Refused(
            Problem("event", ".".join(map(str, found["loc"])) or name, f"breaks the contract of {name}", found["msg"])
            for found in error.errors(include_url=False)
        ) from error
    if problems := _unfit(contract, checked):
        raise Refused(problems)
    key = getattr(checked, contract.stream.key)
    if key is None:
        raise Refused([Problem("event", contract.stream.key, f"is the key of {name}, and is null")])
    return str(key.value if isinstance(key, Enum) else key).encode(), value


def _unfit(contract: Contract, checked: Event) -> list[Problem]:
    """Return what the model takes and the flow's columns cannot hold, such as 2**63."""
    found = []
    for column in contract.model.model_fields:
        value = getattr(checked, column)
        match value:  # most values are told at once
            case None | bool() | float():
                continue
            case int() if -(2**63) <= value < 2**63:
                continue
            case str() if value.isascii():
                continue
            case datetime() if 1 < value.year < 9999:  # the calendar's ends
                continue
        if why := misfit(value, contract.schema.field(column).type):
            found.append(Problem("event", column, f"breaks the contract of {contract.name}", why))
    return found


def records_of(contract: Contract, events: Sequence[bytes]) -> list[Record]:
    """Return what is published for some events, JSON each; raises `Refused` if any breaks its contract."""
    headers = ((VERSION_HEADER, str(contract.stream.version).encode()),)
    found, problems = list[Record](), list[Problem]()
    for index, event in enumerate(events):
        try:
            key, value = encode(contract, event)
        except Refused as refusal:
            among = f"[{index}]." if len(events) > 1 else ""
            problems += (replace(problem, name=f"{among}{problem.name}") for problem in refusal.problems)
        else:
            found.append(Record(contract.stream.topic, key, value, headers))
    if problems:
        raise Refused(problems)
    return found


def _as_json(event: Event | Mapping[str, object] | bytes | str) -> bytes:
    match event:
        case bytes():
            return event
        case str():
            return event.encode(errors="surrogatepass")  # half a surrogate is the contract's to refuse
        case Event():
            return to_json(event.model_dump())  # its own `model_dump_json` would turn a NaN into null
        case _:
            return to_json(dict(event))


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of the events sent: how many the cluster has, and what it said of those that it refused."""

    count: int
    failed: tuple[str, ...] = ()


class Outbox:
    """Sends records in their order, each once, and hears what became of every one.

    `kind` is what a record is called where one cannot be sent. `failed` holds what the cluster itself refused. `lost`
    names the records, by their values, for which it was not reached; if it is not given, they are counted.
    """

    def __init__(
        self,
        kafka: Kafka,
        kind: str,
        tuned: Mapping[str, Any] | None = None,
        lost: Callable[[Sequence[bytes]], str] | None = None,
        **fixed: Any,
    ) -> None:
        self._kafka, self._kind = kafka, kind
        self._name_lost = lost or (lambda values: f"{len(values)} {kind}s")
        self.delivered_count, self.failed, self._lost = 0, list[Problem](), list[tuple[bytes, str]]()
        self._heard = Heard()
        self._producer = kafka.client(
            RawProducer,
            tuned,
            enable_idempotence=True,
            partitioner="murmur2_random",  # Java's: the default would put a key where other producers do not
            delivery_timeout_ms=int(kafka.patience_s * 1000),
            error_cb=self._heard,
            **fixed,
        )

    def send(self, record: Record, name: str, delivered: Callable[[int, int], object] = lambda _, __: None) -> None:
        """Send one record, named for people. Raises `Refused` if it is too large; `Unavailable` once one is lost.

        It may wait, while as many records are unconfirmed as librdkafka queues. `delivered` hears the partition and
        offset under which the cluster has it.
        """
        options: dict[str, Any] = {} if record.timestamp_ms < 0 else {"timestamp": record.timestamp_ms}
        report = functools.partial(self._report, name, delivered)
        while True:
            self.raise_lost()
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, on_delivery=report, headers=[*record.headers], **options
                )
            except BufferError:
                self._producer.poll(_ASK_AGAIN_S)  # the queue is full: let reports make room
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise self._kafka.unavailable(self._heard.behind(error)) from error
                got = f"{len(record.value or b'')} bytes"
                raise Refused([Problem(self._kind, name, "is too large for Kafka", got, LARGER)]) from error
            else:
                break
        self._producer.poll(0)

    def poll(self, wait_s: float) -> None:
        """Hear reports for so long; also the way to wait between records."""
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            self._producer.poll(left)

    def _report(
        self, name: str, delivered: Callable[[int, int], object], error: KafkaError | None, message: Message
    ) -> None:
        if error is None:
            self.delivered_count += 1
            delivered(message.partition(), message.offset())
        elif error.code() < 0:  # librdkafka's own codes: the cluster was not reached
            self._lost.append((message.value() or b"", error.str()))
        else:
            hint = LARGER if error.code() == KafkaError.MSG_SIZE_TOO_LARGE else ""
            got = f"{message.topic()}: {error.str()}"
            self.failed.append(Problem(self._kind, name, "was refused by the cluster", got, hint))

    def raise_lost(self) -> None:
        """Raise `Unavailable` if the cluster was not reached for a record."""
        if self._lost:
            cause = self._heard.newest or self._lost[0][1]
            which = self._name_lost([value for value, _ in self._lost])
            raise self._kafka.unavailable(f"{cause}; not delivered: {which}")

    def raise_failed(self) -> None:
        """Raise what the cluster refused: `Refused` for records that are too large, `Unavailable` for the rest."""
        too_large = [problem for problem in self.failed if problem.hint == LARGER]
        if too_large:
            raise Refused(too_large)
        if self.failed:
            cause = self.failed[0].got
            raise self._kafka.unavailable(f"{cause}; not delivered: {len(self.failed)} {self._kind}s")

    def flush(self) -> None:
        """Wait until the cluster has answered for everything sent so far; raises `Unavailable` if it does not."""
        deadline = time.monotonic() + self._kafka.patience_s + _OVERDUE_S  # by then each is confirmed, or given up
        while (waiting := self._flush_briefly()) and time.monotonic() < deadline:
            pass  # by short waits, so that Ctrl-C is heard
        self.raise_lost()
        if waiting:
            self._raise_unconfirmed(waiting)

    def _flush_briefly(self) -> int:
        """Return how many records wait for their report still."""
        try:
            return int(self._producer.flush(_ASK_AGAIN_S))
        except KafkaException as error:  # one that ends this client, such as a newer one of its transactions' id
            raise self._kafka.unavailable(self._heard.behind(error)) from error

    def _raise_unconfirmed(self, count: int) -> NoReturn:
        raise self._kafka.unavailable(f"{count} {self._kind}s are not confirmed: {self._heard.newest or 'no answer'}")

    def take_over(self) -> None:
        """Begin transactions, under the id that was given; whoever used it before can no longer commit."""
        self._settle(self._producer.init_transactions)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Send what is sent inside as a whole, or not at all; raises as `flush` and `raise_failed` do."""
        self._settle(lambda _: self._producer.begin_transaction())
        try:
            yield
            self._confirm_all()
            self._settle(self._producer.commit_transaction)
        except BaseException:  # Ctrl-C too: what was sent so far must not be seen
            with contextlib.suppress(Unavailable):  # then the cluster itself aborts it, by the transaction's timeout
                self._settle(self._producer.abort_transaction)
            self.failed, self._lost = [], []  # nor does it burden the next
            raise

    def _confirm_all(self) -> None:
        """Wait for the reports of a transaction; once one record has failed, those behind it wait for ever."""
        deadline = time.monotonic() + self._kafka.patience_s
        while waiting := self._flush_briefly():
            self.raise_failed()
            self.raise_lost()
            if time.monotonic() > deadline:
                self._raise_unconfirmed(waiting)
        self.raise_failed()
        self.raise_lost()

    def _settle(self, step: Callable[[float], None]) -> None:
        """Take a step of a transaction, again while it may still succeed."""
        deadline = time.monotonic() + self._kafka.patience_s
        while True:
            try:
                step(self._kafka.answer_limit_s)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    self._producer.poll(0)  # the way to hear what was said in passing
                    raise self._kafka.unavailable(self._heard.behind(error)) from error
            else:
                return


class Producer:
    """Publishes the events of one stream: each is checked against its contract before it leaves, and none is lost.

    ```python
    with Producer(Kafka("localhost:9092"), contract) as producer:
        producer.send({"user": "Ada", …})  # or a contract's model, or JSON; `Refused` if it breaks the contract
    # here every event was confirmed by the cluster; otherwise `Unavailable` or `Refused` was raised
    ```
    """

    def __init__(self, kafka: Kafka, contract: Contract, *, linger_ms: int = 5) -> None:
        self._contract = contract
        self._headers = ((VERSION_HEADER, str(contract.stream.version).encode()),)
        self._outbox = Outbox(kafka, "event", {"linger.ms": linger_ms}, functools.partial(named, contract))

    def send(self, event: Event | Mapping[str, object] | bytes | str, *, timestamp_ms: int | None = None) -> None:
        """Send one event. Raises `Refused` if it breaks its contract, or is too large; `Unavailable` once one is lost.

        It may wait, while as many events are unconfirmed as librdkafka queues.
        """
        key, value = encode(self._contract, event)
        time_ms = NO_TIME_MS if timestamp_ms is None else timestamp_ms
        self._outbox.send(Record(self._contract.stream.topic, key, value, self._headers, time_ms), self._contract.name)

    def poll(self, wait_s: float) -> None:
        """Hear reports for so long; also the way to wait between events."""
        self._outbox.poll(wait_s)

    def flush(self) -> Delivered:
        """Wait until the cluster has answered for everything sent since the start; raises `Unavailable` if it does not.

        That names the events: how many, from when to when, and up to ten of their ids.
        What the cluster itself refused is in `failed`; leaving the `with` block raises it, so that nobody misses it.
        """
        self._outbox.flush()
        return Delivered(self._outbox.delivered_count, tuple(problem.got for problem in self._outbox.failed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = self.flush().failed  # after an exception, too: what was sent before it is not lost
        if failed and kind is None:
            fact = f"was refused by the cluster, and {len(failed) - 1} more"
            raise Refused([Problem("event", self._contract.name, fact, failed[0])])


def topics_of(contracts: Iterable[Contract]) -> dict[str, int]:
    """Return the topics of some streams and of their dead letters, and how many partitions each is declared to have."""
    streams = {contract.stream.topic: contract.stream.partitions for contract in contracts}
    return streams | {dead_letter_topic(topic): count for topic, count in streams.items()}
