"""One contract suite for the dead letters in the twin, the embedded broker and a real Kafka; then what only brokers have."""

import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest
from confluent_kafka import Producer as RawProducer

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.dead_letters import DeadLetters, Redriver
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.partitions import Log, records
from freshet.flows.steps.redrive import Letter, Wanted, gather
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.poll import Poll
from freshet.schemas.record import Headers, Record, partition_of
from freshet.schemas.rejects import Reason, Reject, dead_letter

LIMIT_S = 30.0
GROUP = "freshet-test-materializer"


class Sink(Protocol):
    def put(self, rejects: Sequence[Reject]) -> None: ...
    def flush(self) -> None: ...


class Resender(Protocol):
    def send(self, rejects: Sequence[Reject]) -> None: ...
    def close(self) -> None: ...


class Cluster(Protocol):
    """What the suite asks of a twin or a broker."""

    def create_topics(self, topics: Mapping[str, int]) -> dict[str, str]: ...
    def dead_letters(self, group: str) -> Sink: ...
    def redriver(self, group: str) -> Resender: ...
    def records(self, topic: str) -> Iterator[Poll]: ...
    def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]: ...
    def span(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Poll]: ...


@dataclass(frozen=True)
class RealCluster:
    """A broker, by the edge's own functions."""

    kafka: kafka.Kafka
    make_topic: Callable[[str, int], None] | None = None

    def create_topics(self, topics: Mapping[str, int]) -> dict[str, str]:
        for topic, count in topics.items() if self.make_topic else ():
            assert self.make_topic is not None
            self.make_topic(topic, count)
        return kafka.create_topics(self.kafka, topics)

    def dead_letters(self, group: str) -> DeadLetters:
        return DeadLetters(self.kafka, group)

    def redriver(self, group: str) -> Redriver:
        return Redriver(self.kafka, group)

    def records(self, topic: str) -> Iterator[Poll]:
        return records(self.kafka, topic)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return Log(self.kafka).bounds(topic)

    def span(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Poll]:
        return Log(self.kafka).span(topic, partition, start, stop)


@pytest.fixture(params=["twin", "embedded", pytest.param("real", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "twin":
        return MemoryLog()
    if request.param == "embedded":
        broker: Broker = request.getfixturevalue("broker")
        return RealCluster(kafka.Kafka(broker.address), broker.create_topic)
    return RealCluster(kafka.Kafka(request.getfixturevalue("real_kafka")))


@pytest.fixture
def topic(cluster: Cluster) -> str:
    """A stream's topic of three partitions, and that of its dead letters."""
    name = f"test-{uuid.uuid4().hex}"
    cluster.create_topics({name: 3, f"{name}.dlq": 3})
    return name


def reject(topic: str, offset: int, key: bytes | None = b"ada", value: bytes | None = b"{", **changes: Any) -> Reject:
    headers = (("freshet-version", b"1"), ("trace", None), ("trace", b"\xff"))
    made = Reject(topic, 2, offset, Reason.CONTRACT, "it is broken: ü", key, value, headers, 1_700_000_000_000 + offset)
    return replace(made, **changes)


def letters(cluster: Cluster, topic: str, wanted: Wanted | None = None) -> list[Letter]:
    found = gather(topic, cluster.records(f"{topic}.dlq"), wanted or Wanted())
    assert found.others_count == 0
    return sorted(found.letters, key=lambda letter: letter.reject.offset)


def everything(cluster: Cluster, topic: str) -> list[tuple[int, bytes | None, bytes | None, Headers, int]]:
    """Return partition, key, value, headers and time of every record."""
    return [
        (poll.partition, key, value, tuple((poll.headers[index] if poll.headers else None) or ()), int(time_ms))
        for poll in cluster.records(topic)
        for index, (key, value, time_ms) in enumerate(zip(poll.keys, poll.values, poll.timestamps_ms, strict=True))
    ]


def test_a_reject_is_kept_byte_for_byte_with_headers_and_time(cluster: Cluster, topic: str) -> None:
    rejects = [
        reject(topic, 1, b"\x00\xff", b"\x00\xff not JSON"),
        reject(topic, 2, None, b""),
        reject(topic, 3, b"", None),
    ]
    sink = cluster.dead_letters(GROUP)

    sink.put(rejects[:2])
    sink.put([])
    sink.put(rejects[2:])
    sink.flush()

    assert [letter.reject for letter in letters(cluster, topic)] == rejects
    written = {headers for *_, headers, _ in everything(cluster, f"{topic}.dlq")}
    assert written == {dead_letter(one, GROUP).headers for one in rejects}


def test_a_dead_letter_is_in_the_partition_of_its_key(cluster: Cluster, topic: str) -> None:
    keys = [f"user {number} ü".encode() for number in range(12)]
    sink = cluster.dead_letters(GROUP)
    sink.put([reject(topic, offset, key) for offset, key in enumerate(keys)])
    sink.flush()

    found = {key: partition for partition, key, *_ in everything(cluster, f"{topic}.dlq")}
    assert found == {key: partition_of(key, 3) for key in keys}
    assert len(set(found.values())) == 3


def test_rejects_of_several_topics_go_to_several_dead_letters(cluster: Cluster, topic: str) -> None:
    other = f"{topic}-other"
    cluster.create_topics({f"{other}.dlq": 1})
    sink = cluster.dead_letters(GROUP)
    sink.put([reject(topic, 1), reject(other, 1)])
    sink.flush()

    assert [len(letters(cluster, name)) for name in (topic, other)] == [1, 1]


def test_without_a_time_of_its_own_a_letter_has_that_of_its_writing(cluster: Cluster, topic: str) -> None:
    sink = cluster.dead_letters(GROUP)
    sink.put([reject(topic, 1, timestamp_ms=-1)])
    sink.flush()

    assert letters(cluster, topic)[0].reject.timestamp_ms > 1_767_225_600_000  # 2026


def test_an_event_of_long_ago_is_kept_as_long_as_any(cluster: Cluster, topic: str) -> None:
    """Kafka deletes by a record's time."""
    sink = cluster.dead_letters(GROUP)
    sink.put([reject(topic, 1, timestamp_ms=5)])
    sink.flush()

    [kept] = [int(time) for poll in cluster.records(f"{topic}.dlq") for time in poll.timestamps_ms]
    assert kept > 1_767_225_600_000  # 2026
    assert letters(cluster, topic)[0].reject.timestamp_ms == 5


def test_dead_letters_without_a_topic_are_refused_at_once(cluster: Cluster) -> None:
    topic = f"test-{uuid.uuid4().hex}"
    sink = cluster.dead_letters(GROUP)

    with pytest.raises(Refused, match=rf'topic "{topic}\.dlq" .*freshet apply'):
        sink.put([reject(topic, 1)])


def test_a_flush_of_nothing_is_done(cluster: Cluster) -> None:
    cluster.dead_letters(GROUP).flush()


def test_a_redriven_event_is_as_it_was_and_leaves_a_receipt(cluster: Cluster, topic: str) -> None:
    rejects = [reject(topic, 1, b"\x00\xff", b"\x00\xff"), reject(topic, 2, None, b""), reject(topic, 3, b"k", None)]
    sink = cluster.dead_letters(GROUP)
    sink.put(rejects)
    sink.flush()

    redriver = cluster.redriver(topic)
    redriver.send(rejects[:2])
    redriver.send(rejects[2:])
    redriver.close()

    sent = sorted(everything(cluster, topic), key=lambda record: record[3][-1][1] or b"")
    assert [record[1:3] for record in sent] == [(one.key, one.value) for one in rejects]
    assert [record[3] for record in sent] == [
        (*one.headers, ("freshet.redriven", f"{topic}/2@{one.offset}".encode())) for one in rejects
    ]
    assert all(time_ms > 1_767_225_600_000 for *_, time_ms in sent)
    assert letters(cluster, topic) == []
    assert letters(cluster, topic, Wanted(redriven_too=True)) == [Letter(one, redriven=True) for one in rejects]


def test_all_that_is_there_by_now_is_given_and_then_it_ends(cluster: Cluster, topic: str) -> None:
    sink = cluster.dead_letters(GROUP)
    sink.put([reject(topic, number, str(number).encode()) for number in range(5000)])
    sink.flush()

    assert len(everything(cluster, f"{topic}.dlq")) == 5000
    assert everything(cluster, topic) == []


def test_a_part_of_a_partition_is_given_from_an_offset_up_to_another(cluster: Cluster, topic: str) -> None:
    sink = cluster.dead_letters(GROUP)
    sink.put([reject(topic, offset, value=b"%d" % offset) for offset in range(6)])
    sink.flush()
    place = partition_of(b"ada", 3)

    bounds = cluster.bounds(f"{topic}.dlq")
    found = [
        (int(offset), value)
        for poll in cluster.span(f"{topic}.dlq", place, 2, 5)
        for offset, value in zip(poll.offsets, poll.values, strict=True)
        if offset < 5
    ]

    assert {part: (0, 6 if part == place else 0) for part in range(3)} == bounds
    assert [(2, b"2"), (3, b"3"), (4, b"4")] == found


def test_the_twin_keeps_nothing_before_a_flush_and_says_when_it_cannot() -> None:
    twin = MemoryLog()
    twin.create_topics({"t": 1, "t.dlq": 1})
    sink = twin.dead_letters(GROUP)
    twin.well = False
    sink.put([reject("t", 1)])

    with pytest.raises(Unavailable):
        sink.flush()
    twin.well = True
    assert everything(twin, "t.dlq") == []
    sink.flush()
    assert len(everything(twin, "t.dlq")) == 1


# What only brokers have


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def server(request: pytest.FixtureRequest) -> RealCluster:
    if request.param == "embedded":
        broker: Broker = request.getfixturevalue("broker")
        return RealCluster(kafka.Kafka(broker.address), broker.create_topic)
    return RealCluster(kafka.Kafka(request.getfixturevalue("real_kafka")))


def made(server: RealCluster) -> str:
    name = f"test-{uuid.uuid4().hex}"
    server.create_topics({name: 1, f"{name}.dlq": 1})
    return name


def test_a_full_queue_is_waited_for(server: RealCluster) -> None:
    topic = made(server)
    sink = DeadLetters(replace(server.kafka, options={"queue.buffering.max.messages": "10"}), GROUP)
    sink.put([reject(topic, number) for number in range(500)])
    sink.flush()

    assert len(letters(server, topic)) == 500


def test_an_event_larger_than_the_clients_default_is_kept(broker: Broker) -> None:
    server = RealCluster(kafka.Kafka(broker.address), broker.create_topic)
    topic = made(server)
    sink = server.dead_letters(GROUP)
    sink.put([reject(topic, 1, value=b"x" * 1_040_000)])
    sink.flush()

    assert len(letters(server, topic)) == 1


def test_an_event_too_large_for_this_client_is_named_with_what_to_raise(server: RealCluster) -> None:
    topic = made(server)
    small = replace(server.kafka, options={"message.max.bytes": "10000"})

    with pytest.raises(Refused, match=rf'dead letter "{topic}/2@1" is too large .*20000 bytes.*message\.max\.bytes'):
        DeadLetters(small, GROUP).put([reject(topic, 1, value=b"x" * 20_000)])


@pytest.mark.kafka
def test_an_event_too_large_for_the_cluster_is_named_with_what_to_raise(real_kafka: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka))
    topic = made(server)
    sink = server.dead_letters(GROUP)
    sink.put([reject(topic, 1, value=b"x" * 2_000_000), reject(topic, 2)])

    with pytest.raises(Refused, match=rf'dead letter "{topic}/2@1" was refused .*too large.*message\.max\.bytes'):
        sink.flush()
    assert [letter.reject.offset for letter in letters(server, topic)] == [2]


def test_a_broker_that_is_not_there_is_named_with_the_root_cause() -> None:
    with socket.socket() as taken:  # bound and never listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        nowhere = kafka.Kafka(f"127.0.0.1:{taken.getsockname()[1]}", patience_s=1.0)

        for use in (lambda: DeadLetters(nowhere, GROUP).put([reject("t", 1)]), lambda: Redriver(nowhere, GROUP)):
            with pytest.raises(Unavailable, match=r'kafka "127.* is not available: .*Connection refused'):
                use()


def test_letters_that_an_outage_loses_are_unavailable() -> None:
    with Broker.start() as own:
        server = RealCluster(kafka.Kafka(own.address, patience_s=10.0), own.create_topic)  # waited out at the end
        topic = made(server)
        sink = server.dead_letters(GROUP)
        sink.put([reject(topic, 1)])
        sink.flush()
        own.down()
        sink.put([reject(topic, 2)])

        with pytest.raises(
            Unavailable, match=rf'kafka "{own.address}" is not available: .*; not delivered: 1 dead letters'
        ):
            sink.flush()


class Hasty(kafka.Kafka):
    """A cluster whose answers are asked for again soon, as one that is slow."""

    answer_limit_s = 0.2  # type: ignore[assignment]  # a property there


def test_a_transaction_whose_abort_takes_long_hinders_no_later_one() -> None:
    with Broker.start() as own:
        own.create_topic("letters", 1)
        outbox = kafka.Outbox(Hasty(own.address, patience_s=LIMIT_S), "dead letter", transactional_id="redrive")
        outbox.take_over()
        back = threading.Timer(2.0, own.up)  # ten answers late

        def send_in_vain() -> None:
            with outbox.transaction():
                outbox.send(Record("letters", None, b"1"), "1")
                outbox.flush()
                own.down()
                back.start()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            send_in_vain()
        back.join()

        with outbox.transaction():
            outbox.send(Record("letters", None, b"2"), "2")


@pytest.mark.kafka
def test_an_event_and_its_receipt_are_there_together_or_not_at_all(real_kafka: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka))
    topic = made(server)
    redriver = server.redriver(topic)

    with pytest.raises(Refused, match=r"too large.*message\.max\.bytes"):
        redriver.send([reject(topic, 1), reject(topic, 2, value=b"x" * 2_000_000), reject(topic, 3)])
    assert everything(server, topic) == []
    assert everything(server, f"{topic}.dlq") == []

    redriver.send([reject(topic, 1)])
    assert len(everything(server, topic)) == len(everything(server, f"{topic}.dlq")) == 1


@pytest.mark.kafka
def test_of_two_that_redrive_at_once_the_earlier_can_commit_nothing(real_kafka: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka))
    topic = made(server)
    earlier = server.redriver(topic)
    earlier.send([reject(topic, 1)])
    later = server.redriver(topic)

    with pytest.raises(Unavailable, match=r"(?i)fenced"):
        earlier.send([reject(topic, 2)])
    later.send([reject(topic, 2)])
    assert len(everything(server, topic)) == 2


@pytest.mark.kafka
def test_what_another_has_not_committed_is_neither_read_nor_waited_for(real_kafka: str) -> None:
    server = RealCluster(kafka.Kafka(real_kafka))
    topic = made(server)
    sink = server.dead_letters(GROUP)
    sink.put([reject(topic, 1)])
    sink.flush()
    open_one = RawProducer(server.kafka.config(transactional_id=f"{topic}-open"))
    open_one.init_transactions(LIMIT_S)
    open_one.begin_transaction()
    open_one.produce(f"{topic}.dlq", b"uncommitted")
    open_one.flush(LIMIT_S)

    assert len(everything(server, f"{topic}.dlq")) == 1
    open_one.abort_transaction(LIMIT_S)
