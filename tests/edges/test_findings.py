"""One contract suite for published findings in the twin, the embedded broker and a real Kafka; then outages."""

import json
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import pytest

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.findings import Findings
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.partitions import records
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.finding import FINDINGS_TOPIC, Alarm, Cause, Finding, Status
from freshet.schemas.poll import Poll

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Receiver(Protocol):
    def deliver(self, alarms: Sequence[Alarm]) -> None: ...


@dataclass(frozen=True)
class Cluster:
    open: Callable[[str], Receiver]
    records: Callable[[str], Iterator[Poll]]


def alarm(name: str, status: Status = Status.OPENED) -> Alarm:
    return Alarm(status, Finding("by_user", f"by_user.{name}", Cause.DTYPE, (), ({"entity": "ü"},), "…"), AT, AT)


@pytest.fixture(params=["twin", "embedded", pytest.param("real", marks=pytest.mark.kafka)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "twin":
        log = MemoryLog()
        log.create_topics({FINDINGS_TOPIC: 1})
        return Cluster(log.findings, log.records)
    broker: Broker | None = request.getfixturevalue("broker") if request.param == "embedded" else None
    address = request.getfixturevalue("real_kafka") if broker is None else broker.address
    known = kafka.Kafka(address)
    kafka.create_topics(known, {FINDINGS_TOPIC: 1})
    return Cluster(lambda project: Findings(known, project), lambda topic: records(known, topic))


def published(cluster: Cluster, project: str) -> list[tuple[str, object]]:
    pairs = [pair for poll in cluster.records(FINDINGS_TOPIC) for pair in zip(poll.keys, poll.values, strict=True)]
    told = [(key.decode(), json.loads(value)) for key, value in pairs if key is not None and value is not None]
    return [(key, value) for key, value in told if value["project"] == project]


def test_each_alarm_is_a_record_under_its_project_and_check(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    project = f"of {request.node.name} {uuid.uuid4().hex}"  # others, and earlier runs, share the topic
    findings = cluster.open(project)
    alarms = [alarm("a"), alarm("b"), alarm("a", Status.RESOLVED)]

    findings.deliver(alarms[:1])
    findings.deliver([])
    findings.deliver(alarms[1:])

    expected = [(f"{project}/{one.finding.check}", one.as_json(project)) for one in alarms]
    found = published(cluster, project)
    for check in ("a", "b"):  # of one key the order holds; the embedded broker has several partitions
        key = f"{project}/by_user.{check}"
        assert [pair for pair in expected if pair[0] == key] == [pair for pair in found if pair[0] == key]


def test_a_twin_that_is_not_well_takes_nothing() -> None:
    log = MemoryLog()
    log.create_topics({FINDINGS_TOPIC: 1})
    findings, log.well = log.findings("shop"), False

    with pytest.raises(Unavailable, match="not well"):
        findings.deliver([alarm("a")])

    assert [] == [*log.records(FINDINGS_TOPIC)]


def test_a_broker_that_is_away_is_named_with_the_cause() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = kafka.Kafka(f"127.0.0.1:{port}", patience_s=1.0)

    with pytest.raises(Unavailable, match=f"{port}.*refused"):
        Findings(known, "shop").deliver([alarm("a")])


def test_a_topic_that_nobody_made_is_refused_with_what_makes_it() -> None:
    with Broker.start() as broker, pytest.raises(Refused, match=r"freshet.findings.*freshet apply"):
        Findings(kafka.Kafka(broker.address), "shop").deliver([alarm("a")])


def test_a_broker_that_goes_away_after_the_first_alarm_is_noticed_by_the_second() -> None:
    with Broker.start() as broker:
        broker.create_topic(FINDINGS_TOPIC, 1)
        findings = Findings(kafka.Kafka(broker.address, patience_s=10.0), "shop")
        findings.deliver([alarm("a")])

    with pytest.raises(Unavailable, match="not"):
        findings.deliver([alarm("b")])
    with pytest.raises(Unavailable, match="not"):
        findings.deliver([alarm("b")])
