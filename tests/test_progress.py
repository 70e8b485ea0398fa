"""How far the online store is, as it stands there while real processes run, rest and end."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stack import PARTITIONS, STREAM, Stack, prepared, until

from freshet.flows.edges.redis import OnlineStore
from freshet.schemas.ledger import source_key
from freshet.schemas.progress import Progress

pytestmark = pytest.mark.kafka

SOURCES = {source_key(STREAM, part) for part in range(PARTITIONS)}
HOUR_US = 3600 * 10**6


@pytest.fixture
def stack(real_kafka: str, valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(real_kafka, valkey_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(stack: Stack) -> Iterator[OnlineStore]:
    made = OnlineStore(stack.workspace.online_url, stack.workspace.pipeline.project, stack.workspace.pipeline.views)
    yield made
    made.close()


def now_us() -> int:
    return time.time_ns() // 1000


def least(progress: dict[str, Progress]) -> int:
    """Return the instant up to which every partition is known; 0 while one is not."""
    return min(one.through_us for one in progress.values()) if progress.keys() == SOURCES else 0


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_of_every_partition_goes_on_while_nothing_comes_and_ends_with_the_materializer(
    stack: Stack, store: OnlineStore, processes: int
) -> None:
    stack.produce(500)
    produced_us = now_us()
    running = stack.start(FRESHET_MATERIALIZER_PROCESSES=str(processes))

    until(lambda: least(store.read_progress()) > produced_us)
    assert stack.is_done()
    assert len(psutil.Process(running.pid).children()) == (processes if processes > 1 else 0)
    durable = stack.ledger().offsets
    for _ in range(3):  # nothing comes any more
        seen_us = now_us()
        until(lambda seen_us=seen_us: least(store.read_progress()) > seen_us)  # type: ignore[misc]  # bound at once
    assert stack.ledger().offsets == durable
    assert {one.every_us for one in store.read_progress().values()} == {300_000}
    assert not any(one.is_behind(HOUR_US, now_us()) for one in store.read_progress().values())

    stack.stop(running)
    ended_us, last = now_us(), store.read_progress()
    assert all(one.through_us <= one.written_us <= ended_us for one in last.values())
    assert all(one.is_behind(HOUR_US, ended_us + 2 * HOUR_US) for one in last.values())


def test_what_waits_while_no_materializer_runs_is_known_once_the_next_one_has_it(
    stack: Stack, store: OnlineStore
) -> None:
    stack.produce(100)
    stack.done()
    before = store.read_progress()
    stack.produce(100)
    produced_us = now_us()
    assert store.read_progress() == before
    assert least(before) < produced_us

    running = stack.start()
    until(lambda: least(store.read_progress()) > produced_us)

    assert stack.is_done()
    stack.stop(running)
