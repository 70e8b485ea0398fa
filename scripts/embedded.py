"""A system on embedded parts, for the demo and for benches: broker, online store, materializer, a sender of events."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.scrape import Samples, scrape
from freshet.flows.edges.valkey import Valkey
from freshet.flows.settings import Settings
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Unavailable
from freshet.schemas.event import Contract
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.scripts import reference
from freshet.scripts.apply import apply
from freshet.scripts.faults.breaks import Faults

WAIT_LIMIT_S = 120.0
FRESHET = (sys.executable, "-m", "freshet.scripts.cli")


class Process:
    """A long-running process of ours, with a log, and metrics at `metrics`."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name, self._command, self.log = name, command, folder / f"{name}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.metrics = f"127.0.0.1:{free.getsockname()[1]}"
        self._environment = {**os.environ, **environment, "FRESHET_METRICS_ADDRESS": self.metrics}
        self.child = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as out:
            return subprocess.Popen(  # noqa: S603  # our own
                self._command, env=self._environment, stdout=out, stderr=out, start_new_session=True
            )  # Ctrl-C is for whoever started it, and then ends its parts in order

    def start_again(self) -> None:
        """Start it once more, after it has ended."""
        assert self.child.poll() is not None, "it has not ended"
        self.child = self._started()

    def wait_until_ready(self) -> None:
        """Wait until it answers; raises `Unavailable` if it ends or does not."""
        deadline = time.monotonic() + WAIT_LIMIT_S
        while not self.samples():
            if time.monotonic() > deadline:
                raise Unavailable(f"the {self.name} does not answer at {self.metrics}:\n{self.said()}")
            self.ended_within(0.1)

    def ended_within(self, limit_s: float) -> bool:
        """Wait so long, or until it ends; say whether it did."""
        try:
            self.child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def check(self) -> None:
        """Raise `Unavailable` with what it said last if it has ended."""
        if self.child.poll() is not None:
            raise Unavailable(f"the {self.name} ended with {self.child.returncode}:\n{self.said()}")

    def said(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    def samples(self) -> Samples:
        """Return all its metrics; none while it does not answer. Raises `Unavailable` if it has ended."""
        try:
            return scrape(self.metrics)
        except Unavailable:
            self.check()
            return {}

    def end(self) -> None:
        """Have it end, and wait."""
        if self.child.poll() is None:
            self.child.terminate()
            self.child.send_signal(signal.SIGCONT)  # one that was made to hang cannot end
            if not self.ended_within(WAIT_LIMIT_S):
                self.child.kill()
                self.child.wait()


@dataclass
class Stack:
    """What was started. `environment` is what another process of the same project is told."""

    workspace: Workspace
    environment: Mapping[str, str]
    materializer: Process
    faults: Faults | None = None


def start(
    parts: contextlib.ExitStack,
    settings: Settings,
    *,
    breakable: bool = False,
    declared_as: Callable[[str], str] = lambda text: text,
) -> Stack:
    """Start all parts, each ended with `parts`: of the reference project, its declaration's text changed.

    One that is breakable has all faults in their places. Raises `Unavailable`.
    """
    root = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="freshet-")))
    reference.copy(root)
    declared = root / "feature_repo" / "features.yaml"
    declared.write_text(declared_as(declared.read_text(encoding="utf-8")), encoding="utf-8")
    broker = parts.enter_context(Broker.start())
    valkey = parts.enter_context(Valkey.start())
    settings = dataclasses.replace(
        settings, project=root, brokers=broker.address, online_store=valkey.url, metrics_address=None, kafka={}
    )
    workspace = Workspace.open(settings)
    for topic, count in {**kafka.topics_of(workspace.contracts.values()), FINDINGS_TOPIC: 1}.items():
        broker.create_topic(topic, count)
    apply(workspace)
    faults = parts.enter_context(Faults(workspace, root)) if breakable else None
    environment = {
        "FRESHET_PROJECT": str(root),
        "FRESHET_BROKERS": broker.address,
        "FRESHET_ONLINE_STORE": valkey.url,
        "FRESHET_LAG_EXPORT": "materializer",  # there may be no validator
    }
    command: Sequence[str] = (*FRESHET, "run", "materializer")
    own = environment
    if faults is not None:
        command, own = faults.command, {**environment, "FRESHET_ONLINE_STORE": faults.online_url}
    materializer = Process("materializer", command, own, root)
    parts.callback(materializer.end)
    if faults is not None:
        faults.materializer = materializer.child
    return Stack(workspace, environment, materializer, faults)


class Sender(threading.Thread):
    """Publishes events beside everything else: each once the seconds that stand before it are over."""

    def __init__(self, cluster: kafka.Kafka, contract: Contract, timed: Iterator[tuple[float, Any]]) -> None:
        super().__init__(name="producer", daemon=True)
        self._cluster, self._contract, self._timed = cluster, contract, timed
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self.sent_count = 0

    def run(self) -> None:
        """Publish until there is no more."""
        try:
            with kafka.Producer(self._cluster, self._contract) as producer:
                for wait_s, event in self._timed:
                    if self._ended.is_set():
                        break
                    if wait_s > 0:
                        producer.poll(wait_s)
                    producer.send(event)
                    self.sent_count += 1
        except BaseException as error:  # noqa: BLE001  # handed to the main thread, which raises it
            self._error = error

    def check(self) -> None:
        """Raise what went wrong while publishing."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Publish no more."""
        self._ended.set()
        self.join()
