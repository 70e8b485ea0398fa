"""Kafka: one contract, kept by the embedded broker and by a real cluster."""

import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Producer as RawProducer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import AwareDatetime

from freshet.flows.edges import kafka
from freshet.flows.edges.kafka import GroupOffsets, Kafka, PartitionReader, Producer
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.event import Contract, Event, Stream, contract
from freshet.schemas.poll import Poll

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIMIT = timedelta(seconds=30)


@dataclass(frozen=True)
class Cluster:
    kafka: Kafka
    contract: Contract

    @property
    def topic(self) -> str:
        return self.contract.stream.topic

    def producer(self) -> Producer:
        return Producer(self.kafka, self.contract)

    def send(self, *numbers: int, user: str = "ada") -> None:
        with self.producer() as producer:
            for number in numbers:
                producer.send({"at": NOON, "user": user, "n": number})

    def read(self, partition: int, count: int, start: int | None = None) -> list[Poll]:
        """Read so many messages of a partition, in polls of at most three."""
        reader = PartitionReader(self.kafka, self.topic, partition, 3, start)
        polls: list[Poll] = []
        deadline = time.monotonic() + LIMIT.total_seconds()
        while sum(len(poll.values) for poll in polls) < count:
            assert time.monotonic() < deadline, polls
            if (poll := reader.poll(3, 0.1)) is not None:
                polls.append(poll)
        reader.close()
        return polls


def made(topic: str, partitions: int = 3) -> Contract:
    class Click(Event):
        stream = Stream(topic, "user", "at", version=7, partitions=partitions)

        at: AwareDatetime
        user: str | None
        n: int

    found, problems = contract("clicks", Click)
    assert found is not None, problems
    return found


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    topic = f"clicks_{uuid.uuid4().hex[:12]}"
    if request.param == "embedded":
        broker = request.getfixturevalue("broker")
        broker.create_topic(topic, 3)
        yield Cluster(Kafka(broker.address), made(topic))
        return
    address = Kafka(request.getfixturevalue("real_kafka"))
    assert kafka.create_topics(address, {topic: 3}) == {topic: "created"}
    yield Cluster(address, made(topic))
    delete(address, topic)


def delete(address: Kafka, topic: str) -> None:
    admin = AdminClient(address.config())
    admin.delete_topics([topic])[topic].result()


def partition_of(cluster: Cluster, user: str) -> int:
    ends = GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3)
    cluster.send(0, user=user)
    grown = GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3)
    (partition,) = [part for part in grown if grown[part] > ends[part]]
    return partition


def test_what_is_sent_is_read_back_in_order_with_key_version_and_time(cluster: Cluster) -> None:
    with cluster.producer() as producer:
        for number in range(8):
            producer.send({"at": NOON, "user": "ada", "n": number}, timestamp_ms=1_772_366_400_000 + number)
    (partition,) = [p for p, end in GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3).items() if end]

    polls = cluster.read(partition, 8)

    assert [len(poll.values) for poll in polls] == [len(poll.offsets) for poll in polls]
    assert [json.loads(value)["n"] for poll in polls for value in poll.values if value] == list(range(8))
    assert {key for poll in polls for key in poll.keys} == {b"ada"}
    assert {version for poll in polls for version in poll.versions} == {b"7"}
    assert [time for poll in polls for time in poll.timestamps_ms] == list(range(1_772_366_400_000, 1_772_366_400_008))
    assert [offset for poll in polls for offset in poll.offsets] == list(range(8))
    assert {(poll.topic, poll.partition, poll.partitions_count) for poll in polls} == {(cluster.topic, partition, 3)}
    assert polls[-1].end_offset == 8
    assert polls[-1].at_end


def test_reading_starts_where_it_is_told_to(cluster: Cluster) -> None:
    cluster.send(*range(6))
    (partition,) = [p for p, end in GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3).items() if end]

    assert cluster.read(partition, 2, start=4)[0].offsets.tolist() == [4, 5]


def test_reading_at_the_end_waits_for_what_comes(cluster: Cluster) -> None:
    partition = partition_of(cluster, "ada")
    reader = PartitionReader(cluster.kafka, cluster.topic, partition, 3, 1)
    assert reader.at_end

    cluster.send(7)
    deadline = time.monotonic() + LIMIT.total_seconds()
    while (poll := reader.poll(10, 0.1)) is None:
        assert time.monotonic() < deadline
    reader.close()

    assert poll.offsets.tolist() == [1]


def test_messages_of_other_producers_come_as_they_are(cluster: Cluster) -> None:
    raw = RawProducer(cluster.kafka.config())
    raw.produce(cluster.topic, None, b"k", partition=1)
    raw.produce(cluster.topic, b"\xff\x00", None, partition=1, headers=[("freshet-version", b"9"), ("other", None)])
    assert raw.flush(LIMIT.total_seconds()) == 0

    (poll,) = cluster.read(1, 2)

    assert (poll.values, poll.keys, poll.versions) == ([None, b"\xff\x00"], [b"k", None], [None, b"9"])


@pytest.mark.parametrize("start", [4, 1_000_000])
def test_an_offset_that_was_never_there_is_refused(cluster: Cluster, start: int) -> None:
    partition = partition_of(cluster, "ada")

    with pytest.raises(Refused) as raised:
        PartitionReader(cluster.kafka, cluster.topic, partition, 3, start)

    (problem,) = raised.value.problems
    assert problem.name == cluster.topic
    assert problem.fact == f"partition {partition} no longer has offset {start}"
    assert problem.got == "offsets 0 to 1"


@pytest.mark.kafka
def test_a_resume_offset_that_kafka_has_deleted_is_refused_with_what_is_left(real_kafka: str) -> None:
    topic, address = f"clicks_{uuid.uuid4().hex[:12]}", Kafka(real_kafka)
    kafka.create_topics(address, {topic: 1})
    cluster = Cluster(address, made(topic, 1))
    cluster.send(*range(10))
    admin = AdminClient(address.config())
    for deleted in admin.delete_records([TopicPartition(topic, 0, 6)]).values():
        deleted.result()

    with pytest.raises(
        Refused, match=rf'topic "{topic}" partition 0 no longer has offset 3; got offsets 6 to 10\. Hint: '
    ):
        PartitionReader(address, topic, 0, 1, 3)

    assert cluster.read(0, 4)[0].offsets[0] == 6
    delete(address, topic)


@pytest.mark.kafka
def test_an_offset_that_goes_while_it_waits_to_be_read_is_refused_not_jumped(real_kafka: str) -> None:
    topic, address = f"clicks_{uuid.uuid4().hex[:12]}", Kafka(real_kafka)
    kafka.create_topics(address, {topic: 1})
    cluster = Cluster(address, made(topic, 1))
    cluster.send(*range(10))
    reader = PartitionReader(address, topic, 0, 1, 10)
    admin = AdminClient(address.config())
    cluster.send(*range(10, 20))
    for deleted in admin.delete_records([TopicPartition(topic, 0, 20)]).values():
        deleted.result()
    cluster.send(20)

    read = list[int]()
    deadline = time.monotonic() + LIMIT.total_seconds()
    try:
        while time.monotonic() < deadline and 20 not in read:
            poll = reader.poll(1, 0.1)
            read += [] if poll is None else poll.offsets.tolist()
    except Refused as refused:
        assert re.fullmatch(rf"partition 0 no longer has offset {10 + len(read)}", refused.problems[0].fact)
        assert refused.problems[0].got == "offsets 20 to 21"
    assert read == list(range(10, 10 + len(read)))  # what was fetched before it was deleted may still come
    delete(address, topic)


def test_what_a_group_has_committed_is_known_to_every_client(cluster: Cluster) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    first = GroupOffsets(cluster.kafka, group)
    assert first.committed(cluster.topic, 3) == {0: None, 1: None, 2: None}

    first.commit(cluster.topic, 1, 0)
    first.commit(cluster.topic, 2, 41)
    first.close()

    assert GroupOffsets(cluster.kafka, group).committed(cluster.topic, 3) == {0: None, 1: 0, 2: 41}
    assert GroupOffsets(cluster.kafka, f"{group}-other").committed(cluster.topic, 3) == {0: None, 1: None, 2: None}


def test_end_offsets_count_what_was_sent(cluster: Cluster) -> None:
    asked = GroupOffsets(cluster.kafka, "any")
    assert asked.end_offsets(cluster.topic, 3) == {0: 0, 1: 0, 2: 0}

    cluster.send(*range(5))

    assert sorted(asked.end_offsets(cluster.topic, 3).values()) == [0, 0, 5]


def murmur2(key: bytes) -> int:
    """Kafka's hash (org.apache.kafka.common.utils.Utils.murmur2), as a signed 32-bit number."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(key)) & mask
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    rest = key[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - 2**32 if h & 2**31 else h


@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_the_hash_of_this_test_is_kafkas(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected


def test_a_key_goes_where_javas_producers_put_it(cluster: Cluster) -> None:
    users = ["21", "ada", "Zoë", "", *(f"user {index}" for index in range(30))]
    with cluster.producer() as producer:
        for user in users:
            producer.send({"at": NOON, "user": user, "n": 0})
    ends = GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3)

    found = {
        (key or b"").decode(): partition
        for partition, end in ends.items()
        for poll in (cluster.read(partition, end) if end else ())
        for key in poll.keys
    }
    keyed = [user for user in users if user]
    assert {user: (murmur2(user.encode()) & 0x7FFFFFFF) % 3 for user in keyed} == {user: found[user] for user in keyed}


def test_an_event_that_breaks_its_contract_is_refused_and_not_sent(cluster: Cluster) -> None:
    with cluster.producer() as producer:
        with pytest.raises(Refused) as raised:
            producer.send(b'{"at": "2026-03-01T12:00:00", "user": 7, "n": "1"}')
        for broken in (b"", b"{", "null", b"\xff", {"user": "ada"}):
            with pytest.raises(Refused):
                producer.send(broken)

    assert {problem.name for problem in raised.value.problems} == {"at", "user", "n"}
    assert sum(GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3).values()) == 0


def test_a_model_a_mapping_and_json_are_the_same_event(cluster: Cluster) -> None:
    document: dict[str, object] = {"at": NOON, "user": "ada", "n": 1}
    with cluster.producer() as producer:
        producer.send(cluster.contract.model.model_validate(document))
        producer.send(document)
        producer.send('{"at": "2026-03-01T12:00:00Z", "user": "ada", "n": 1, "colour": "red"}')
        delivered = producer.flush()
    (partition,) = [p for p, end in GroupOffsets(cluster.kafka, "any").end_offsets(cluster.topic, 3).items() if end]

    values = [value for poll in cluster.read(partition, 3) for value in poll.values]

    assert delivered.count == 3
    assert len(set(values)) == 1


def test_partitions_are_counted_and_a_topic_that_is_not_there_is_refused(cluster: Cluster) -> None:
    assert kafka.partitions_count(cluster.kafka, cluster.topic) == 3


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_refused_and_not_made(real_kafka: str) -> None:
    for _ in range(2):
        with pytest.raises(
            Refused, match=f'topic "no_such" cannot be read at {real_kafka}; got .*Unknown topic.*freshet apply'
        ):
            kafka.partitions_count(Kafka(real_kafka), "no_such")


@pytest.mark.kafka
def test_making_topics_again_changes_nothing(cluster: Cluster) -> None:
    assert kafka.create_topics(cluster.kafka, {cluster.topic: 9}) == {cluster.topic: "exists"}
    assert kafka.partitions_count(cluster.kafka, cluster.topic) == 3


@pytest.fixture
def nobody() -> Kafka:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Kafka(f"127.0.0.1:{free.getsockname()[1]}", {"sasl.password": "secret"})


def test_a_broker_that_is_not_there_is_named_with_its_address(nobody: Kafka) -> None:
    calls = {
        "count": lambda: kafka.partitions_count(nobody, "t"),
        "make": lambda: kafka.create_topics(nobody, {"t": 1}),
        "read": lambda: PartitionReader(nobody, "t", 0, 1),
        "ends": lambda: GroupOffsets(nobody, "g").end_offsets("t", 1),
        "committed": lambda: GroupOffsets(nobody, "g").committed("t", 1),
    }
    with ThreadPoolExecutor() as threads:  # each waits ten seconds
        errors = {name: threads.submit(call).exception for name, call in calls.items()}
        for name, error in errors.items():
            assert isinstance(error(), Unavailable), name
            assert re.match(f'kafka "{nobody.brokers}" is not available: .+ Hint: ', str(error())), name
            assert "secret" not in str(error()), name


def test_an_event_that_nobody_takes_is_never_dropped_in_silence(nobody: Kafka) -> None:
    producer = Producer(nobody, made("t"))
    producer.send({"at": NOON, "user": "ada", "n": 1})

    with pytest.raises(Unavailable, match=f'kafka "{nobody.brokers}" is not available: 1 events are not confirmed: .+'):
        producer.flush(1.0)


def test_an_event_that_the_cluster_gives_up_on_is_an_error_at_the_end(nobody: Kafka) -> None:
    impatient = replace(nobody, options={"delivery.timeout.ms": "200", "linger.ms": "0"})

    with (
        pytest.raises(Unavailable, match="1 events were refused, the first: t: "),
        Producer(impatient, made("t")) as producer,
    ):
        producer.send({"at": NOON, "user": "ada", "n": 1})


def test_options_are_never_printed(nobody: Kafka) -> None:
    assert "secret" not in repr(nobody)
