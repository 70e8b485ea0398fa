"""The load: one process that asks over a few connections, and keeps when each answer came.

It runs beside the bench (`serving_rig.Child`), one line of JSON in, one out. It is meant to cost little: non-blocking
sockets, requests that are bytes before anything is timed, answers that are read but not parsed. What it costs itself,
and how late it is, is told with every result.

Saturated, each connection asks again as soon as it has its answer. Paced, requests are due at instants that nothing
else moves; one that finds no connection free waits, and its latency counts from when it was due, so a server that
stalls is charged for all who would have asked meanwhile.
"""

import ctypes
import gc
import itertools
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

PATH = "/get-online-features"
REQUESTS_COUNT = 10_000
"""How many requests are prepared; then they come again."""
_CHUNK_BYTES, _STALLED_S, _CONNECT_S = 1 << 18, 60.0, 20.0
_PR_SET_TIMERSLACK, _SLACK_NS = 29, 1000


# --- requests and answers ---------------------------------------------------------------------------------------------


def body(features: Sequence[str], entity: str, ids: Sequence[int]) -> bytes:
    """Return a question as Feast's clients put it."""
    return json.dumps({"features": list(features), "entities": {entity: list(ids)}}, separators=(",", ":")).encode()


def request(port: int, content: bytes) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def questions(task: dict[str, Any]) -> list[list[int]]:
    """Return whose features each request asks for: by chance, and the same for the same seed."""
    return _questions(task["seed"], task["entities_count"], task["entities"])


@lru_cache(maxsize=1)
def _questions(seed: int, entities_count: int, entities: int) -> list[list[int]]:
    chance = np.random.default_rng(seed)
    found: list[list[int]] = chance.integers(0, entities_count, (REQUESTS_COUNT, entities)).tolist()
    return found


def requests(task: dict[str, Any]) -> list[bytes]:
    """Return them as HTTP has them."""
    return _requests(
        task["port"], tuple(task["features"]), task["entity"], task["seed"], task["entities_count"], task["entities"]
    )


@lru_cache(maxsize=4)
def _requests(port: int, features: Sequence[str], entity: str, *drawn: int) -> list[bytes]:
    return [request(port, body(features, entity, ids)) for ids in _questions(*drawn)]


def is_mixed(answer: dict[str, Any], pushed_count: int) -> bool:
    """Say whether an answer holds values, or a time, of two versions of one entity's row, or of two entities.

    Every feature of a pushed row carries one and the same number, as its own type can, and that number's rest by
    `pushed_count` is the entity's; a feature's name ends with its type.

    >>> one, two = ({"values": [7, 8], "event_timestamps": ["t", "t"]}, {"values": ["7", "8"], "event_timestamps": ["t", "t"]})
    >>> names = {"feature_names": ["user_id", "a_int64", "b_string"]}
    >>> ids = {"values": [2, 3], "event_timestamps": ["", ""]}
    >>> is_mixed({"metadata": names, "results": [ids, one, two]}, 5)
    False
    >>> is_mixed({"metadata": names, "results": [ids, one, {**two, "values": ["7", "13"]}]}, 5)
    True
    """
    _, *names = answer["metadata"]["feature_names"]
    ids, *columns = answer["results"]
    types = [name.rpartition("_")[2] for name in names]
    own = columns[types.index("int64")]
    for place, entity in enumerate(ids["values"]):
        number = own["values"][place]
        if number is None or int(number) % pushed_count != entity:
            return True
        for kind, column in zip(types, columns, strict=True):
            if column["values"][place] != carried(kind, int(number)):
                return True
            if column["event_timestamps"][place] != own["event_timestamps"][place]:
                return True
    return False


def carried(kind: str, number: int) -> Any:
    """Return how a type carries a number in JSON.

    >>> [carried(kind, 2**24 + 3) for kind in ("int64", "float32", "bool", "string")]
    [16777219, 3.0, True, '16777219']
    """
    match kind:
        case "int32":
            return number % 2**31
        case "int64":
            return number
        case "float32":
            return float(number % 2**24)  # as many as it has exactly
        case "float64":
            return float(number)
        case "bool":
            return number % 2 == 1
    return str(number)


# --- connections ------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """A connection ended before its answer was whole."""


class Caller:
    """One connection, with at most one request on its way. It is opened again when the server closes it."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self._port, self._selector = port, selector
        self.due_s, self.idle_since_s = 0.0, time.perf_counter()
        self.status, self.body, self.sent = b"", b"", b""
        self.reopened_count, self.broken_count = 0, 0
        self._open()

    def _open(self) -> None:
        deadline = time.monotonic() + _CONNECT_S
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=_CONNECT_S)
                break
            except ConnectionRefusedError:  # it may be starting again
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ, self)
        self._parts: list[bytes] = []
        self._missing, self._closes, self._is_asked = 0, False, False

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()

    def ask(self, sent: bytes, due_s: float) -> None:
        """Send a request; its latency counts from `due_s`."""
        self.sent, self.due_s, self._is_asked = sent, due_s, True
        while True:
            try:
                sent_bytes = self._socket.send(sent)
            except (BrokenPipeError, ConnectionResetError):  # closed while it was idle, as HTTP allows
                self.reopened_count += 1
                self.reopen()
            else:
                assert sent_bytes == len(sent), "a request is smaller than a socket's buffer"
                return

    def read(self) -> bool:
        """Read what has come; say whether the answer is whole. A connection that ended before is opened again and asked again.

        One that ended with nothing asked is opened again, too: a server may close what is idle.
        """
        try:
            return self._read()
        except (Broken, ConnectionResetError):
            if not self._is_asked:
                self.reopened_count += 1
                self.reopen()
                return False
            self.broken_count += 1
            self.reopen()
            self.ask(self.sent, self.due_s)
            return False

    def _read(self) -> bool:
        try:
            chunk = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            raise Broken
        if not self._missing:
            self._parts.append(chunk)
            if len(self._parts) > 1:
                chunk = b"".join(self._parts)
            end = chunk.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = chunk[:end].lower()
            at = head.index(b"content-length:") + 15
            whole = end + 4 + int(head[at:].split(b"\r", 1)[0])
            self.status, self._closes = chunk[9:12], b"connection: close" in head
            self._parts, self._head_bytes = [chunk], end + 4
            self._missing = whole - len(chunk)
        else:
            self._parts.append(chunk)
            self._missing -= len(chunk)
        if self._missing:
            return False
        self.body = b"".join(self._parts)[self._head_bytes :]
        self._parts = []
        return True

    def finish(self, now_s: float) -> None:
        """Be free for the next request."""
        self.idle_since_s, self._is_asked = now_s, False
        if self._closes:
            self.reopened_count += 1
            self.reopen()


# --- what is measured -------------------------------------------------------------------------------------------------


class Told:
    """What became of all requests of one measurement."""

    def __init__(self, keep: bool) -> None:  # noqa: FBT001  # of this file alone
        self.latencies_s: list[float] = []
        self.lates_s: list[float] = []
        self.errors_count, self.first_error = 0, ""
        self.bodies: list[bytes] | None = [] if keep else None
        self.begun_s, self.ended_s = time.perf_counter(), 0.0
        self._cpu_s = time.process_time()

    def answered(self, caller: Caller, now_s: float) -> None:
        self.latencies_s.append(now_s - caller.due_s)
        if caller.status != b"200":
            self.errors_count += 1
            self.first_error = self.first_error or caller.body[-500:].decode(errors="replace")
        elif self.bodies is not None:
            self.bodies.append(caller.body)

    def result(self, **more: Any) -> dict[str, Any]:
        own_cpu_s = time.process_time() - self._cpu_s
        return {
            **summary(self.latencies_s, self.ended_s - self.begun_s),
            "errors_count": self.errors_count,
            "first_error": self.first_error,
            "late_p99_ms": percentile_ms(self.lates_s, 99.0),
            "own_cpu_s": own_cpu_s,
            **more,
        }


def summary(latencies_s: Sequence[float], seconds: float) -> dict[str, Any]:
    """Return count, rate and percentiles. All latencies are kept until here, so these are exact."""
    return {
        "count": len(latencies_s),
        "seconds": seconds,
        "per_s": len(latencies_s) / seconds,
        **{f"p{share:g}_ms": percentile_ms(latencies_s, share) for share in (50.0, 99.0, 99.9, 100.0)},
    }


def percentile_ms(seconds: Sequence[float], share: float) -> float | None:
    """Return the least that so many percent do not pass.

    >>> percentile_ms([0.001, 0.002, 0.004], 50.0), percentile_ms([], 50.0)
    (2.0, None)
    """
    if not seconds:
        return None
    return float(np.percentile(np.array(seconds), share, method="inverted_cdf")) * 1000


def saturate(
    callers: Sequence[Caller], asked: Iterator[bytes], selector: selectors.BaseSelector, told: Told, seconds: float
) -> None:
    """Ask on every connection as soon as it has its answer."""
    now = time.perf_counter()
    end, open_count = now + seconds, len(callers)
    for caller in callers:
        caller.ask(next(asked), now)
    while open_count:
        ready = selector.select(_STALLED_S)
        if not ready:
            raise TimeoutError(f"no answer for {_STALLED_S:.0f} s")
        for key, _ in ready:
            caller = key.data
            if not caller.read():
                continue
            now = time.perf_counter()
            told.answered(caller, now)
            caller.finish(now)
            if now < end:
                caller.ask(next(asked), time.perf_counter())
            else:
                open_count -= 1
    told.ended_s = time.perf_counter()


def pace(
    callers: Sequence[Caller],
    asked: Iterator[bytes],
    selector: selectors.BaseSelector,
    told: Told,
    dues_s: Sequence[float],
) -> None:
    """Ask at given instants, counted from now, on whichever connection is free."""
    begun, free = time.perf_counter(), list(callers)
    sent_count, done_count, count = 0, 0, len(dues_s)
    while done_count < count:
        now = time.perf_counter()
        while free and sent_count < count and begun + dues_s[sent_count] <= now:
            caller, due_s = free.pop(), begun + dues_s[sent_count]
            caller.ask(next(asked), due_s)
            told.lates_s.append(now - max(due_s, caller.idle_since_s))
            sent_count += 1
            now = time.perf_counter()
        wait_s = begun + dues_s[sent_count] - now if free and sent_count < count else _STALLED_S
        ready = selector.select(max(0.0, wait_s))
        if not ready and not free and wait_s == _STALLED_S:
            raise TimeoutError(f"no answer for {_STALLED_S:.0f} s")
        for key, _ in ready:
            caller = key.data
            if caller.read():
                now = time.perf_counter()
                told.answered(caller, now)
                done_count += 1
                caller.finish(now)
                free.append(caller)
    told.ended_s = time.perf_counter()


def dues(task: dict[str, Any]) -> list[float]:
    """Return when requests are due: as independent callers come (Poisson), or evenly."""
    count = max(1, round(task["rate"] * task["seconds"]))
    if task["arrivals"] == "even":
        return [(number + 1) / task["rate"] for number in range(count)]
    chance = np.random.default_rng(task["seed"])
    found: list[float] = np.cumsum(chance.exponential(1 / task["rate"], count)).tolist()
    return found


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Put one load on a server, and return what became of it."""
    asked, instants = itertools.cycle(requests(task)), dues(task) if task.get("rate") else None
    pushed_count = task.get("pushed_count")
    # Of all selectors only this one waits for less than a millisecond.
    with selectors.SelectSelector() as selector:
        callers = [Caller(task["port"], selector) for _ in range(task["connections"])]
        gc.collect()
        gc.disable()
        told = Told(keep=pushed_count is not None)
        if instants is None:
            saturate(callers, asked, selector, told, task["seconds"])
        else:
            pace(callers, asked, selector, told, instants)
        result = told.result(
            broken_count=sum(caller.broken_count for caller in callers),
            reopened_count=sum(caller.reopened_count for caller in callers),
        )
        gc.enable()
        for caller in callers:
            caller.close()
    if told.bodies is not None:
        result["mixed_count"] = sum(is_mixed(json.loads(content), pushed_count) for content in told.bodies)
    return result


# --- processes of the bench -------------------------------------------------------------------------------------------


def answer_lines(do: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do what each line of JSON asks for, and answer with one, until the input ends. Nothing else is printed there."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print
        for line in sys.stdin:
            print(json.dumps(do(json.loads(line))), file=answers, flush=True)


def wake_on_time() -> None:
    """Have the kernel wake this process when it is due, and not 50 µs later: Linux's own default."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
    except (AttributeError, OSError):  # no Linux
        return


def main() -> None:
    """Put loads on servers, as asked."""
    wake_on_time()
    answer_lines(measure)


def nothing() -> None:
    """Answer every request at once with the same bytes, at the port that is printed: what the load itself costs, and no less can be."""
    content = b"{}"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(content),
        content,
    )
    with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is server:
                    caller, _ = server.accept()
                    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(caller, selectors.EVENT_READ)
                    continue
                caller = key.fileobj  # type: ignore[assignment]  # all others are connections
                if caller.recv(_CHUNK_BYTES):
                    caller.sendall(answer)
                else:
                    selector.unregister(caller)
                    caller.close()
