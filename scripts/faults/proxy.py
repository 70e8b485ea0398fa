"""A proxy before Redis, through which the materializer alone talks: it loses, alters and replays writes by a rule.

It parses pipelines into commands and answers into frames, so that a command that is kept back is answered in its turn.
Bytes that no rule strikes pass as they are.
"""

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 1 << 16
_PAIRED = b"%|"
_GROUPS, _STRINGS = b"*~>" + _PAIRED, b"$=!"

Command = tuple[bytes, ...]


@dataclass(frozen=True)
class Passing:
    """What becomes of a command: sent as `command`, or kept back and answered with `answer`.

    `before` is sent first, and its answers are kept from the client.
    """

    command: Command | None
    answer: bytes = b":1\r\n"
    before: tuple[Command, ...] = ()


Rule = Callable[[Command], Passing | None]
"""Says what becomes of a command; None if it passes as it is."""


def frame_end(data: bytes | bytearray, at: int = 0) -> int | None:
    r"""Return where the frame that begins at a place ends, None while it is not whole.

    >>> frame_end(b"+OK\r\n:1\r\n"), frame_end(b"*2\r\n$1\r\na\r\n$-1\r\n"), frame_end(b"$5\r\nab")
    (5, 16, None)
    """
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, end = data[at], line_end + 2
    if kind in _STRINGS:
        length = int(data[at + 1 : line_end])
        end = end if length < 0 else end + length + 2
        return end if end <= len(data) else None
    if kind in _GROUPS:
        count = int(data[at + 1 : line_end]) * (2 if kind in _PAIRED else 1)
        for _ in range(count):
            inner = frame_end(data, end)
            if inner is None:
                return None
            end = inner
    return end


def words_of(frame: bytes) -> Command:
    r"""Return a command's words.

    >>> words_of(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n")
    (b'GET', b'a')
    """
    words, at = [], frame.index(b"\r\n") + 2
    while at < len(frame):
        line_end = frame.index(b"\r\n", at)
        length = int(frame[at + 1 : line_end])
        words.append(frame[line_end + 2 : line_end + 2 + length])
        at = line_end + length + 4
    return tuple(words)


def frame_of(words: Sequence[bytes]) -> bytes:
    """Return a command as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


@dataclass(frozen=True)
class Passed:
    """What came by a proxy: how many commands, in how many bytes, and the server's answers."""

    commands_count: int = 0
    asked_bytes: int = 0
    answered_bytes: int = 0

    def since(self, before: "Passed") -> "Passed":
        """Return what came by later."""
        counts = self.commands_count - before.commands_count, self.asked_bytes - before.asked_bytes
        return Passed(*counts, self.answered_bytes - before.answered_bytes)


class Proxy:
    """Listens at `port` and talks to a server at `upstream_port`, both on loopback; `rule` None lets all pass.

    It waits `delay_s` before it passes commands on: a slow network, or a slow server.
    """

    def __init__(self, upstream_port: int, rule: Rule | None = None) -> None:
        self.rule, self.delay_s = rule, 0.0
        self._upstream_port = upstream_port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def send(self, commands: Sequence[Command]) -> None:
        """Have the server do something by itself, past whoever talks through the proxy; waits until it is done."""
        with socket.create_connection(("127.0.0.1", self._upstream_port)) as server:
            server.sendall(b"".join(map(frame_of, commands)))
            answers = bytearray()
            for _ in commands:
                while (end := frame_end(answers)) is None:
                    answers += server.recv(_CHUNK_BYTES)
                del answers[:end]

    @property
    def passed(self) -> Passed:
        """What came by until now."""
        with self._lock:
            links = [*self._links]
        counts = ((link.commands_count, link.asked_bytes, link.answered_bytes) for link in links)
        return Passed(*map(sum, zip(*counts, strict=True))) if links else Passed()

    def close(self) -> None:
        """Drop every connection."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for link in self._links:
                link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream_port))
            except OSError:  # as the client would find it
                client.close()
                continue
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._links.append(_Link(self, client, server))


class _Link:
    """One client's connection, and its own to the server. `_due` has what is to be answered, in order.

    None stands for the server's next answer, False for one of its that the client did not ask for.
    """

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._due: deque[bytes | bool | None] = deque()
        self._lock = threading.Lock()
        self.commands_count = self.asked_bytes = self.answered_bytes = 0
        for target in (self._pass_commands, self._pass_answers):
            threading.Thread(target=target, name="proxy link", daemon=True).start()

    def close(self) -> None:
        for each in (self._client, self._server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _pass_commands(self) -> None:
        waiting = bytearray()
        with contextlib.suppress(OSError):  # either end went away
            while data := self._client.recv(_CHUNK_BYTES):
                waiting += data
                self.asked_bytes += len(data)
                out, at = bytearray(), 0
                while at < len(waiting) and (end := frame_end(waiting, at)) is not None:
                    out += self._met(bytes(waiting[at:end]))
                    self.commands_count += 1
                    at = end
                del waiting[:at]
                if self._proxy.delay_s:
                    time.sleep(self._proxy.delay_s)
                self._server.sendall(out)
                with self._lock:
                    self._answer(b"")
        self.close()

    def _met(self, frame: bytes) -> bytes:
        rule = self._proxy.rule
        passing = rule(words_of(frame)) if rule else None
        with self._lock:
            if passing is None:
                self._due.append(None)
                return frame
            self._due.extend([False] * len(passing.before))
            self._due.append(None if passing.command else passing.answer)
        sent = [*passing.before, *([passing.command] if passing.command else [])]
        return b"".join(map(frame_of, sent))

    def _pass_answers(self) -> None:
        waiting = bytearray()
        with contextlib.suppress(OSError):  # as above
            while data := self._server.recv(_CHUNK_BYTES):
                waiting += data
                self.answered_bytes += len(data)
                out, at = bytearray(), 0
                with self._lock:
                    while at < len(waiting) and (end := frame_end(waiting, at)) is not None:
                        out += self._own(bytes(waiting[at:end]))
                        at = end
                    self._answer(bytes(out))
                del waiting[:at]
        self.close()

    def _own(self, frame: bytes) -> bytes:
        """Return what the client is told now that the server's next answer is there."""
        if frame.startswith(b">"):  # pushed, not asked for
            return frame
        return self._made() + (frame if self._due.popleft() is None else b"")

    def _made(self) -> bytes:
        made = b""
        while self._due and isinstance(self._due[0], bytes):
            made += self._due.popleft()  # type: ignore[operator]  # just looked at
        return made

    def _answer(self, data: bytes) -> None:
        data += self._made()
        if data:
            self._client.sendall(data)
