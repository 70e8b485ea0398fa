"""One contract suite over the twin, the embedded broker and a real Kafka; then what only brokers have, such as outages.

The real one is named by FRESHET_TEST_KAFKA (scripts/kafka start prints its address).
"""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Producer as RawProducer
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import AwareDatetime
from stack import until

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.partitions import PartitionReader, Partitions
from freshet.flows.edges.standings import Standings
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.event import VERSION_HEADER, Contract, Event, Stream, contract
from freshet.schemas.poll import Poll
from freshet.schemas.record import murmur2, partition_of
from freshet.schemas.standing import Standing

LIMIT_S = 30.0


class Reader(Protocol):
    position: int

    @property
    def end_offset(self) -> int: ...
    @property
    def at_end(self) -> bool: ...
    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None: ...
    def close(self) -> None: ...


class Cluster(Protocol):
    """What the suite asks of a twin or a broker: the edge's functions, and bytes written past the contract."""

    def create_topics(self, topics: Mapping[str, int]) -> dict[str, str]: ...
    def partitions_count(self, topic: str) -> int: ...
    def reader(self, topic: str, partition: int, start_offset: int | None = None) -> Reader: ...
    def producer(self, contract: Contract) -> Any: ...
    def offsets(self, group: str) -> Any: ...
    def standings(self, group: str) -> Any: ...
    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        version: bytes | None = None,
        timestamp_ms: int | None = None,
    ) -> Any: ...


@dataclass(frozen=True)
class RealCluster:
    """A broker, by the edge's own functions."""

    kafka: kafka.Kafka
    make_topic: Callable[[str, int], None] | None = None

    def create_topics(self, topics: Mapping[str, int]) -> dict[str, str]:
        before = {topic for topic in topics if topic in AdminClient(self.kafka.config()).list_topics(timeout=10).topics}
        if self.make_topic is not None:  # the embedded broker's owner makes its topics
            for topic in topics.keys() - before:
                self.make_topic(topic, topics[topic])
            return {topic: "exists" if topic in before else "created" for topic in topics}
        return kafka.create_topics(self.kafka, topics)

    def partitions_count(self, topic: str) -> int:
        return kafka.partitions_count(self.kafka, topic)

    def reader(self, topic: str, partition: int, start_offset: int | None = None) -> Reader:
        return Partitions(self.kafka).open(topic, partition, self.partitions_count(topic), start_offset)

    def producer(self, contract: Contract) -> kafka.Producer:
        return kafka.Producer(self.kafka, contract)

    def offsets(self, group: str) -> kafka.GroupOffsets:
        return kafka.GroupOffsets(self.kafka, group)

    def standings(self, group: str) -> Standings:
        return Standings(self.kafka, group)

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        version: bytes | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        producer = RawProducer(self.kafka.config())
        headers = [] if version is None else [(VERSION_HEADER, version)]
        producer.produce(topic, value, key, partition, headers=headers, timestamp=timestamp_ms or 0)
        assert producer.flush(LIMIT_S) == 0


def embedded(broker: Broker) -> RealCluster:
    return RealCluster(kafka.Kafka(broker.address), broker.create_topic)


@pytest.fixture(params=["twin", "embedded", pytest.param("real", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "twin":
        return MemoryLog()
    if request.param == "embedded":
        return embedded(request.getfixturevalue("broker"))
    return RealCluster(kafka.Kafka(request.getfixturevalue("real_kafka")))


@pytest.fixture
def topic() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def log(cluster: Cluster, topic: str) -> Iterator[Callable[..., Reader]]:
    """A topic of three partitions; opens its readers and closes them."""
    cluster.create_topics({topic: 3})
    opened: list[Reader] = []

    def open_reader(partition: int = 0, start_offset: int | None = None) -> Reader:
        opened.append(cluster.reader(topic, partition, start_offset))
        return opened[-1]

    yield open_reader
    for reader in opened:
        reader.close()


def read(reader: Reader, messages_count: int) -> list[Poll]:
    """Poll until so many messages came."""
    polls: list[Poll] = []
    deadline = time.monotonic() + LIMIT_S
    while sum(len(poll.values) for poll in polls) < messages_count:
        assert time.monotonic() < deadline, f"{polls} and no more"
        polled = reader.poll(100, 0.05)
        polls += [polled] if polled is not None else []
    return polls


def poll_until(reader: Reader, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"position {reader.position}, end {reader.end_offset}"
        reader.poll(100, 0.05)


class Colour(str, Enum):  # noqa: UP042  # whose `str` is Colour.RED, unlike a StrEnum's
    RED = "red"


def made(topic: str, key: str = "user") -> Contract:
    """A contract whose events live in `topic`."""

    class Click(Event):
        stream = Stream(topic=topic, key=key, event_time="time", version=7)
        time: AwareDatetime
        user: str
        count: int = 1
        share: float | None = None
        colour: Colour | None = None

    checked, problems = contract("clicks", Click)
    assert checked is not None, problems
    return checked


def click(user: str = "Ada", **more: object) -> dict[str, object]:
    return {"time": datetime(2026, 1, 1, tzinfo=UTC), "user": user, **more}


# Topics


def test_a_topic_is_created_once_and_then_exists(cluster: Cluster, topic: str) -> None:
    assert cluster.create_topics({topic: 3}) == {topic: "created"}
    assert cluster.create_topics({topic: 3}) == {topic: "exists"}
    assert cluster.partitions_count(topic) == 3


def test_a_stream_has_dead_letters_of_as_many_partitions() -> None:
    assert kafka.topics_of([made("edits")]) == {"edits": 8, "edits.dlq": 8}


def test_a_topic_that_is_not_there_is_refused_and_stays_away(cluster: Cluster, topic: str) -> None:
    for _ in range(2):
        with pytest.raises(Refused, match=f'topic "{topic}" .*freshet apply'):
            cluster.partitions_count(topic)


# Reading


def test_an_empty_partition_is_at_its_end(log: Callable[..., Reader]) -> None:
    reader = log()

    assert reader.poll(10) is None
    assert (reader.position, reader.end_offset, reader.at_end) == (0, 0, True)


def test_a_poll_says_everything_about_its_messages(cluster: Cluster, topic: str, log: Callable[..., Reader]) -> None:
    cluster.append(topic, 1, b"\x00\xff not JSON", key=b"k", version=b"7", timestamp_ms=1_700_000_000_123)
    cluster.append(topic, 1, b"", timestamp_ms=1_700_000_000_124)
    cluster.append(topic, 1, None, key=b"k", timestamp_ms=1_700_000_000_125)

    polls = read(log(1), 3)

    assert [value for poll in polls for value in poll.values] == [b"\x00\xff not JSON", b"", None]
    assert [key for poll in polls for key in poll.keys] == [b"k", None, b"k"]
    assert [version for poll in polls for version in poll.versions] == [b"7", None, None]
    assert [headers for poll in polls for headers in poll.headers or [None] * len(poll.values)] == [
        [(VERSION_HEADER, b"7")],
        None,
        None,
    ]
    assert [int(time_ms) for poll in polls for time_ms in poll.timestamps_ms] == [
        1_700_000_000_123,
        1_700_000_000_124,
        1_700_000_000_125,
    ]
    assert [int(offset) for poll in polls for offset in poll.offsets] == [0, 1, 2]
    assert {(poll.topic, poll.partition, poll.partitions_count) for poll in polls} == {(topic, 1, 3)}
    assert (polls[-1].end_offset, polls[-1].at_end) == (3, True)


def test_a_poll_brings_no_more_than_asked_for_and_loses_nothing(
    cluster: Cluster, topic: str, log: Callable[..., Reader]
) -> None:
    for number in range(5):
        cluster.append(topic, 0, str(number).encode())
    reader, values = log(), list[bytes | None]()

    deadline = time.monotonic() + LIMIT_S
    while len(values) < 5 and time.monotonic() < deadline:
        polled = reader.poll(2, 0.05)
        if polled is not None:
            values += polled.values
            assert len(polled.values) <= 2
            assert polled.at_end == (len(values) == 5)

    assert values == [b"0", b"1", b"2", b"3", b"4"]
    assert (reader.position, reader.at_end) == (5, True)


def test_reading_goes_on_from_an_offset(cluster: Cluster, topic: str, log: Callable[..., Reader]) -> None:
    for number in range(5):
        cluster.append(topic, 0, str(number).encode())

    polls = read(log(0, 3), 2)

    assert [value for poll in polls for value in poll.values] == [b"3", b"4"]


def test_reading_from_the_end_waits_for_what_comes(cluster: Cluster, topic: str, log: Callable[..., Reader]) -> None:
    cluster.append(topic, 0, b"old")
    reader = log(0, 1)
    assert reader.poll(10) is None
    cluster.append(topic, 0, b"new")

    (poll,) = read(reader, 1)

    assert (poll.values, poll.end_offset, poll.at_end) == ([b"new"], 2, True)


def test_an_offset_past_the_end_is_refused_with_what_is_there(
    cluster: Cluster, topic: str, log: Callable[..., Reader]
) -> None:
    cluster.append(topic, 0, b"only")

    with pytest.raises(Refused, match=rf'"{topic}" partition 0 .*offset 9 .*offsets from 0 up to 1\. Hint: '):
        log(0, 9)


# Offsets of a group


def test_a_commit_is_kept_for_its_group_and_partition(cluster: Cluster, topic: str, log: Callable[..., Reader]) -> None:
    del log
    group = f"group-{topic}"
    offsets = cluster.offsets(group)
    assert offsets.committed(topic, 3) == {0: None, 1: None, 2: None}

    offsets.commit({(topic, 1): 5})
    offsets.commit({(topic, 1): 6})

    again = cluster.offsets(group)
    assert again.committed(topic, 3) == {0: None, 1: 6, 2: None}
    for opened in (offsets, again):
        opened.close()


def test_end_offsets_are_those_after_the_last_messages(
    cluster: Cluster, topic: str, log: Callable[..., Reader]
) -> None:
    del log
    cluster.append(topic, 2, b"a")
    cluster.append(topic, 2, b"b")
    offsets = cluster.offsets(f"group-{topic}")

    assert offsets.end_offsets(topic, 3) == {0: 0, 1: 0, 2: 2}
    offsets.close()


def test_a_group_s_standing_is_what_it_committed_and_when_beside_what_the_partitions_hold(
    cluster: Cluster, topic: str, log: Callable[..., Reader]
) -> None:
    del log
    group = f"group-{topic}"
    for value in (b"a", b"b", b"c"):
        cluster.append(topic, 1, value)
    offsets, standings = cluster.offsets(group), cluster.standings(group)
    assert standings.of(topic, 3) == {0: Standing(0, 0), 1: Standing(0, 3), 2: Standing(0, 0)}

    before_s = time.time()
    offsets.commit({(topic, 1): 2})
    first = standings.of(topic, 3)[1]
    while time.time() <= first.committed_at_s + 0.001:
        pass  # it is told in whole milliseconds
    offsets.commit({(topic, 1): 2})
    second = standings.of(topic, 3)[1]

    assert (first.committed, second.committed) == (2, 2)
    assert before_s - 0.001 <= first.committed_at_s < second.committed_at_s <= time.time()
    offsets.close()
    standings.close()


def test_when_a_message_was_written_can_be_asked(cluster: Cluster, topic: str, log: Callable[..., Reader]) -> None:
    del log
    cluster.append(topic, 1, b"a", timestamp_ms=1_700_000_000_123)
    cluster.append(topic, 1, b"b", timestamp_ms=1_700_000_001_000)
    standings = cluster.standings(f"group-{topic}")

    assert standings.written_at_s(topic, 1, 0) == 1_700_000_000.123
    assert standings.written_at_s(topic, 1, 1) == 1_700_000_001.0
    assert standings.written_at_s(topic, 1, 2) is None
    assert standings.written_at_s(topic, 0, 0) is None
    standings.close()


def test_when_the_newest_message_of_each_partition_was_written_can_be_asked_of_any_that_stands_still(
    cluster: Cluster, topic: str, log: Callable[..., Reader]
) -> None:
    del log
    for partition, seconds in ((1, 1_700_000_000), (1, 1_700_000_001), (2, 1_600_000_000)):
        cluster.append(topic, partition, b"a", timestamp_ms=seconds * 1000 + 123)
    standings = cluster.standings(f"group-{topic}")
    ends = {part: standing.end for part, standing in standings.of(topic, 3).items()}

    assert standings.newest_at_s(topic, ends) == {0: None, 1: 1_700_000_001.123, 2: 1_600_000_000.123}
    cluster.append(topic, 1, b"b", timestamp_ms=1_700_000_002_000)
    assert standings.newest_at_s(topic, {**ends, 1: 3}) == {0: None, 1: 1_700_000_002.0, 2: 1_600_000_000.123}
    assert standings.newest_at_s(topic, {0: 0}) == {0: None}
    standings.close()


@pytest.mark.kafka
def test_a_transaction_counts_as_written_when_it_ended(real_kafka: str, topic: str) -> None:
    server = kafka.Kafka(real_kafka)
    kafka.create_topics(server, {topic: 1})
    producer = RawProducer(server.config(transactional_id=topic))
    producer.init_transactions(LIMIT_S)
    producer.begin_transaction()
    producer.produce(topic, b"a", partition=0, timestamp=1_700_000_000_000)
    producer.commit_transaction(LIMIT_S)
    standings = Standings(server, "g")
    until(lambda: standings.of(topic, 1)[0].end == 2)  # the message, and the marker, which Kafka writes soon after

    newest_at_s = standings.newest_at_s(topic, {0: 2})[0]
    assert newest_at_s is not None
    assert newest_at_s > 1_700_000_000.0, "its end, not its message"
    standings.close()


def test_partitions_without_a_leader_are_named_until_they_have_one(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 4)
    standings = Standings(kafka.Kafka(broker.address), "g")
    for partition in (1, 3):
        broker.lead(topic, partition, None)

    said = f"no leader for {topic}/1, {topic}/3 \\(2 of 4 partitions\\). Hint: a broker of the cluster is down"
    for ask in (lambda: standings.of(topic, 4), lambda: standings.newest_at_s(topic, dict.fromkeys(range(4), 1))):
        with pytest.raises(Unavailable, match=said):
            ask()

    for partition in (1, 3):
        broker.lead(topic, partition, 1)
    until(lambda: not refuses(lambda: standings.of(topic, 4)))
    standings.close()


def refuses(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except Unavailable:
        return True
    return False


@pytest.mark.kafka
def test_how_long_a_topic_is_kept_is_what_kafka_says(real_kafka: str, topic: str) -> None:
    server = kafka.Kafka(real_kafka)
    admin, standings = AdminClient(server.config()), Standings(server, "g")
    kept = {"short": {"retention.ms": "60000"}, "ever": {"retention.ms": "-1"}, "newest": {"cleanup.policy": "compact"}}
    for name, config in kept.items():
        for made in admin.create_topics([NewTopic(f"{topic}-{name}", 1, config=config)]).values():
            made.result()
    kafka.create_topics(server, {f"{topic}-plain": 1})

    found = {name: standings.retention_s(f"{topic}-{name}") for name in (*kept, "plain")}

    assert found == {"short": 60.0, "ever": None, "newest": None, "plain": 7 * 86_400.0}
    standings.close()


def test_where_the_broker_keeps_everything_nothing_is_said_to_be_deleted(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 1)
    standings = Standings(kafka.Kafka(broker.address), "g")

    assert standings.retention_s(topic) is None
    standings.close()


class Mute:
    """An admin client whose answers never come."""

    def list_offsets(self, asked: Mapping[TopicPartition, Any], **_: Any) -> Mapping[TopicPartition, Any]:
        return {part: Future[Any]() for part in asked}

    def poll(self, _: float) -> None:
        """Hear nothing."""


def test_an_answer_that_never_comes_is_given_up_and_the_next_question_is_answered(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_topic(topic, 2)
    standings = Standings(kafka.Kafka(broker.address), "g")
    standings._admin = Mute()  # noqa: SLF001  # librdkafka is seldom so

    with monkeypatch.context() as hurried:
        hurried.setattr("freshet.flows.edges.standings._MARGIN_S", -9.5)
        with pytest.raises(Unavailable, match="no answer"):
            standings.of(topic, 2)

    assert sorted(standings.of(topic, 2)) == [0, 1]
    standings.close()


def test_a_new_epoch_of_the_leader_costs_one_question_at_most(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 1)
    standings = Standings(kafka.Kafka(broker.address), "g")
    assert standings.of(topic, 1) == {0: Standing(0, 0, None)}

    broker.elect(topic, 0)

    with contextlib.suppress(Unavailable):
        standings.of(topic, 1)
    assert standings.of(topic, 1) == {0: Standing(0, 0, None)}
    standings.close()


# Publishing


def test_an_event_arrives_with_key_version_and_time_in_the_partition_of_its_key(
    cluster: Cluster, topic: str, log: Callable[..., Reader]
) -> None:
    stream = made(topic)
    users = [f"user {number} ü" for number in range(12)]
    with cluster.producer(stream) as producer:
        for user in users:
            producer.send(click(user), timestamp_ms=1_700_000_000_123)
        assert producer.flush() == kafka.Delivered(12)

    by_partition = {part: [user for user in users if partition_of(user.encode(), 3) == part] for part in range(3)}
    assert all(by_partition.values()), "a key for every partition"
    for part, expected in by_partition.items():
        polls = read(log(part), len(expected))
        assert [key.decode() for poll in polls for key in poll.keys if key is not None] == expected
        events = [stream.model.model_validate_json(value) for poll in polls for value in poll.values if value]
        assert [getattr(event, "user", None) for event in events] == expected
        assert {version for poll in polls for version in poll.versions} == {b"7"}
        assert {int(time_ms) for poll in polls for time_ms in poll.timestamps_ms} == {1_700_000_000_123}


@pytest.mark.parametrize("form", ["mapping", "bytes", "text", "model"])
def test_every_form_of_an_event_is_published(
    cluster: Cluster, topic: str, log: Callable[..., Reader], form: str
) -> None:
    stream = made(topic)
    text = '{"time": "2026-01-01T00:00:00Z", "user": "21", "count": 2, "unknown": true}'
    model = stream.model.model_validate_json(text)
    event: object = {"mapping": click("21", count=2), "bytes": text.encode(), "text": text, "model": model}[form]
    with cluster.producer(stream) as producer:
        producer.send(event)

    (poll,) = read(log(partition_of(b"21", 3)), 1)

    assert poll.values[0] is not None
    assert stream.model.model_validate_json(poll.values[0]) == model


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"user": "Ada"}, 'event "time" breaks the contract of clicks; got Field required'),
        (click(count="1"), 'event "count" breaks the contract'),
        (b"{", 'event "clicks" breaks the contract of clicks; got Invalid JSON'),
        (click(count=2**63), 'event "count" breaks the contract of clicks; got Python int too large'),
        (click(time="9999-12-31T23:00:00-14:00"), 'event "time" breaks the contract .*; got in UTC it is not between'),
        ("\ud800", 'event "clicks" breaks the contract'),
        (click(count=object()), 'event "clicks" cannot be written as JSON'),
    ],
)
def test_an_event_that_breaks_its_contract_is_refused_and_never_sent(
    cluster: Cluster, topic: str, log: Callable[..., Reader], event: Any, said: str
) -> None:
    del log
    with cluster.producer(made(topic)) as producer:
        with pytest.raises(Refused, match=said):
            producer.send(event)
        assert producer.flush() == kafka.Delivered(0)


def test_an_event_whose_key_is_null_is_refused(topic: str) -> None:
    with pytest.raises(Refused, match='event "colour" is the key of clicks, and is null'):
        kafka.encode(made(topic, key="colour"), click())


def test_a_key_that_is_one_of_an_enumeration_is_its_value(topic: str) -> None:
    key, _ = kafka.encode(made(topic, key="colour"), click(colour=Colour.RED))

    assert key == b"red"


def test_a_nan_stays_a_nan_in_every_form_of_an_event(topic: str) -> None:
    stream = made(topic)
    model = stream.model.model_validate(click(share=float("nan")))

    assert {kafka.encode(stream, event)[1].count(b"NaN") for event in (click(share=float("nan")), model)} == {1}


def test_what_was_sent_before_an_error_is_delivered(cluster: Cluster, topic: str, log: Callable[..., Reader]) -> None:
    def publish_two(events: list[Any]) -> None:
        with cluster.producer(made(topic)) as producer:
            for event in events:
                producer.send(event)

    with pytest.raises(Refused):
        publish_two([click("21"), b"{"])

    assert len(read(log(partition_of(b"21", 3)), 1)) == 1


def test_the_twin_forgets_what_retention_takes_and_refuses_to_jump(topic: str) -> None:
    twin = MemoryLog(now_ms=lambda: 5)
    twin.create_topics({topic: 1})
    for number in range(4):
        twin.append(topic, 0, str(number).encode())
    reader = twin.reader(topic, 0)
    twin.forget_before(topic, 0, 3)

    with pytest.raises(Refused, match=r"offset 0 .*offsets from 3 up to 4"):
        reader.poll(10)
    assert twin.reader(topic, 0).position == 3


# Kafka's own tests give these (UtilsTest.testMurmur2), as signed numbers.
@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_the_hash_of_the_twin_is_kafkas(key: bytes, expected: int) -> None:
    assert expected % 2**32 == murmur2(key)


# What only brokers have


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def server(request: pytest.FixtureRequest) -> RealCluster:
    if request.param == "embedded":
        return embedded(request.getfixturevalue("broker"))
    return RealCluster(kafka.Kafka(request.getfixturevalue("real_kafka")))


def test_the_marker_that_ends_a_transaction_is_passed(server: RealCluster, topic: str) -> None:
    server.create_topics({topic: 1})
    producer = RawProducer(server.kafka.config(transactional_id=topic))
    producer.init_transactions(LIMIT_S)
    producer.begin_transaction()
    producer.produce(topic, b"inside", partition=0)
    producer.commit_transaction(LIMIT_S)

    reader = server.reader(topic, 0)
    poll_until(reader, lambda: reader.position > 0 and reader.at_end)

    assert (reader.position, reader.end_offset) == (2, 2)
    reader.close()


def test_of_a_repeated_version_header_the_last_one_holds(server: RealCluster, topic: str) -> None:
    server.create_topics({topic: 1})
    producer = RawProducer(server.kafka.config())
    producer.produce(
        topic, b"x", partition=0, headers=[(VERSION_HEADER, b"1"), ("other", None), (VERSION_HEADER, b"2")]
    )
    assert producer.flush(LIMIT_S) == 0

    reader = server.reader(topic, 0)

    assert read(reader, 1)[0].versions == [b"2"]
    reader.close()


def test_a_commit_to_a_group_with_members_is_unavailable(server: RealCluster, topic: str) -> None:
    server.create_topics({topic: 1})
    member = Consumer(server.kafka.config(group_id=topic, session_timeout_ms=6000))
    member.subscribe([topic])
    deadline = time.monotonic() + LIMIT_S
    while not member.assignment():
        assert time.monotonic() < deadline
        member.poll(0.05)
    offsets = server.offsets(topic)

    with pytest.raises(Unavailable, match="Unknown member"):
        offsets.commit({(topic, 0): 1})
    offsets.close()
    member.close()


def test_an_event_too_large_for_kafka_is_refused(server: RealCluster, topic: str) -> None:
    server.create_topics({topic: 1})
    with (
        server.producer(made(topic)) as producer,
        pytest.raises(Refused, match="is too large for Kafka; got 20000"),
    ):
        producer.send(click("a" * 2_000_000))


def test_an_option_tunes_and_never_makes_reading_jump_to_the_end() -> None:
    careless = kafka.Kafka("b:1", {"auto.offset.reset": "latest", "linger.ms": "50"})

    config = careless.config({"linger.ms": 5}, auto_offset_reset="error")

    assert (config["auto.offset.reset"], config["linger.ms"]) == ("error", "50")


def test_a_secret_is_not_printed() -> None:
    assert "hunter2" not in repr(kafka.Kafka("b:1", {"sasl.password": "hunter2"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"no.such": "1"}, 'got No such configuration property: "no.such"'),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "sasl.username and sasl.password must be set"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/no/such.pem"}, "ssl.ca.location failed"),
    ],
)
def test_options_that_librdkafka_does_not_take_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(Refused, match='settings "FRESHET_KAFKA_\\*" cannot be used; got ') as refused:
        kafka.partitions_count(kafka.Kafka("b:1", options), "clicks")

    assert said in str(refused.value)


@pytest.mark.kafka
def test_the_cluster_says_what_is_wrong_with_every_topic(real_kafka: str) -> None:
    with pytest.raises(Refused) as refused:
        kafka.create_topics(kafka.Kafka(real_kafka), {"no spaces": 1, "no/slashes": 1})

    assert ["no spaces", "no/slashes"] == [problem.name for problem in refused.value.problems]


@pytest.mark.kafka
def test_a_topic_can_be_used_as_soon_as_it_is_made(real_kafka: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka))
    for _ in range(10):  # its brokers take a moment to lead a new partition, which one try may miss
        topic = f"test-{uuid.uuid4().hex}"
        server.create_topics({topic: 8})
        server.reader(topic, 7).close()
        offsets = server.offsets(topic)
        offsets.commit({(topic, 7): 0})

        assert offsets.committed(topic, 8)[7] == 0
        offsets.close()


@pytest.mark.kafka
def test_a_topic_without_partitions_is_refused(real_kafka: str, topic: str) -> None:
    with pytest.raises(Refused, match=f'"{topic}" cannot be made; got 0 partitions'):
        kafka.create_topics(kafka.Kafka(real_kafka), {topic: 0})


@pytest.mark.kafka
def test_an_event_that_the_cluster_refuses_is_never_dropped_silently(real_kafka: str, topic: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka, {"message.max.bytes": "5000000"}))
    server.create_topics({topic: 1})
    producer = server.producer(made(topic))
    producer.send(click("a" * 2_000_000))
    producer.send(click("Ada"))
    delivered = producer.flush()

    assert (delivered.count, len(delivered.failed)) == (1, 1)
    with pytest.raises(Refused, match=r"refused by the cluster.*too large"), producer:
        pass


@pytest.mark.kafka
def test_a_reader_that_retention_overtook_is_refused(real_kafka: str, topic: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka))
    server.create_topics({topic: 1})
    for number in range(3):
        server.append(topic, 0, str(number).encode())
    resumed = server.reader(topic, 0)
    admin = AdminClient(server.kafka.config())
    (gone,) = admin.delete_records([TopicPartition(topic, 0, 2)]).values()
    gone.result(LIMIT_S)

    with pytest.raises(Refused, match=r"offset 1 .*offsets from 2 up to 3"):
        server.reader(topic, 0, 1)
    assert server.reader(topic, 0).position == 2
    resumed.close()


def test_a_reader_overtaken_while_it_reads_is_refused(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 1)
    server = embedded(broker)
    server.append(topic, 0, b"first")
    slow = kafka.Kafka(broker.address, {"queued.max.messages.kbytes": "1"})  # reads hardly ahead of its polls
    reader = Partitions(slow).open(topic, 0, 1)
    for _ in range(12):  # the embedded broker keeps 5 MiB
        server.append(topic, 0, b"x" * 900_000)

    with pytest.raises(Refused, match=f'"{topic}" partition 0 does not have the offset'):
        read(reader, 13)
    reader.close()


# Outages


IMPATIENT_S = 1.0  # nothing is there: all of it is waited out
OUTAGE_S = 10.0  # a broker is there and then goes: it answers in time on a busy machine, and this is waited out


@pytest.fixture
def impatient() -> Iterator[tuple[Broker, kafka.Kafka, str]]:
    """A broker that may go down, a client that waits some seconds for it, and a topic with one message."""
    with Broker.start() as own:
        cluster = kafka.Kafka(own.address, patience_s=OUTAGE_S)
        own.create_topic("t", 1)
        RealCluster(cluster).append("t", 0, b"before")
        yield own, cluster, "t"


def publish(cluster: kafka.Kafka) -> None:
    with kafka.Producer(cluster, made("t")) as producer:
        producer.send(click())


@pytest.mark.parametrize(
    "use",
    [
        lambda cluster: kafka.partitions_count(cluster, "t"),
        lambda cluster: kafka.create_topics(cluster, {"t": 1}),
        lambda cluster: Partitions(cluster).open("t", 0, 1),
        lambda cluster: kafka.GroupOffsets(cluster, "g").committed("t", 1),
        lambda cluster: kafka.GroupOffsets(cluster, "g").end_offsets("t", 1),
        lambda cluster: Standings(cluster, "g").of("t", 1),
        lambda cluster: Standings(cluster, "g").newest_at_s("t", {0: 1}),
        lambda cluster: Standings(cluster, "g").written_at_s("t", 0, 0),
        lambda cluster: Standings(cluster, "g").retention_s("t"),
        publish,
    ],
    ids=[
        "partitions_count",
        "create_topics",
        "reader",
        "committed",
        "end_offsets",
        "standings",
        "newest",
        "written",
        "retention",
        "producer",
    ],
)
def test_a_broker_that_is_not_there_is_named_with_the_root_cause(
    use: Callable[[kafka.Kafka, Contract], object],
) -> None:
    with socket.socket() as taken:  # bound and never listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(Unavailable, match=f'kafka "{address}" is not available: .*Connection refused'):
            use(kafka.Kafka(address, patience_s=IMPATIENT_S))


def test_events_that_were_not_delivered_are_named(impatient: tuple[Broker, kafka.Kafka, str]) -> None:
    broker, cluster, topic = impatient
    contract = made(topic)

    producer = kafka.Producer(cluster, contract)
    producer.send(click(count=0))
    assert producer.flush().count == 1

    broker.down()
    for count in (1, 2, 3):
        producer.send(click(count=count))

    with pytest.raises(Unavailable, match="; not delivered: 3 events of clicks .of 2026-01-01T00:00:00Z."):
        producer.flush()


def test_an_outage_while_reading_ends_in_unavailable(impatient: tuple[Broker, kafka.Kafka, str]) -> None:
    broker, cluster, topic = impatient
    reader = Partitions(cluster).open(topic, 0, 1)
    read(reader, 1)
    broker.down()

    with pytest.raises(Unavailable, match=f'kafka "{broker.address}" is not available: t/0: '):
        poll_until(reader, lambda: False)
    reader.close()


def patient(broker: Broker) -> kafka.Kafka:
    """A client that waits long, and looks often."""
    often = {"reconnect.backoff.ms": "20", "reconnect.backoff.max.ms": "50"}
    return kafka.Kafka(broker.address, often, patience_s=LIMIT_S)


def test_an_outage_that_passes_is_forgotten_even_where_no_message_comes(topic: str) -> None:
    with Broker.start() as own:
        own.create_topic(topic, 1)
        reader = Partitions(patient(own)).open(topic, 0, 1)
        reader.poll(1, 0.05)
        own.down()
        poll_until(reader, lambda: not reader.well)
        own.up()
        poll_until(reader, lambda: reader.well)
        embedded(own).append(topic, 0, b"after")

        assert read(reader, 1)[0].values == [b"after"]
        reader.close()


class Stranded:
    """A consumer that has dropped every broker it knew, and neither says so nor connects to one any more."""

    def consume(self, *_: object) -> list[Any]:
        return []

    def get_watermark_offsets(self, _: TopicPartition, *, cached: bool = False, **__: float) -> tuple[int, int]:
        if not cached:
            raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))  # noqa: SLF001  # the client's own name
        return -1, -1

    def poll(self, _: float) -> None:
        """Hear nothing."""

    def close(self) -> None:
        """Let go of nothing."""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a reader wait shorter, though longer than a client may take to begin."""
    for name, limit_s in {"_QUIET_S": 0.1, "_RENEWAL_S": 2.0, "_STALL_S": 2.0}.items():
        monkeypatch.setattr(f"freshet.flows.edges.partitions.{name}", limit_s)


@pytest.mark.usefixtures("hasty")
def test_a_client_that_lost_every_broker_without_a_word_is_not_well_and_reads_on_as_a_new_one(
    broker: Broker, topic: str
) -> None:
    broker.create_topic(topic, 1)
    server = embedded(broker)
    server.append(topic, 0, b"before")
    reader = Partitions(kafka.Kafka(broker.address)).open(topic, 0, 1)
    read(reader, 1)
    reader.client.consumer.close()
    reader.client.consumer = Stranded()  # librdkafka is seldom so
    server.append(topic, 0, b"after")

    poll_until(reader, lambda: not reader.well)

    assert read(reader, 1)[0].values == [b"after"]
    assert reader.well
    reader.close()


@pytest.mark.usefixtures("hasty")
def test_a_client_to_which_nothing_is_delivered_though_it_is_there_is_made_anew(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 1)
    server = embedded(broker)
    server.append(topic, 0, b"before")
    reader = Partitions(kafka.Kafka(broker.address)).open(topic, 0, 1)
    read(reader, 1)
    reader.client.consumer.unassign()  # so that it is answered, and reads nothing
    server.append(topic, 0, b"after")

    assert read(reader, 1)[0].values == [b"after"]
    reader.close()


@contextlib.contextmanager
def opened(partitions: Partitions, topic: str, count: int) -> Iterator[list[PartitionReader]]:
    """All partitions of a topic, by one client."""
    readers = [partitions.open(topic, partition, count) for partition in range(count)]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.close()


def offsets_of(polls: Iterable[Poll]) -> list[int]:
    return [offset for poll in polls for offset in poll.offsets.tolist()]


def publish_to(server: RealCluster, topic: str, count: int, partitions_count: int) -> None:
    """Write so many messages to the partitions in turns."""
    producer = RawProducer(server.kafka.config())
    for number in range(count):
        producer.produce(topic, b"%d" % number, partition=number % partitions_count)
    assert producer.flush(LIMIT_S) == 0


def test_what_comes_of_a_partition_while_others_are_asked_for_waits_for_it_in_order(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 3)
    server = embedded(broker)
    publish_to(server, topic, 30, 3)

    with opened(Partitions(server.kafka), topic, 3) as (first, second, third):
        assert [value for poll in read(third, 10) for value in poll.values] == [
            b"%d" % number for number in range(2, 30, 3)
        ]
        third.close()  # the others are read on
        server.append(topic, 1, b"more")
        for partition, reader, count in ((0, first, 10), (1, second, 11)):
            found = read(reader, count)
            assert offsets_of(found) == list(range(count))
            assert {poll.partition for poll in found} == {partition}
        assert (first.at_end, second.at_end) == (True, True)


def test_a_partition_of_which_something_waits_is_not_at_its_end(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 2)
    server = embedded(broker)
    with opened(Partitions(server.kafka), topic, 2) as (asked, other):
        assert other.at_end
        server.append(topic, 1, b"new")
        poll_until(asked, lambda: other.has_waiting)

        assert not other.at_end


@contextlib.contextmanager
def paused(broker: Broker, topic: str, count: int, **limits: int) -> Iterator[list[PartitionReader]]:
    """Readers of two partitions: of the first so many messages are there, and it is fetched no further; the second."""
    broker.create_topic(topic, 2)
    server = embedded(broker)
    publish_to(server, topic, count, 1)
    with opened(Partitions(server.kafka, **limits), topic, 2) as readers:
        left, asked = readers
        poll_until(asked, lambda: left.is_paused)
        yield readers


def test_a_partition_that_nobody_asks_for_is_fetched_no_further_than_it_may_and_then_read_on(
    broker: Broker, topic: str
) -> None:
    with paused(broker, topic, 3000, waiting_max=200) as (left, asked):
        embedded(broker).append(topic, 1, b"here")

        assert read(asked, 1)[0].values == [b"here"]
        assert len(left._waiting) <= 200, "half of what may wait of both, and what came with the last of them"  # noqa: SLF001  # memory
        found = read(left, 3000)
        assert [value for poll in found for value in poll.values] == [b"%d" % number for number in range(3000)]
        assert not left.is_paused


def test_a_partition_that_was_fetched_no_further_is_at_its_end_once_that_was_looked_for_again(
    broker: Broker, topic: str
) -> None:
    with paused(broker, topic, 20, waiting_max=39) as (left, _):
        for number in range(20, 30):
            embedded(broker).append(topic, 0, b"%d" % number)

        offsets, were_at_end = list[int](), list[int]()
        while len(offsets) < 30:
            polled = left.poll(100, 0.05)
            offsets += [] if polled is None else polled.offsets.tolist()
            were_at_end += [len(offsets)] if left.at_end else []
        assert (offsets, set(were_at_end)) == (list(range(30)), {30})
        poll_until(left, lambda: left.at_end)


def test_where_nothing_new_came_to_a_partition_that_was_fetched_no_further_its_end_is_known_again(
    broker: Broker, topic: str
) -> None:
    with paused(broker, topic, 20, waiting_max=39) as (left, _):
        assert [len(poll.values) for poll in read(left, 20)] == [20]
        assert not left.at_end
        poll_until(left, lambda: left.at_end)
        assert left.position == 20


def test_a_partition_that_was_let_go_while_it_was_fetched_no_further_can_be_read_again(
    broker: Broker, topic: str
) -> None:
    with paused(broker, topic, 20, waiting_max=39) as (left, asked):
        left.close()

        again = asked._partitions.open(topic, 0, 2, 5)  # noqa: SLF001  # the same client's
        assert offsets_of(read(again, 15)) == list(range(5, 20))
        again.close()


def test_little_of_a_partition_that_nobody_asks_for_waits_where_messages_are_large(broker: Broker, topic: str) -> None:
    with paused(broker, topic, 20, waiting_bytes_max=10) as (left, _):
        poll_until(left, lambda: left.at_end)
        assert (left.position, left.is_paused) == (20, False)


def test_the_more_partitions_are_read_the_less_waits_of_each(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 4)
    server = embedded(broker)
    publish_to(server, topic, 20, 1)
    with opened(Partitions(server.kafka, waiting_max=60), topic, 2) as (left, asked):
        poll_until(asked, lambda: left.has_waiting)
        assert not left.is_paused
    with opened(Partitions(server.kafka, waiting_max=60), topic, 4) as (left, asked, *_):
        poll_until(asked, lambda: left.is_paused)


def test_a_new_client_reads_every_partition_on_where_it_was(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 2)
    server = embedded(broker)
    publish_to(server, topic, 20, 2)
    with opened(Partitions(server.kafka), topic, 2) as (first, second):
        offsets: dict[PartitionReader, list[int]] = {first: [], second: []}
        while not second.has_waiting:
            polled = first.poll(3, 0.05)
            offsets[first] += [] if polled is None else polled.offsets.tolist()
        assert first.client is second.client

        first.client.renew()

        assert (first.at_end, second.at_end) == (False, False), "not before the new client has looked"
        for reader, found in offsets.items():
            while len(found) < 10:
                found.extend(offsets_of(read(reader, 1)))
            assert found == list(range(10))
            poll_until(reader, lambda reader=reader: reader.at_end)


def test_a_partition_that_cannot_be_opened_leaves_the_others_as_they_are(topic: str) -> None:
    with Broker.start() as own:
        own.create_topic(topic, 2)
        partitions = Partitions(kafka.Kafka(own.address, patience_s=OUTAGE_S))
        first = partitions.open(topic, 0, 2)
        own.down()
        with pytest.raises(Unavailable):
            partitions.open(topic, 1, 2)
        own.up()
        embedded(own).append(topic, 0, b"here")

        assert read(first, 1)[0].values == [b"here"]
        first.close()


def test_two_threads_read_by_one_client(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 4)
    server = embedded(broker)
    publish_to(server, topic, 8000, 4)
    partitions = Partitions(server.kafka)

    def read_two(of: tuple[int, int]) -> list[list[int]]:
        readers = [partitions.open(topic, partition, 4) for partition in of]
        polls = [read(reader, 2000) for reader in readers]
        for reader in readers:
            reader.close()
        return [offsets_of(some) for some in polls]

    with ThreadPoolExecutor(2) as threads:
        found = [offsets for some in threads.map(read_two, [(0, 1), (2, 3)]) for offsets in some]

    assert found == [list(range(2000))] * 4


@pytest.mark.usefixtures("hasty")
def test_the_loss_of_a_broker_stops_the_partitions_it_leads_and_no_others(
    topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker.start(brokers_count=2) as own, contextlib.ExitStack() as readers:
        own.create_topic(topic, 2)
        for partition in range(2):
            own.lead(topic, partition, partition + 1)
        server = embedded(own)
        first, second = readers.enter_context(opened(Partitions(patient(own)), topic, 2))
        for partition, reader in enumerate((first, second)):
            server.append(topic, partition, b"before")
            assert read(reader, 1)[0].values == [b"before"]

        own.down(2)
        poll_until(second, lambda: not second.well)
        consumer = second.client.consumer

        def begun_anew() -> bool:
            polled = [reader.poll(100, 0.05) for reader in (first, second)]
            return polled == [None, None] and "begins anew" in caplog.text

        until(begun_anew)  # which does not mend it
        assert second.client.consumer is consumer, "the other partition is read on by it"
        server.append(topic, 0, b"meanwhile")
        assert read(first, 1)[0].values == [b"meanwhile"]
        assert (first.well, second.well) == (True, False)

        own.up(2)
        poll_until(second, lambda: second.well)
        server.append(topic, 1, b"after")
        assert read(second, 1)[0].values == [b"after"]


def test_an_error_of_one_partition_is_that_one_s_alone(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 2)
    server = embedded(broker)
    server.append(topic, 0, b"first")
    slow = kafka.Kafka(broker.address, {"queued.max.messages.kbytes": "1"})  # reads hardly ahead of its polls
    with opened(Partitions(slow), topic, 2) as (overtaken, other):
        for _ in range(12):  # the embedded broker keeps 5 MiB of a partition
            server.append(topic, 0, b"x" * 900_000)
        server.append(topic, 1, b"here")

        assert read(other, 1)[0].values == [b"here"]
        with pytest.raises(Refused, match=f'"{topic}" partition 0 does not have the offset'):
            read(overtaken, 13)
        server.append(topic, 1, b"still")
        assert read(other, 1)[0].values == [b"still"]


def test_a_question_that_fails_is_not_asked_of_the_same_client_again(broker: Broker, topic: str) -> None:
    broker.create_topic(topic, 1)
    offsets = kafka.GroupOffsets(kafka.Kafka(broker.address), "g")
    offsets._client.consumer.close()  # noqa: SLF001  # librdkafka is seldom so
    offsets._client.consumer = Stranded()  # noqa: SLF001

    with pytest.raises(Unavailable):
        offsets.end_offsets(topic, 1)

    assert offsets.end_offsets(topic, 1) == {0: 0}
    offsets.close()


def test_events_sent_during_an_outage_that_passes_are_delivered_once_and_in_order(topic: str) -> None:
    stream = made(topic)
    with Broker.start() as own:
        own.create_topic(topic, 1)
        with kafka.Producer(patient(own), stream) as producer:
            for number in range(300):
                producer.send(click("Ada", count=number))
                if number == 100:
                    own.down()
                if number == 200:
                    own.up()
        reader = Partitions(patient(own)).open(topic, 0, 1)
        values = [value for poll in read(reader, 300) for value in poll.values if value is not None]

        assert [stream.model.model_validate_json(value).model_dump()["count"] for value in values] == list(range(300))
        reader.close()
