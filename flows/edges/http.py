"""HTTP/1.1 as a function: a `Request` in, a `Response` out. httptools parses, uvloop waits, and nothing stands between.

A general server (uvicorn) costs more for a request than reading the features that it asks for; here a request is one
object and its answer one write. What is too large or too slow to come never reaches the function. Requests of one
connection are answered in their order, one after the other, and no more than the client takes. Without a certificate
it is plain HTTP; with the certificate of a CA of its clients, who has none of theirs is not let in.
"""

import asyncio
import http
import logging
import math
import signal
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import uvloop

from freshet.schemas.errors import Problem, Refused

LOG = logging.getLogger("freshet")

BODY_BYTES_MAX, HEAD_BYTES_MAX = 4 << 20, 64 << 10
_BODY_LIMIT_S, _KEEP_ALIVE_S, _GRACE_S, _LOOK_AGAIN_S, _BACKLOG = 10.0, 75.0, 10.0, 0.02, 2048
_QUEUE_MAX = 16
"""So many requests of one connection may wait; then no more is read from it."""
_JSON = b"application/json"


class Request(NamedTuple):
    """What was asked. `headers` has names in lower case; of one that is repeated, the last."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes = b""


class Response(NamedTuple):
    """What is answered."""

    status: int
    body: bytes
    kind: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Security:
    """A certificate and its key, and the CA of the clients' certificates if they must have one."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


def _problem(status: int, detail: bytes) -> Response:
    return Response(status, b'{"detail":"%s"}' % detail)


_TOO_LARGE = _problem(413, b"the body is larger than %d bytes" % BODY_BYTES_MAX)
_TOO_LONG = _problem(431, b"the headers are longer than %d bytes" % HEAD_BYTES_MAX)
_TOO_SLOW = _problem(408, b"the request did not come within %d s" % _BODY_LIMIT_S)
_NO_HTTP = _problem(400, b"what came is no HTTP/1.1 request")
_DEFECT = _problem(500, b"a defect of the server's, which its log tells of")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}


class _Connection(asyncio.Protocol):
    """One client's connection. Methods that begin with on_ are httptools'."""

    def __init__(self, handle: Handler, held: "set[_Connection]") -> None:
        self._handle, self._held = handle, held
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = self._timer_due_s = math.inf
        self._ends = self._is_incomplete = self._is_full = False
        self._untaken_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._url, self._headers, self._body = b"", dict[bytes, bytes](), list[bytes]()
        self._head_bytes = self._body_bytes = 0

    # --- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._held.add(self)
        self._wait(_KEEP_ALIVE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; what is in work is of no use any more."""
        del exc
        self._held.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._ends:
            return
        was_incomplete = self._is_incomplete
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to what we do not speak: it is answered, and nothing is read after it
            self._ends = True
        except httptools.HttpParserError:
            self._refuse(_NO_HTTP)
        if self._is_incomplete and not was_incomplete and not self._ends:
            self._wait(_BODY_LIMIT_S)
        if len(self._waiting) > _QUEUE_MAX:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Take nothing more from who takes no answers, and make no more of them."""
        self._is_full = True
        self._transport.pause_reading()
        self._wait_for_client()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_full = False
        if self._transport.is_closing():
            return
        if len(self._waiting) <= _QUEUE_MAX:
            self._transport.resume_reading()
        if self._task is None:
            self._go_on()

    def end(self) -> None:
        """Finish what is in work, and close."""
        self._ends = True
        if self._task is None and not self._waiting:
            self._close()

    def _close(self) -> None:
        """Close once what was written is taken, or nothing of it for long."""
        self._transport.close()
        self._wait_for_client()

    def _wait_for_client(self) -> None:
        self._untaken_bytes = self._transport.get_write_buffer_size()
        self._wait(_BODY_LIMIT_S)

    def _wait(self, limit_s: float | None) -> None:
        """Wait for what comes no longer than that; for ever while something is in work.

        A timer that stands is left to find out itself that it came too early: most requests need none of their own.
        """
        self._due_s = math.inf if limit_s is None else self._loop.time() + limit_s
        if self._due_s < self._timer_due_s:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due_s = self._loop.call_at(self._due_s, self._tire), self._due_s

    def _tire(self) -> None:
        self._timer, self._timer_due_s = None, math.inf
        if self._due_s > self._loop.time():
            if self._due_s < math.inf:
                self._set_timer()
        elif self._is_full or self._transport.is_closing():
            if self._transport.get_write_buffer_size() < self._untaken_bytes:
                self._wait_for_client()
            else:  # nobody takes the answers
                self._transport.abort()
        elif self._is_incomplete:
            self._refuse(_TOO_SLOW)
        else:
            self._close()

    # --- the parser ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin()
        self._is_incomplete = True

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Look whether the body should come at all."""
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > BODY_BYTES_MAX:
            self._refuse(_TOO_LARGE)
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and self._task is None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            self._refuse(_TOO_LARGE)

    def on_message_complete(self) -> None:
        """Answer, or let it wait for those before it."""
        self._is_incomplete = False
        if self._ends:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        path = self._url if self._url.startswith(b"/") else _path(self._url)
        method = self._parser.get_method().decode()
        request = Request(method, path.partition(b"?")[0].decode("latin-1"), self._headers, body)
        self._waiting.append((request, self._parser.should_keep_alive()))
        if self._task is None and not self._is_full:
            self._next()

    def _count_head(self, bytes_count: int) -> None:
        self._head_bytes += bytes_count
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(_TOO_LONG)

    def _refuse(self, response: Response) -> None:
        """Answer what cannot be read, unless something before it is not answered yet, and close."""
        if self._ends:
            return
        self._ends, self._is_incomplete = True, False
        is_next = not self._waiting
        self._waiting.clear()
        if self._task is None:
            self._write(response, keeps=False) if is_next else self._close()

    # --- the answer ---------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        self._wait(None)
        request, keeps = self._waiting.popleft()
        self._task = self._loop.create_task(self._answer(request, keeps=keeps))

    async def _answer(self, request: Request, *, keeps: bool) -> None:
        response = _DEFECT
        try:
            response = await self._handle(request)
        finally:  # an exception is a defect of ours: it is answered, and told where the loop tells of them
            self._task = None
            if not self._transport.is_closing():
                self._write(response, keeps=keeps and response is not _DEFECT, has_body=request.method != "HEAD")
        if not self._is_full:
            self._go_on()

    def _go_on(self) -> None:
        """Answer what waits, or wait for more."""
        if self._waiting:
            self._next()
            if len(self._waiting) == _QUEUE_MAX:
                self._transport.resume_reading()
        elif not self._ends:
            self._wait(_BODY_LIMIT_S if self._is_incomplete else _KEEP_ALIVE_S)

    def _write(self, response: Response, *, keeps: bool, has_body: bool = True) -> None:
        keeps = keeps and not (self._ends and not self._waiting)
        parts = [
            _LINES[response.status],
            b"content-type: %b\r\ncontent-length: %d\r\n" % (response.kind, len(response.body)),
            *(b"%b: %b\r\n" % pair for pair in response.headers),
            b"\r\n" if keeps else b"connection: close\r\n\r\n",
        ]
        if has_body:
            parts.append(response.body)
        self._transport.write(b"".join(parts))
        if not keeps:
            self._ends = True
            self._waiting.clear()
            self._close()


def _path(url: bytes) -> bytes:
    """Return the path of a URL with scheme and host, as a proxy gets it; nothing if there is none."""
    try:
        return bytes(httptools.parse_url(url).path or b"/")
    except httptools.HttpParserInvalidURLError:
        return b""


def bind(address: str) -> socket.socket:
    """Take an address, host:port; port 0 takes any. Raises `Refused`."""
    host, _, port = address.rpartition(":")
    bound = None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]") or "127.0.0.1", int(port)))
        bound.listen(_BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        if bound is not None:
            bound.close()
        hint = "name a free one with FRESHET_SERVER_ADDRESS=HOST:PORT; port 0 takes any"
        raise Refused([Problem("address", address, f"cannot be listened at: {error}", hint=hint)]) from error
    return bound


def serve(
    open_handler: Callable[[], Awaitable[Handler]],
    bound: socket.socket,
    security: Security,
    close: Callable[[], Awaitable[None]],
) -> None:
    """Answer requests until SIGTERM or SIGINT; what is in work then is finished. Raises `Refused` for a certificate."""
    secure = _secure(security)

    async def run() -> None:
        loop, ended, held = asyncio.get_running_loop(), asyncio.Event(), set[_Connection]()
        loop.set_exception_handler(_tell)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        handle = await open_handler()
        try:
            made = await loop.create_server(lambda: _Connection(handle, held), sock=bound, ssl=secure, backlog=_BACKLOG)
            await ended.wait()
            made.close()
            deadline_s = loop.time() + _GRACE_S
            for connection in [*held]:
                connection.end()
            while held and loop.time() < deadline_s:  # noqa: ASYNC110  # each ends by itself, and this once
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            await close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Tell of an exception that nobody caught, but of none that a client made by going away."""
    error = context.get("exception")
    if not isinstance(error, ConnectionError | ssl.SSLError):
        LOG.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)


def _secure(security: Security) -> ssl.SSLContext | None:
    if security.certificate is None:
        if alone := security.key or security.client_ca:  # else it would speak plain HTTP
            hint = "set FRESHET_SERVER_CERTIFICATE, or neither …_KEY nor …_CLIENT_CA"
            raise Refused([Problem("certificate", str(alone), "is of no use alone", hint=hint)])
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(security.certificate, security.key)
        if security.client_ca is not None:
            context.load_verify_locations(security.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        hint = "FRESHET_SERVER_CERTIFICATE, …_KEY and …_CLIENT_CA name PEM files"
        named = str(security.certificate)
        raise Refused([Problem("certificate", named, f"cannot be used: {error}", hint=hint)]) from error
    return context
