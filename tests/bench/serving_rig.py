"""What serving is measured on: a project of its own, a Redis full of its entities, and every server of them."""

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis
import yaml
from load import PATH, body, carried

from freshet.flows import settings
from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.project import PACKAGED
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.valkey import Valkey
from freshet.flows.workspace import Workspace
from freshet.schemas.errors import Unavailable
from freshet.schemas.ledger import source_key
from freshet.schemas.progress import Progress, progress_key
from freshet.schemas.view import View
from freshet.scripts.apply import apply
from freshet.scripts.embedded import FRESHET, Process

HERE = Path(__file__).parent
PROJECT, STREAM, ENTITY, VIEW, PARTITIONS = "serving", "visits", "user_id", "visits_by_user_id", 8
DTYPES = ("int64", "float64", "string", "int64", "bool", "float64", "int32", "float32", "int64", "float64")
FEATURES = tuple(f"visit_{number:02d}_{DTYPES[number % len(DTYPES)]}" for number in range(50))
NULL_SHARE = 0.05
PUSHED_COUNT = 1000
"""How many entities are written and read while the pipeline pushes."""
_FILL_ROWS, _KNOWN_COUNT, _START_LIMIT_S, _END_LIMIT_S = 20_000, 200, 120.0, 20.0

CONTRACT = f"""\
from pydantic import AwareDatetime

from freshet.schemas.event import Event, Stream


class Visit(Event):
    stream = Stream(topic="{STREAM}", key="{ENTITY}", event_time="at", partitions={PARTITIONS})

    at: AwareDatetime
    {ENTITY}: int
    number: int
"""

CASTS = {"int64": "number", "int32": "number::INTEGER", "float64": "number::DOUBLE", "float32": "number::FLOAT"}
CASTS |= {"string": "number::VARCHAR", "bool": "number % 2 = 1"}


# --- rows -------------------------------------------------------------------------------------------------------------


def declaration(online_url: str) -> str:
    """Return a declaration of one view of fifty features, of all types that a model usually reads."""
    made = [
        {"name": name, "dtype": kind, "source": STREAM, "transformation": CASTS[kind]}
        for name in FEATURES
        for kind in [name.rpartition("_")[2]]
    ]
    declared = {
        "project": PROJECT,
        "views": {VIEW: {"ttl": "7 days"}},
        "featureDefinitions": made,
        "servingRequirements": {"onlineLatency": "p99 < 10ms", "freshnessTarget": "p99 < 2s"},
        "infrastructure": {"onlineStore": online_url, "offlineStore": "data/offline", "computeEngine": "bytewax"},
    }
    return yaml.safe_dump(declared, sort_keys=False, width=1000)


def _rows(view: View, ids: np.ndarray, features: Mapping[str, pa.Array], version: int, at_us: int) -> pa.Table:
    """Return rows with given features."""
    count, schema = len(ids), view.row_schema
    at = pa.array(np.full(count, at_us), pa.int64()).cast(schema.field("event_timestamp").type)
    zeros = np.zeros(count, np.int64)
    columns = {
        ENTITY: pa.array(ids),
        "event_timestamp": at,
        "created": at,
        "_version": pa.array(zeros + version),
        "_partition": pa.array(zeros.astype(np.int32)),
        "_offset": pa.array(zeros),
        **features,
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def filled(view: View, first: int, count: int, at_us: int) -> pa.Table:
    """Return what the store is filled with: values as they come, some of them null, the same ones for the same entities."""
    chance = np.random.default_rng(first)
    words = pa.array([f"section {number}" for number in range(1000)])
    features = {}
    for name in FEATURES:
        kind = view.row_schema.field(name).type
        absent = pa.array(chance.random(count) < NULL_SHARE)
        match name.rpartition("_")[2]:
            case "string":
                made = words.take(pa.array(chance.integers(0, len(words), count)))
            case "bool":
                made = pa.array(chance.random(count) < 0.5)
            case "float32" | "float64":
                made = pa.array(chance.gamma(1.0, 100.0, count)).cast(kind)
            case _:
                made = pa.array(chance.geometric(0.001, count)).cast(kind)
        features[name] = pc.if_else(absent, pa.scalar(None, kind), made)
    return _rows(view, np.arange(first, first + count), features, 1, at_us)


def numbered(view: View, pushed_count: int, version: int) -> pa.Table:
    """Return the next row of each of the first entities: all features carry one number, each row's another (`load.is_mixed`)."""
    ids = np.arange(pushed_count)
    numbers = (version * pushed_count + ids).tolist()
    types = {name: name.rpartition("_")[2] for name in FEATURES}
    made = {kind: [carried(kind, number) for number in numbers] for kind in set(types.values())}
    features = {name: pa.array(made[kind], view.row_schema.field(name).type) for name, kind in types.items()}
    return _rows(view, ids, features, 1 + version, time.time_ns() // 1000)


def wrong(answer: dict[str, list[Any]], rows: pa.Table) -> list[str]:
    """Return which features of an answer (values by feature) are not what stands in the rows."""
    found = []
    for name, values in answer.items():
        own = rows[name].to_pylist()
        if pa.types.is_float32(rows[name].type):  # JSON has as many digits as tell one from the next
            values = [value if value is None else float(np.float32(value)) for value in values]  # noqa: PLW2901
        if own != values:
            found.append(f"{name}: {values[:3]} for {own[:3]}")
    return found


# --- processes --------------------------------------------------------------------------------------------------------


class Child:
    """A process of the bench, one of the modules beside this, that answers lines of JSON with lines of JSON."""

    def __init__(self, module: str, *words: str, entry: str = "main") -> None:
        self._name = f"{module}.{entry}"
        command = [sys.executable, "-c", f"from {module} import {entry}; {entry}()", *words]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE, start_new_session=True
        )  # Ctrl-C is for whoever started it, and then ends its parts in order
        self.pid = self.child.pid

    def ask(self, **task: Any) -> dict[str, Any]:
        """Have it do something; raises `Unavailable` if it ended instead of answering."""
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer
            print(json.dumps(task), file=self.child.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for its next line."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise Unavailable(f"{self._name} of the bench ended with {self.child.wait(_END_LIMIT_S)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Have it end, and wait."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.terminate()
        try:
            self.child.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        self.child.stdout.close()


def tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and all that came of it, those that have ended too; not a number without /proc."""
    found: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        found[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"))
    if pid not in found:
        return math.nan
    members, grown = {pid}, True
    while grown:
        more = {child for child, (parent, _) in found.items() if parent in members} - members
        members, grown = members | more, bool(more)
    return math.fsum(found[member][1] for member in members)


@dataclass
class System:
    """One that is measured: its process, who puts the load on it, and what the load is told of it."""

    name: str
    pid: int
    child: Child
    told: Mapping[str, Any]

    def measure(self, redis_pid: int, **task: Any) -> dict[str, Any]:
        """Put a load on it; the result has the CPU seconds that it took itself, and Redis."""
        before = tree_cpu_s(self.pid), tree_cpu_s(redis_pid)
        result = self.child.ask(**self.told, **task)
        result["cpu_s"], result["redis_cpu_s"] = tree_cpu_s(self.pid) - before[0], tree_cpu_s(redis_pid) - before[1]
        if self.pid == self.child.pid:  # without what it made ready
            result["cpu_s"] = result["own_cpu_s"]
        return result

    def answer(self, features: Sequence[str], ids: Sequence[int]) -> dict[str, list[Any]]:
        """Return the values that it gives, by feature."""
        if "port" not in self.told:
            found = self.child.ask(features=list(features), entity=ENTITY, ids=list(ids))
            return {name: values for name, values in found.items() if name != ENTITY}
        answer = asked(self.told["port"], features, ids)
        names = answer["metadata"]["feature_names"]
        values = [result["values"] for result in answer["results"]]
        return {name: own for name, own in zip(names, values, strict=True) if name != ENTITY}


def asked(port: int, features: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    """Ask a server once; raises OSError."""
    content, header = body(features, ENTITY, ids), {"Content-Type": "application/json"}
    question = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", content, header)
    with urllib.request.urlopen(question, timeout=_START_LIMIT_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


class Heartbeat(threading.Thread):
    """Tells as the materializer does that everything in Kafka is online: a server judges staleness by it."""

    def __init__(self, url: str) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._client, self._ended = redis.Redis.from_url(url), threading.Event()

    def run(self) -> None:
        """Tell it twice a second."""
        while not self._ended.wait(0.5):
            now_us = time.time_ns() // 1000
            progress = Progress(now_us, now_us, 1_000_000).to_bytes()
            fields = {source_key(STREAM, partition): progress for partition in range(PARTITIONS)}
            self._client.hset(progress_key(PROJECT), mapping=fields)  # type: ignore[arg-type]  # bytes are fine

    def end(self) -> None:
        """Tell no more."""
        self._ended.set()
        self.join()
        self._client.close()


class Rig:
    """A project, and a Redis with so many entities of it. All of it ends with `parts`."""

    def __init__(self, parts: contextlib.ExitStack, entities_count: int) -> None:
        self._parts, self.entities_count = parts, entities_count
        self.root = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="freshet-serving-")))
        broker = parts.enter_context(Broker.start())
        self.redis = parts.enter_context(Valkey.start(self.root, shutil.which("redis-server")))
        self._make_project()
        self._environment = {
            "FRESHET_PROJECT": str(self.root),
            "FRESHET_BROKERS": broker.address,
            "FRESHET_ONLINE_STORE": self.redis.url,
        }
        self.workspace = Workspace.open(settings.read(self._environment))
        for topic, count in kafka.topics_of(self.workspace.contracts.values()).items():
            broker.create_topic(topic, count)
        apply(self.workspace)
        self._tune()
        [self.view] = self.workspace.pipeline.views
        self.load = Child("load")
        parts.callback(self.load.end)

    def _make_project(self) -> None:
        texts = {
            "feature_repo/features.yaml": declaration(self.redis.url),
            "feature_repo/definitions.py": (PACKAGED / "feature_repo/definitions.py").read_text(encoding="utf-8"),
            f"schemas/events/{STREAM}.py": CONTRACT,
        }
        for path, text in texts.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text, encoding="utf-8")

    def _tune(self) -> None:
        """Make the repository of a tuned Feast: no request looks after the registry's file."""
        config = yaml.safe_load((self.root / "feature_repo/feature_store.yaml").read_text(encoding="utf-8"))
        config["registry"] |= {"cache_mode": "thread", "cache_ttl_seconds": 86_400}
        self.tuned_repo = self.root / "tuned_repo"  # as deep as the other: the registry's path is relative
        self.tuned_repo.mkdir()
        (self.tuned_repo / "feature_store.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def fill(self) -> float:
        """Write all entities, with our own writer; return how many rows a second."""
        store = OnlineStore(self.redis.url, PROJECT, [self.view])
        begun, self._filled_us = time.monotonic(), time.time_ns() // 1000
        for first in range(0, self.entities_count, _FILL_ROWS):
            count = min(_FILL_ROWS, self.entities_count - first)
            rows = filled(self.view, first, count, self._filled_us)
            if first == 0:
                self._known = rows.slice(0, _KNOWN_COUNT)
            store.write(self.view, rows)
            print(f"\r{first + count:,} entities", end="", file=sys.stderr, flush=True)
        store.close()
        print(file=sys.stderr)
        beat = Heartbeat(self.redis.url)
        self._parts.callback(beat.end)
        beat.start()
        return self.entities_count / (time.monotonic() - begun)

    def info(self) -> dict[str, Any]:
        """Return what Redis says of itself."""
        with redis.Redis.from_url(self.redis.url) as client:
            found: dict[str, Any] = client.info()
        return found

    def references(self, count: int) -> list[str]:
        """Return the first features, as a request names them."""
        return [f"{VIEW}:{name}" for name in FEATURES[:count]]

    def start(self, name: str) -> System:
        """Start a system, and make sure that it answers, and what is stored."""
        made = self._in_process() if name == "sdk" else self._served(name)
        count = min(_KNOWN_COUNT, self.entities_count)
        answer = made.answer(self.references(len(FEATURES)), range(count))
        differing = wrong(answer, self._known) if len(answer) == len(FEATURES) else [f"only {sorted(answer)}"]
        if differing:
            raise Unavailable(f"{name} does not answer what is stored: {'; '.join(differing[:3])}")
        return made

    def _in_process(self) -> System:
        child = Child("sdk", str(self.tuned_repo))
        self._parts.callback(child.end)
        return System("sdk", child.pid, child, {})

    def _served(self, name: str) -> System:
        port = _free_port()
        feast = str(Path(sys.executable).with_name("feast"))
        commands: dict[str, Sequence[str]] = {
            "freshet": (*FRESHET, "run", "server", "--workers", "1"),
            "feast": (feast, "-c", str(self.root / "feature_repo"), "serve", "-p", str(port)),
            "feast-tuned": (feast, "-c", str(self.tuned_repo), "serve", "-p", str(port), *TUNED),
        }
        environment = {**self._environment, "FRESHET_SERVER_ADDRESS": f"127.0.0.1:{port}"}
        process = Process(name, commands[name], environment, self.root)
        self._parts.callback(process.end)
        deadline, features = time.monotonic() + _START_LIMIT_S, self.references(1)
        while True:
            try:
                asked(port, features, [0])
                break
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[-500:]
                if error.code != 503:  # it is not ready yet
                    raise Unavailable(f"{name} answers {error.code}: {said}") from error
            except OSError as error:
                said = str(error)
            process.check()
            if time.monotonic() > deadline:
                raise Unavailable(f"{name} does not answer: {said}\n{process.said()}")
            time.sleep(0.1)
        return System(name, process.child.pid, self.load, {"port": port})

    def nothing(self) -> System:
        """Start a server that does nothing: what the load costs itself."""
        child = Child("load", entry="nothing")
        self._parts.callback(child.end)
        return System("nothing", child.pid, self.load, child.answer())

    @contextlib.contextmanager
    def pushing(self) -> Any:
        """Have rows of the first entities written at full speed, and give who writes them."""
        writer = Child("pusher", str(self.root), self.redis.url, str(min(PUSHED_COUNT, self.entities_count)))
        try:
            writer.ask()  # all entities have such a row by now
            yield writer
        finally:
            writer.end()


TUNED = (
    *("--no-access-log", "--max-requests", "0", "--max-requests-jitter", "0"),
    *("--registry_ttl_sec", "0", "--keep-alive-timeout", "3600"),
)
"""What makes `feast serve` fastest: nothing is logged, no worker restarts, nothing is looked up again."""


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
