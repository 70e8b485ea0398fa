"""What pipelines are measured on: a Kafka with a backlog of visits, a project of its own, and a materializer that is watched."""

import contextlib
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pipeline_work import (
    FEATURES,
    PARTITIONER,
    PARTITIONS,
    PROJECT,
    STREAM,
    VIEW,
    Feature,
    Visits,
    contract,
    declaration,
)
from serving_rig import tree_cpu_s

from freshet.flows import settings
from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.project import PACKAGED
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.valkey import Valkey
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Unavailable
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.schemas.ledger import Ledger
from freshet.schemas.progress import progress_key
from freshet.schemas.rejects import dead_letter_topic
from freshet.scripts.apply import apply
from freshet.scripts.embedded import FRESHET

REPO = Path(__file__).parent.parent.parent
RUN_LIMIT_S, _ANSWER_LIMIT_S = 3600.0, 60.0
_WRITES = f"freshet:{PROJECT}:writes"
_LOOK_S, _LOOK_FURTHER_S = 0.02, 0.5
_PRODUCER = {"linger.ms": 20, "batch.size": 1_000_000, "queue.buffering.max.messages": 200_000}


# --- Kafka ------------------------------------------------------------------------------------------------------------


def free_port_pair() -> int:
    """Return a port that is free together with the next one."""
    while True:
        with socket.socket() as one, socket.socket() as following:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                following.bind(("127.0.0.1", port + 1))
                return port


class Cluster:
    """A Kafka: the embedded one, or one that is there, at `address`, or else a real one of our own; ours end with `parts`."""

    def __init__(self, parts: contextlib.ExitStack, address: str | None, *, is_embedded: bool = False) -> None:
        self._broker = parts.enter_context(Broker.start()) if is_embedded else None
        self.kind = "embedded broker" if is_embedded else "Apache Kafka"
        self.address = self._broker.address if self._broker is not None else address or _real(parts)
        self._topics: dict[Visits, str] = {}
        self._parts = parts

    def kafka(self) -> kafka.Kafka:
        """How to reach it."""
        return kafka.Kafka(self.address)

    def redis_version(self) -> str:
        """Say which Redis projects get."""
        with Valkey.start(None, shutil.which("redis-server")) as server, redis.Redis.from_url(server.url) as client:
            info = client.info()
        return f"{info.get('server_name', 'redis')} server {info['redis_version']}"

    def new_topic(self) -> str:
        """Make a topic for visits, and one for its dead letters; both keep what is in them, however old its time is."""
        topic = f"{STREAM}-{uuid.uuid4().hex[:8]}"
        names = [topic, dead_letter_topic(topic)]
        if self._broker is not None:
            for name, count in {**dict.fromkeys(names, PARTITIONS), FINDINGS_TOPIC: 1}.items():
                self._broker.create_topic(name, count)
            return topic
        admin = self.kafka().client(AdminClient)
        kept = {"retention.ms": "-1", "message.timestamp.type": "CreateTime"}
        for made in admin.create_topics([NewTopic(name, PARTITIONS, config=kept) for name in names]).values():
            made.result(_ANSWER_LIMIT_S)
        self._parts.callback(self._forget, names)
        return topic

    def _forget(self, names: list[str]) -> None:
        for gone in self.kafka().client(AdminClient).delete_topics(names).values():
            with contextlib.suppress(KafkaException):  # whoever keeps a Kafka can clean it, and ours goes away
                gone.result(_ANSWER_LIMIT_S)

    def backlog(self, visits: Visits) -> str:
        """Return a topic that holds these visits, and nothing else; the same one for the same visits."""
        if visits not in self._topics:
            topic = self.new_topic()
            begun = time.monotonic()
            self.produce(topic, visits.messages())
            told = f"{visits.count:,} events in Kafka after {time.monotonic() - begun:.1f} s"
            print(told, file=sys.stderr, flush=True)
            self._topics[visits] = topic
        return self._topics[visits]

    def producer(self, **more: Any) -> Producer:
        """Return a producer that puts keys where all others do."""
        return self.kafka().client(Producer, {**_PRODUCER, **more}, partitioner=PARTITIONER, enable_idempotence=True)

    def produce(self, topic: str, messages: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Put messages into a topic; raises `Unavailable` if one is lost."""
        producer, lost = self.producer(), list[str]()

        def heed(error: Any, _: Any) -> None:
            if error is not None:
                lost.append(error.str())

        for key, value, ms in messages:
            while True:
                try:
                    producer.produce(topic, value, key, timestamp=ms, on_delivery=heed)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        if producer.flush(_ANSWER_LIMIT_S) or lost:
            raise Unavailable(f"not all events came to Kafka at {self.address}: {lost[:1]}")


def _real(parts: contextlib.ExitStack) -> str:
    """Start an Apache Kafka of our own."""
    environment = {**os.environ, "FRESHET_KAFKA_PORT": str(free_port_pair())}
    command = [str(REPO / "scripts" / "kafka")]
    parts.callback(subprocess.run, [*command, "stop", "--wipe"], env=environment, check=False)
    started = subprocess.run([*command, "start"], env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if started.returncode:
        raise Unavailable("no Apache Kafka could be started. Hint: name one with --kafka HOST:PORT, or say --embedded")
    return started.stdout.strip()


# --- a process that is watched ----------------------------------------------------------------------------------------


def members(pid: int) -> list[int]:
    """Return a process and all that came of it and are there still."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for member in found:  # it grows while it is read
        found += children.get(member, [])
    return found


def most_memory_kb(pid: int) -> float:
    """Return the most memory that a process has held (VmHWM); not a number where there is no /proc."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1])
    return math.nan


@dataclass
class Watched:
    """A process of ours while it runs: how long, and what it and its children spend."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    cpu_s: float = math.nan
    _peaks_kb: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with self.log.open("ab") as out:
            self.started = time.time()
            self.child = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._looked = 0.0

    def has_ended(self) -> bool:
        """Look, also at its memory; raises `Unavailable` with what it said if it ended badly."""
        if time.monotonic() - self._looked > _LOOK_FURTHER_S:
            self._looked = time.monotonic()
            for pid in members(self.child.pid):
                kb = most_memory_kb(pid)
                if kb == kb:  # noqa: PLR0124  # it is a number: the process is there
                    self._peaks_kb[pid] = kb
        pid, status, spent = os.wait4(self.child.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.child.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = spent.ru_utime + spent.ru_stime
        if self.child.returncode:
            raise Unavailable(f"{' '.join(self.command[-3:])} ended with {self.child.returncode}:\n{self.said()}")
        return True

    @property
    def peak_mb(self) -> float:
        """The most memory that each of its processes held, together."""
        return sum(self._peaks_kb.values()) / 1024 or math.nan

    def said(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    def wait(self, look: Callable[[], object] = lambda: None) -> float:
        """Wait until it ends, looking again and again; return the instant, seconds since the epoch."""
        deadline = time.monotonic() + RUN_LIMIT_S
        while not self.has_ended():
            if time.monotonic() > deadline:
                raise Unavailable(f"{' '.join(self.command[-3:])} does not end:\n{self.said()}")
            look()
            time.sleep(_LOOK_S)
        return time.time()

    def end(self) -> None:
        """Have it end, and wait."""
        if self.child.returncode is not None:
            return
        self.child.terminate()
        deadline = time.monotonic() + _ANSWER_LIMIT_S
        with contextlib.suppress(Unavailable):  # that it ended badly is nothing new
            while not self.has_ended():
                if time.monotonic() > deadline:
                    self.child.kill()
                time.sleep(_LOOK_S)


# --- a project --------------------------------------------------------------------------------------------------------


@dataclass
class Project:
    """A project with a Redis of its own, and nothing in either store."""

    workspace: Workspace
    environment: dict[str, str]
    redis_url: str
    redis_pid: int
    root: Path

    @classmethod
    @contextlib.contextmanager
    def made(
        cls, cluster: Cluster, topic: str, features: Sequence[Feature] = FEATURES, decay: str | None = None
    ) -> Iterator["Project"]:
        """Make one that reads a topic, and take it away afterwards."""
        with contextlib.ExitStack() as parts:
            root = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="freshet-pipeline-")))
            server = parts.enter_context(Valkey.start(root, shutil.which("redis-server")))
            texts = {
                "feature_repo/features.yaml": declaration(server.url, features, decay),
                "feature_repo/definitions.py": (PACKAGED / "feature_repo/definitions.py").read_text(encoding="utf-8"),
                f"schemas/events/{STREAM}.py": contract(topic),
            }
            for path, text in texts.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text, encoding="utf-8")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                metrics = f"127.0.0.1:{free.getsockname()[1]}"
            environment = {
                "FRESHET_PROJECT": str(root),
                "FRESHET_BROKERS": cluster.address,
                "FRESHET_ONLINE_STORE": server.url,
                "FRESHET_METRICS_ADDRESS": metrics,
                "FRESHET_LAG_EXPORT": "off",
            }
            workspace = Workspace.open(settings.read(environment))
            apply(workspace)
            yield cls(workspace, environment, server.url, server.pid, root)

    def start(self, *words: str) -> Watched:
        """Start a materializer."""
        return Watched((*FRESHET, "run", "materializer", *words), self.environment, self.root / "materializer.log")

    def replay(self, file: Path) -> dict[str, Any]:
        """Replay a file; return what it took, the start of the process with it."""
        with tempfile.TemporaryDirectory(prefix="freshet-pipeline-") as folder:
            out = Path(folder) / "rows"
            command = (*FRESHET, "replay", str(file), "--out", str(out))
            process = Watched(command, self.environment, self.root / "replay.log")
            try:
                whole_s = process.wait() - process.started
            finally:
                process.end()
            rows_count = OfflineStore(out).read(VIEW).num_rows
        return {"rows_count": rows_count, "whole_s": whole_s, "cpu_s": process.cpu_s, "peak_mb": process.peak_mb}

    def ledger(self) -> tuple[float, Ledger] | None:
        """Return the ledger, and when it was written; None before the first commit."""
        file = LedgerFile(self.workspace.offline_root)
        written_s, found = file.written_at_s(), file.read()
        return None if written_s is None or found is None else (written_s, found)

    def materialize(self, events_count: int, *words: str) -> dict[str, Any]:
        """Materialize all that is in Kafka, so many events by then; return how fast, and what it took."""
        with redis.Redis.from_url(self.redis_url) as client:
            before, commits, first_row = self._counted(client), list[tuple[float, int]](), list[float]()
            looked = [0.0]

            def look() -> None:
                if not first_row and int(client.get(_WRITES) or 0) > before["trips_count"]:
                    first_row[:] = time.time(), tree_cpu_s(process.child.pid)
                if time.monotonic() - looked[0] > _LOOK_FURTHER_S:
                    looked[0] = time.monotonic()
                    self._note_commit(commits)

            process = self.start("--until-end", *words)
            try:
                ended = process.wait(look)
            finally:
                process.end()
            self._note_commit(commits)
            counted = self._counted(client)
            redis_mb = client.info("memory")["used_memory_peak"] / 2**20
            entities_count = client.dbsize() - client.exists(_WRITES, progress_key(PROJECT))
        spent = {name: value - before[name] for name, value in counted.items()}
        if counted["accepted_count"] != events_count:
            raise Unavailable(f"{counted['accepted_count']} of {events_count} events were accepted:\n{process.said()}")
        first_row_s, start_cpu_s = first_row or (commits[-1][0], math.nan)
        end_s = commits[-1][0] - process.started
        return {
            "events_count": spent["accepted_count"],
            **{name: spent[name] for name in ("rows_count", "online_count", "trips_count", "commits_count")},
            "entities_count": entities_count,
            "events_per_s": pace(commits, int(spent["accepted_count"]), commits[-1][0] - first_row_s),
            "whole_s": ended - process.started,
            "first_row_s": first_row_s - process.started,
            "end_s": end_s,
            "cpu_s": process.cpu_s,
            "start_cpu_s": start_cpu_s,
            "redis_cpu_s": spent["redis_cpu_s"],
            "peak_mb": process.peak_mb,
            "redis_mb": redis_mb,
            "offline_mb": _size(self.workspace.offline_root) / 2**20,
        }

    def _counted(self, client: redis.Redis) -> dict[str, float]:
        """Return what both stores count by now."""
        _, ledger = self.ledger() or (0.0, None)
        cpu, calls = client.info("cpu"), client.info("commandstats").get("cmdstat_evalsha", {})
        return {
            "accepted_count": sum(mark.accepted_count for mark in ledger.partitions.values()) if ledger else 0,
            "rows_count": ledger.rows_counts.get(VIEW, 0) if ledger else 0,
            "commits_count": ledger.epoch if ledger else 0,
            "online_count": calls.get("calls", 0),
            "trips_count": int(client.get(_WRITES) or 0),
            "redis_cpu_s": cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        }

    def _note_commit(self, commits: list[tuple[float, int]]) -> None:
        known = self.ledger()
        if known is not None and (not commits or known[0] > commits[-1][0]):
            commits.append((known[0], sum(mark.accepted_count for mark in known[1].partitions.values())))


def pace(commits: Sequence[tuple[float, int]], events_count: int, else_s: float) -> float:
    """Return the events per second between the first commit that was seen and the last; if one was seen, of all.

    A commit is an instant in seconds and how many events were durable by then.

    >>> pace([(10.0, 2000), (11.0, 5000), (12.0, 10_000)], 10_000, 2.5)
    4000.0
    >>> pace([(10.0, 10_000)], 10_000, 2.5)
    4000.0
    """
    (first_s, first_count), (last_s, last_count) = commits[0], commits[-1]
    if last_count - first_count >= events_count / 2:
        return (last_count - first_count) / (last_s - first_s)
    return events_count / else_s


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))


def rounded(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line as it is recorded.

    >>> rounded({"a": 1.23456, "b": 2})
    {'a': 1.235, 'b': 2}
    """
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()}
