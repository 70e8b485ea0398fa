"""Feature servers as processes, what is in their store, and who asks them: what the server is tested from outside on."""

import http.client
import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import redis
from stack import FRESHET, LIMIT_S, STREAM, Stack, until

from freshet.flows.edges.redis import OnlineStore
from freshet.schemas.ledger import source_key
from freshet.schemas.progress import Progress, progress_key
from freshet.schemas.view import View

READ, EVENTS = "/get-online-features", f"/streams/{STREAM}/events"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
_AHEAD_US = 3600 * 1_000_000
"""Said to be written so much later than now: no test depends on how long it takes."""


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """Why it was not done; every refusal says it in this place."""
        assert self.headers["content-type"] == "application/json", (self.status, self.body)
        assert isinstance(self.told["detail"], str)
        return str(self.told["detail"])


@dataclass(frozen=True)
class Client:
    """Asks a server, over a connection of its own each time."""

    address: str
    token: str | None = None
    secure: ssl.SSLContext | None = None

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask; a body that is not bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        told = (
            {} if raw is None else {"content-type": "application/json"}
        )  # without it Feast's own server reads nothing
        guard = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        with closing(self._connection()) as connection:
            connection.request(method, path, raw, {**told, **guard, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def read(self, features: Sequence[str], **entities: Sequence[Any]) -> Answer:
        return self.ask("POST", READ, {"features": list(features), "entities": entities})

    def _connection(self) -> http.client.HTTPConnection:
        if self.secure is not None:
            return http.client.HTTPSConnection(self.address, timeout=LIMIT_S, context=self.secure)
        return http.client.HTTPConnection(self.address, timeout=LIMIT_S)

    def sent(self, raw: bytes) -> Answer:
        """Send bytes as they are, and nothing after them; return what is answered."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
            connection.sendall(raw)
            with closing(http.client.HTTPResponse(connection)) as answer:
                answer.begin()
                return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def all_at_once(self, count: int, features: Sequence[str], **entities: Sequence[Any]) -> "Crowd":
        return Crowd(self, count, features, entities)


class Crowd:
    """Several who ask the same at the same time. `answers` has those that were answered, in that order."""

    def __init__(self, client: Client, count: int, features: Sequence[str], entities: Mapping[str, Any]) -> None:
        self.answers: list[Answer] = []
        self._asking = [threading.Thread(target=self._ask, args=(client, features, entities)) for _ in range(count)]
        for one in self._asking:
            one.start()

    def _ask(self, client: Client, features: Sequence[str], entities: Mapping[str, Any]) -> None:
        self.answers.append(client.read(features, **entities))

    def wait(self, limit_s: float = LIMIT_S) -> list[Answer]:
        """Wait until all are answered."""
        until(lambda: not any(one.is_alive() for one in self._asking), limit_s)
        assert len(self.answers) == len(self._asking), "some were not answered"
        return self.answers


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    stack: Stack
    process: "subprocess.Popen[bytes]"
    client: Client

    def stop(self) -> None:
        self.stack.stop(self.process)


def begun(stack: Stack, *words: str, workers_count: int = 1, **environment: str) -> Running:
    """Start a server of a project, at an address that the system chooses unless the environment says one.

    All its workers have begun: one that begins later goes by what is in force by then, and need not follow.
    """
    told = {"FRESHET_SERVER_ADDRESS": "127.0.0.1:0", **environment}
    stack.log.touch()
    before = len(_served_at(stack))
    several = ["--workers", str(workers_count)] if workers_count > 1 else []
    process = stack.spawn([*FRESHET, "run", "server", *several, *words], **told)

    def says_where() -> bool:
        assert process.poll() is None, stack.said()
        return len(_served_at(stack)) >= before + workers_count

    until(says_where)
    return Running(stack, process, Client(_served_at(stack)[-1]))


@contextmanager
def serving(stack: Stack, *words: str, workers_count: int = 1, **environment: str) -> Iterator[Client]:
    """A server that lives through all that is done to it, and ends in order."""
    running = begun(stack, *words, workers_count=workers_count, **environment)
    before = stack.log.stat().st_size
    yield running.client
    assert running.process.poll() is None, stack.said()
    running.stop()
    assert "Traceback" not in stack.log.read_bytes()[before:].decode(errors="replace"), stack.said()


def _served_at(stack: Stack) -> list[str]:
    return re.findall(r"serving \S+ at (\S+:\d+)", stack.log.read_text(errors="replace"))


def view_of(stack: Stack, name: str) -> View:
    return next(view for view in stack.workspace.pipeline.views if view.name == name)


def numbered(view: View, entities: Sequence[tuple[Any, ...]], number: int) -> pa.Table:
    """Rows all of whose features, the time and the version say one number."""
    stamp = TODAY.replace(microsecond=number % 1_000_000)
    told = {
        "int64": number, "int32": number, "float64": float(number), "float32": float(number),
        "string": str(number), "bool": number % 2 == 1,
    }  # fmt: skip
    features = {feature.name: told[feature.dtype.name] for feature in view.features}
    system = {"event_timestamp": stamp, "created": TODAY, "_version": number, "_partition": 0, "_offset": number}
    rows = [{**dict(zip(view.entity_names, one, strict=True)), **system, **features} for one in entities]
    return pa.Table.from_pylist(rows, view.row_schema)


def fill(stack: Stack, view: View, rows: pa.Table) -> None:
    """Let rows be online, and the materializer have said that no event waits."""
    with closing(opened(stack)) as store:
        store.write(view, rows)
    say_fresh(stack)


def opened(stack: Stack) -> OnlineStore:
    pipeline = stack.workspace.pipeline
    return OnlineStore(stack.workspace.online_url, pipeline.project, pipeline.views)


def say_fresh(stack: Stack) -> None:
    """Let the materializer have said that no event waits, for long."""
    ahead = int(datetime.now(UTC).timestamp() * 1_000_000) + _AHEAD_US
    progress = Progress(ahead, ahead, 1_000_000).to_bytes()
    told = {
        source_key(name, part): progress
        for name, contract in stack.workspace.contracts.items()
        for part in range(contract.stream.partitions)
    }
    with redis.Redis.from_url(stack.workspace.online_url) as client:
        client.hset(progress_key(stack.workspace.pipeline.project), mapping=told)
