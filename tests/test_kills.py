"""Kill -9 at random moments, on a real Kafka, a real Redis server and a real disk.

All along a reader polls the offline folder and the group's offsets. CI kills ten times, `scripts/soak` as often as it is
told. The seed decides what is killed and when; what a kill meets depends on the machine.
"""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from monitors import Burrow, Kcat, Monitor, PlainConsumer
from stack import LIMIT_S, PARTITIONS, SEED, STREAM, Stack, check, prepared, until

from freshet.flows.edges import kafka
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.workspace import Workspace
from freshet.schemas.event import archive_name
from freshet.schemas.ledger import source_key
from freshet.scripts.made_edits import edits

pytestmark = pytest.mark.kafka

KILLS = 5 * int(os.environ.get("FRESHET_SOAK", "1"))


@dataclass(eq=False)
class Reader(threading.Thread):
    """Polls the offline folder and the committed offsets, as an analyst and monitors do; keeps what it finds wrong."""

    workspace: Workspace
    monitors: list[Monitor]
    wrong: list[str] = field(default_factory=list)
    looks_count: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.ends = threading.Event()
        self._seen: dict[Path, int] = {}
        self.committed: dict[str, dict[int, int]] = {monitor.name: {} for monitor in self.monitors}
        self._keys: dict[str, set[tuple[object, ...]]] = {}

    def run(self) -> None:
        while not self.ends.wait(0.05):
            self.looks_count += 1
            for monitor in self.monitors:
                self._watch(monitor)
            for view in self.workspace.pipeline.views:
                self._look(view.name, [*view.entity_names, "event_timestamp", "_version"])
            self._look(archive_name(STREAM), ["_partition", "_offset"])

    def _watch(self, monitor: Monitor) -> None:
        committed = self.committed[monitor.name]
        commits, durable = monitor.seen(), LedgerFile(self.workspace.offline_root).read()  # in this order
        for partition, offset in commits:
            known = 0 if durable is None else durable.offsets.get(source_key(STREAM, partition), 0)
            if offset > known:
                self.wrong.append(f"partition {partition}: {monitor.name} sees {offset} committed, {known} is durable")
            if offset < committed.get(partition, 0):  # Burrow's REWIND
                self.wrong.append(f"partition {partition}: {monitor.name} sees {offset} after {committed[partition]}")
            committed[partition] = offset
        if isinstance(monitor, Burrow) and "REWIND" in str(monitor.status()):
            self.wrong.append(f"burrow says {monitor.status()}")

    def _look(self, name: str, key: list[str]) -> None:
        keys = self._keys.setdefault(name, set())
        parts = sorted((self.workspace.offline_root / name).glob("part-*.parquet"))
        self.wrong += [f"{part} is gone" for part in self._seen if part.parent.name == name and part not in parts]
        for part in parts:
            if part not in self._seen:
                rows = pq.read_table(part, columns=key)
                self._seen[part] = rows.num_rows
                found = list(zip(*(column.to_pylist() for column in rows.columns), strict=True))
                doubled = len(found) - len(set(found) - keys)
                if doubled:
                    self.wrong.append(f"{part} doubles {doubled} of {len(found)} rows")
                keys.update(found)


@dataclass(eq=False)
class Sender(threading.Thread):
    """Publishes edits and garbage, steadily."""

    workspace: Workspace
    seed: int
    sent_count: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.ends = threading.Event()

    def run(self) -> None:
        contract = self.workspace.contracts[STREAM]
        garbage = Producer({"bootstrap.servers": self.workspace.kafka.brokers})
        with kafka.Producer(self.workspace.kafka, contract) as producer:
            for number, edit in enumerate(edits(self.seed)):
                if self.ends.wait(0.005):
                    break
                producer.send(edit)
                self.sent_count += 1
                if number % 50 == 0:
                    garbage.produce(contract.stream.topic, b"garbage %d" % number, partition=number // 50 % PARTITIONS)
                    self.sent_count += 1
        garbage.flush()


@pytest.fixture
def stack(real_kafka: str, valkey_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(real_kafka, valkey_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def monitors(stack: Stack, burrow_url: str | None, kcat: str | None) -> Iterator[list[Monitor]]:
    group, topic = stack.workspace.group, stack.workspace.contracts[STREAM].stream.topic
    plain = PlainConsumer(stack.workspace.kafka, group, topic)
    plain.seen()  # the first who asks makes the topic that kcat reads
    made: list[Monitor] = [plain]
    if kcat is not None:
        made.append(Kcat(kcat, stack.workspace.kafka.brokers, group, topic))
    if burrow_url is not None:
        made.append(Burrow(burrow_url, group, topic))
    yield made
    for monitor in made:
        monitor.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_after_any_kills_all_rows_are_there_once_and_both_stores_agree(
    stack: Stack, monitors: list[Monitor], processes: int
) -> None:
    chance = random.Random(SEED * 10 + processes)
    reader, sender = Reader(stack.workspace, monitors), Sender(stack.workspace, SEED)
    reader.start()
    sender.start()
    words = ("--processes", str(processes))
    running = stack.start(*words)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.5, 9.0))
        family = [running.pid, *(child.pid for child in psutil.Process(running.pid).children())]
        os.kill(chance.choice(family), signal.SIGKILL)  # a child of the cluster, or what holds it together
        running.wait(LIMIT_S)
        running = started(stack, *words)
    sender.ends.set()
    sender.join(LIMIT_S)
    running.send_signal(signal.SIGTERM)
    assert running.wait(LIMIT_S) == 0, stack.said()
    stack.done()
    durable = {int(key.rpartition("/")[2]): offset for key, offset in stack.ledger().offsets.items()}
    until(lambda: reader.wrong or all(committed == durable for committed in reader.committed.values()))
    reader.ends.set()
    reader.join(LIMIT_S)

    assert reader.wrong == []
    until(lambda: all(monitor.status() == ("OK", {}, 0) for monitor in monitors if isinstance(monitor, Burrow)))
    assert reader.looks_count > KILLS
    check(stack.workspace, sender.sent_count)


def begun_or_ended(stack: Stack, *words: str) -> "subprocess.Popen[bytes]":
    """Start it, and wait until it has the offline store, or has ended."""
    before = stack.log.stat().st_size
    running = stack.start(*words)
    until(lambda: running.poll() is not None or b"materializing" in stack.log.read_bytes()[before:])
    return running


def started(stack: Stack, *words: str) -> "subprocess.Popen[bytes]":
    """Start again, as often as it takes until the children of a killed parent have ended, too."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        running = begun_or_ended(stack, *words)
        if running.poll() is None:
            return running
        assert running.returncode == 2, stack.said()
        assert "is being written by another materializer" in stack.said().splitlines()[-1]
        assert time.monotonic() < deadline
