"""Couriers: who sends never waits, nothing is lost to an outage, and what can't be delivered is counted."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from freshet.flows.courier import Courier
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.webhook import MemoryWebhook
from freshet.schemas.errors import Unavailable
from freshet.schemas.finding import FINDINGS_TOPIC, Alarm, Cause, Finding, Status

AT, LIMIT, LIMIT_S = datetime(2026, 3, 1, 12, tzinfo=UTC), timedelta(seconds=30), 30.0
AT_ONCE_S = 0.001


def alarm(number: int) -> Alarm:
    return Alarm(Status.OPENED, Finding("v", f"v.{number}", Cause.DTYPE, (), (), "…"), AT, AT)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def log() -> Iterator[MemoryLog]:
    made = MemoryLog()
    made.create_topics({FINDINGS_TOPIC: 1})
    yield made


def told(cluster: MemoryLog) -> list[bytes | None]:
    return [key for poll in cluster.records(FINDINGS_TOPIC) for key in poll.keys]


def keys(*numbers: int) -> list[bytes]:
    return [f"shop/v.{number}".encode() for number in numbers]


def test_alarms_arrive_in_their_order() -> None:
    with log() as cluster:
        courier = Courier("topic", cluster.findings("shop"))

        for number in range(20):
            courier.send([alarm(number)])
        courier.close(LIMIT)

        assert keys(*range(20)) == told(cluster)


def test_an_outage_loses_nothing_and_its_failures_are_counted() -> None:
    failures: list[None] = []
    with log() as cluster:
        cluster.well = False
        courier = Courier(
            "topic", cluster.findings("shop"), first_pause_s=AT_ONCE_S, on_failure=lambda: failures.append(None)
        )
        courier.send([alarm(1)])
        until(lambda: len(failures) > 3)
        courier.send([alarm(2)])
        assert "not well" in courier.trouble

        cluster.well = True
        until(lambda: courier.waiting_count == 0)

        assert keys(1, 2) == told(cluster)
        until(lambda: courier.trouble == "")
        courier.close(LIMIT)


def test_after_its_last_attempt_a_batch_is_dropped_and_the_next_is_delivered() -> None:
    dropped: list[int] = []
    webhook = MemoryWebhook("shop")
    webhook.well = False
    courier = Courier("webhook", webhook, attempts_count=3, first_pause_s=AT_ONCE_S, on_drop=dropped.append)

    courier.send([alarm(1), alarm(2)])
    until(lambda: dropped == [2])
    webhook.well = True
    courier.send([alarm(3)])
    courier.close(LIMIT)

    assert 1 == len(webhook.bodies)
    assert [2] == dropped


def test_what_waits_is_bounded_and_the_oldest_go() -> None:
    dropped: list[int] = []
    with log() as cluster:
        cluster.well = False
        courier = Courier(
            "topic", cluster.findings("shop"), kept_count=3, first_pause_s=AT_ONCE_S, on_drop=dropped.append
        )
        for number in range(10):
            courier.send([alarm(number)])
        assert 3 == courier.waiting_count
        assert 7 == sum(dropped)

        cluster.well = True
        courier.close(LIMIT)

        assert keys(7, 8, 9) == told(cluster)[-3:]


class Hanging:
    """A receiver that does not come back."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def deliver(self, alarms: Sequence[Alarm]) -> None:
        del alarms
        self.asked.set()
        self.released.wait(LIMIT_S)
        raise Unavailable("it hung")


def test_who_sends_does_not_wait_for_a_receiver_that_hangs_nor_does_the_end() -> None:
    receiver, dropped = Hanging(), list[int]()
    courier = Courier("webhook", receiver, on_drop=dropped.append)
    courier.send([alarm(1)])
    assert receiver.asked.wait(LIMIT_S)

    courier.send([alarm(2)])
    courier.close(timedelta(seconds=0.01))

    assert [2] == dropped
    receiver.released.set()
    courier.close(LIMIT)  # what it says still, it says to this test


@pytest.mark.parametrize("well", [True, False])
def test_the_end_is_one_last_attempt(well: bool) -> None:  # noqa: FBT001
    dropped: list[int] = []
    with log() as cluster:
        cluster.well = well
        courier = Courier("topic", cluster.findings("shop"), on_drop=dropped.append)
        courier.send([alarm(1)])
        courier.close(LIMIT)

        assert (keys(1), []) == (told(cluster), dropped) if well else ([], [1]) == (told(cluster), dropped)
