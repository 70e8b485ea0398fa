"""One contract suite for canaries in the twin, the embedded broker and a real Kafka; then outages."""

import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pytest

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.canaries import CanaryWriter
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.partitions import records
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.event import CANARY_HEADER
from freshet.schemas.poll import Poll
from freshet.schemas.record import Record, header, partition_of

COUNT = 4
Places = dict[int, tuple[int, ...]]


class Writer(Protocol):
    def publish(self, records: Sequence[Record], delivered: Callable[[int, int, int], object]) -> None: ...


@dataclass(frozen=True)
class Cluster:
    open: Callable[[], Writer]
    create: Callable[[str], object]
    records: Callable[[str], Iterator[Poll]]


@pytest.fixture(params=["twin", "embedded", pytest.param("real", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "twin":
        log = MemoryLog()
        return Cluster(log.canaries, lambda topic: log.create_topics({topic: COUNT}), log.records)
    broker: Broker | None = request.getfixturevalue("broker") if request.param == "embedded" else None
    known = kafka.Kafka(request.getfixturevalue("real_kafka") if broker is None else broker.address)

    def create(topic: str) -> object:
        return kafka.create_topics(known, {topic: COUNT}) if broker is None else broker.create_topic(topic, COUNT)

    return Cluster(lambda: CanaryWriter(known), create, lambda topic: records(known, topic))


def canaries(topic: str, sequence: int) -> list[Record]:
    headers = ((CANARY_HEADER, str(sequence).encode()),)
    return [Record(topic, f"canary-{number}".encode(), b"{}", headers, 1_772_366_400_000) for number in range(9)]


def published(writer: Writer, records: Sequence[Record]) -> Places:
    places: Places = {}
    writer.publish(records, lambda index, *place: places.update({index: place}))
    return places


def test_each_canary_is_where_it_is_said_to_be_in_the_partition_of_its_key(cluster: Cluster) -> None:
    topic, writer = f"test-{uuid.uuid4().hex}", cluster.open()
    cluster.create(topic)
    records = canaries(topic, 17)

    places = [published(writer, records), published(writer, canaries(topic, 18))]

    found = {
        (poll.partition, int(offset)): (key, header(headers, CANARY_HEADER))
        for poll in cluster.records(topic)
        for offset, key, headers in zip(poll.offsets, poll.keys, poll.headers or (), strict=True)
    }
    expected = {
        place: (records[index].key, sequence)
        for told, sequence in zip(places, (b"17", b"18"), strict=True)
        for index, place in told.items()
    }
    assert 18 == len(expected)
    assert expected == found
    assert all(partition == partition_of(key or b"", COUNT) for (partition, _), (key, _) in found.items())


def test_a_twin_that_is_not_well_takes_nothing_until_it_is() -> None:
    log = MemoryLog()
    log.create_topics({"clicks": COUNT})
    log.well = False

    with pytest.raises(Unavailable, match="not well"):
        published(log.canaries(), canaries("clicks", 1))

    assert [] == [*log.records("clicks")]


def test_a_broker_that_is_away_is_named_and_those_of_before_are_not_sent_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    writer = CanaryWriter(kafka.Kafka(f"127.0.0.1:{port}", patience_s=0.5))

    for sequence in (1, 2):
        with pytest.raises(Unavailable, match=f"{port}.*refused.*; not delivered: 9 events"):
            published(writer, canaries("clicks", sequence))


def test_one_that_is_too_large_is_refused_and_the_others_are_delivered() -> None:
    with Broker.start() as broker:
        broker.create_topic("clicks", COUNT)
        large, places = Record("clicks", b"a", b"x" * 2_000_000), Places()

        with pytest.raises(Refused, match="too large"):
            CanaryWriter(kafka.Kafka(broker.address)).publish(
                [large, *canaries("clicks", 1)], lambda index, *place: places.update({index: place})
            )

        assert {*range(1, 10)} == places.keys()
