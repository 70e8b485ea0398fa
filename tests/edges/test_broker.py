"""The embedded broker comes up, obeys, and is never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from confluent_kafka.admin import AdminClient

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.schemas.errors import Unavailable

LIMIT_S = 30.0


def refuses(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LIMIT_S).close()
    except ConnectionRefusedError:
        return True
    return False


def await_refusal(address: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not refuses(address):
        assert time.monotonic() < deadline, f"{address} still answers"


def test_a_broker_listens_on_loopback_and_is_gone_once_closed() -> None:
    with Broker.start() as broker:
        assert broker.address.startswith("127.0.0.1:")
        assert not refuses(broker.address)

    assert refuses(broker.address)
    broker.close()


def test_a_topic_has_its_partitions_and_is_made_once() -> None:
    with Broker.start() as broker:
        broker.create_topic("edits", 12)
        broker.create_topic("edits", 3)

        assert kafka.partitions_count(kafka.Kafka(broker.address), "edits") == 12


def test_brokers_know_nothing_of_each_other() -> None:
    with Broker.start() as one, Broker.start() as other:
        one.create_topic("edits", 1)

        assert "edits" not in AdminClient({"bootstrap.servers": other.address}).list_topics(timeout=LIMIT_S).topics


def test_the_edge_makes_topics_without_the_owner_of_the_broker() -> None:
    with Broker.start() as broker:
        cluster = kafka.Kafka(broker.address)

        assert kafka.create_topics(cluster, {"edits": 4}) == {"edits": "created"}
        assert kafka.create_topics(cluster, {"edits": 4}) == {"edits": "exists"}


def test_down_drops_connections_and_up_keeps_the_topics() -> None:
    with Broker.start() as broker:
        broker.create_topic("edits", 1)
        cluster = kafka.Kafka(broker.address, patience_s=0.5)
        broker.down()
        with pytest.raises(Unavailable):
            kafka.partitions_count(cluster, "edits")
        broker.up()

        assert kafka.partitions_count(kafka.Kafka(broker.address), "edits") == 1


def test_a_broker_that_was_killed_is_unavailable_and_can_be_closed() -> None:
    with Broker.start() as broker:
        os.kill(broker.pid, signal.SIGKILL)

        with pytest.raises(Unavailable, match="has ended"):
            broker.create_topic("edits", 1)


PARENT = """
import sys
from freshet.flows.edges.broker import Broker
with Broker.start() as broker:
    print(broker.address, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_broker_ends_with_its_parent_however_that_ends(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert not refuses(address)
        parent.send_signal(number)
        parent.wait(LIMIT_S)

    await_refusal(address)
