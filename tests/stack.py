"""A project of its own, its topics, and materializers of it as processes: what kills, outages and garbage are tested on."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import redis

from freshet.flows import settings
from freshet.flows.edges import kafka, valkey
from freshet.flows.edges.partitions import records
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.steps.oracle import compare
from freshet.flows.workspace import Workspace
from freshet.schemas.event import Contract, archive_name
from freshet.schemas.ledger import Ledger
from freshet.schemas.rejects import dead_letter_topic
from freshet.scripts.apply import apply
from freshet.scripts.made_edits import edits

REPO = Path(__file__).parent.parent
SEED = int(os.environ.get("FRESHET_SEED", "2026"))
STREAM, PARTITIONS = "wiki_edits", 8
LIMIT_S = 120
FRESHET = [sys.executable, "-m", "freshet.scripts.cli"]


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on."""
    with ExitStack() as held:
        bound = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


def free_pair() -> int:
    """Return a port that is free together with the next one, below those that the system gives to whoever asks for any."""
    for port in random.Random(os.getpid()).sample(range(20_000, 30_000, 2), 500):  # no secret
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", port))
            next_one.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no pair of ports is free")


def kafka_does(environment: dict[str, str], *words: str) -> None:
    subprocess.run([REPO / "scripts" / "kafka", *words], env=environment, check=True, timeout=180, capture_output=True)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Server:
    """A Valkey server that can be stopped and started again, with or without its data."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._binary = folder, valkey._binary()  # noqa: SLF001  # how our own part finds it
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def client(self, password: str | None = None) -> "redis.Redis":
        return redis.Redis(port=self.port, password=password)

    def stop(self, *, wipe: bool = False) -> None:
        self.process.kill()
        self.process.wait()
        if wipe:
            shutil.rmtree(self.folder)
            self.folder.mkdir()


def until(holds: Callable[[], object], limit_s: float = LIMIT_S, pause_s: float = 0.05) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(pause_s)


@dataclass
class Stack:
    workspace: Workspace
    environment: dict[str, str]
    log: Path
    sent_count: int = 0
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        return self.spawn([*FRESHET, "run", "materializer", *words], **environment)

    def spawn(self, command: list[str], **environment: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                command, env={**self.environment, **environment}, stderr=out, stdout=out, start_new_session=True
            )
        self.running.append(process)
        return process

    def ended(self, process: "subprocess.Popen[bytes]", code: int) -> str:
        """Wait until a process has ended with a code; return what it said last."""
        assert process.wait(LIMIT_S) == code, self.said()
        return self.said().splitlines()[-1]

    def done(self, *words: str) -> None:
        """Run until everything that is there is materialized."""
        self.ended(self.start("--until-end", *words), 0)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def produce(self, count: int, contract: Contract | None = None, **more: object) -> None:
        """Publish edits by today's contract, or by one that an older producer has, with more in them."""
        with kafka.Producer(self.workspace.kafka, contract or self.workspace.contracts[STREAM]) as producer:
            for edit, _ in zip(edits(SEED + self.sent_count), range(count), strict=False):
                producer.send({**edit, **more})
        self.sent_count += count

    def ledger(self) -> Ledger:
        found = LedgerFile(self.workspace.offline_root).read()
        return Ledger(id="", shards_count=0) if found is None else found

    def is_done(self) -> bool:
        return sum(self.ledger().offsets.values()) == self.sent_count

    def health(self) -> str:
        """Return what /healthz says of the process that was started last."""
        return self.asked("healthz")

    def asked(self, what: str) -> str:
        """Return what the process that was started last answers; nothing if it does not."""
        found = re.findall(r"metrics at (http://[^\s/]+)/metrics", self.log.read_text(errors="replace"))
        if not found:
            return ""
        try:
            with urllib.request.urlopen(f"{found[-1]}/{what}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def stop(self, process: "subprocess.Popen[bytes]", number: int = signal.SIGTERM) -> None:
        process.send_signal(number)
        self.ended(process, 0)

    def close(self) -> None:
        for process in self.running:
            process.kill()


def prepared(
    brokers: str, online_url: str, tmp_path: Path, declared_as: Callable[[str], str] = lambda text: text, **more: str
) -> Stack:
    """Make a project of its own, with topics of its own; `declared_as` changes the text of its declaration."""
    root = tmp_path / "project"
    ignored = shutil.ignore_patterns("*store.yaml", "__*")
    shutil.copytree(REPO / "feature_repo", root / "feature_repo", ignore=ignored)
    shutil.copytree(REPO / "schemas" / "events", root / "schemas" / "events", ignore=ignored)
    name = f"test_{uuid.uuid4().hex[:8]}"
    contract = root / "schemas" / "events" / "wiki_edits.py"
    contract.write_text(contract.read_text().replace('topic="wiki_edits"', f'topic="{name}"'))
    declared = root / "feature_repo" / "features.yaml"
    declared.write_text(declared_as(declared.read_text().replace("project: wikipedia", f"project: {name}")))
    mine = {
        "FRESHET_PROJECT": str(root),
        "FRESHET_BROKERS": brokers,
        "FRESHET_ONLINE_STORE": online_url,
        "FRESHET_METRICS_ADDRESS": "127.0.0.1:0",
        "FRESHET_EPOCH": "300ms",
        "FRESHET_SHARDS": "4",
        **more,
    }
    environment = {**{key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}, **mine}
    workspace = Workspace.open(settings.read(mine))
    topics = kafka.topics_of(workspace.contracts.values())
    kafka.create_topics(replace(workspace.kafka, patience_s=60.0), topics)
    apply(workspace)
    return Stack(workspace, environment, tmp_path / "log")


def check(workspace: Workspace, sent_count: int) -> None:
    """All rows are there once and are what DuckDB says, both stores agree, and every event is accepted or a dead letter."""
    offline = workspace.offline()
    online = OnlineStore(workspace.online_url, workspace.pipeline.project, workspace.pipeline.views)
    events = offline.read(archive_name(STREAM))
    topic = dead_letter_topic(workspace.contracts[STREAM].stream.topic)
    letters = {value for poll in records(workspace.kafka, topic) for value in poll.values}
    assert events.num_rows + len(letters) == sent_count
    ledger = LedgerFile(workspace.offline_root).read()
    assert ledger is not None
    for plan in workspace.pipeline.plans:
        clocks = {mark.clock_us for key, mark in ledger.shards.items() if key.startswith(f"{plan.view.name}/")}
        answer = compare(plan, events, offline.final(plan.view), clocks.pop())
        assert answer.differing == (), answer.differing[:3]
        rows = offline.read(plan.view.name).select([*plan.view.entity_names, "event_timestamp", "_version"])
        assert rows.num_rows == rows.group_by(rows.column_names).aggregate([]).num_rows
        assert not clocks
        newest = offline.newest(plan.view)
        entities = list(zip(*(newest[name].to_pylist() for name in plan.view.entity_names), strict=True))
        for row, stored in zip(newest.to_pylist(), online.read(plan.view, entities), strict=True):
            assert stored is not None
            assert (row["event_timestamp"], row["_version"]) == (stored.event_timestamp, stored.version)
