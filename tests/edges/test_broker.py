"""The embedded broker: there while its parent is, and gone without a trace however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.kafka import Kafka
from freshet.schemas.errors import Unavailable

LIMIT_S = 30.0
PARENT = """
import sys
from freshet.flows.edges.broker import Broker
started = Broker.start()
print(started.pid, flush=True)
sys.stdin.read()
"""


def gone(pid: int) -> bool:
    """Wait until a process has ended; a zombie has."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            with Path(f"/proc/{pid}/stat").open(encoding="utf-8") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_a_topic_has_as_many_partitions_as_asked_for(broker: Broker) -> None:
    broker.create_topic("six", 6)
    broker.create_topic("six", 3)

    assert kafka.partitions_count(Kafka(broker.address), "six") == 6


def test_two_brokers_share_nothing(broker: Broker) -> None:
    broker.create_topic("mine", 2)
    with Broker.start() as other:
        assert other.address != broker.address
        other.create_topic("mine", 5)
        assert kafka.partitions_count(Kafka(other.address), "mine") == 5


def test_closing_ends_the_child() -> None:
    with Broker.start() as started:
        pid = started.pid

    assert gone(pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_child_ends_with_its_parent_however_that_ends(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, how)
        parent.wait(LIMIT_S)

        assert gone(pid)


def test_a_broker_that_was_killed_says_so() -> None:
    started = Broker.start()
    os.kill(started.pid, signal.SIGKILL)
    assert gone(started.pid)

    with pytest.raises(Unavailable, match=f"embedded broker {started.address} made no topic late: it has ended"):
        started.create_topic("late", 1)
    started.close()
