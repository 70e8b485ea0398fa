"""HTTP as a function: a `Request` in, a `Response` out. uvicorn speaks the protocol, on httptools and uvloop.

What is too large or too slow to come never reaches the function. Without a certificate it is plain HTTP; with the
certificate of a CA of its clients, who has none of theirs is not let in.
"""

import asyncio
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from freshet.schemas.errors import Problem, Refused

BODY_BYTES_MAX = 4 << 20
_BODY_LIMIT_S, _KEEP_ALIVE_S, _GRACE_S, _BACKLOG = 10.0, 75, 10, 2048
_JSON = b"application/json"

_Message = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked. `headers` has names in lower case; of one that is repeated, the last."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
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


class App:
    """The function as uvicorn calls it (ASGI 3)."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        assert scope["type"] == "http", "uvicorn is told to speak nothing else"
        headers = dict(scope["headers"])
        body: bytes | Response = await _body(headers, receive)
        if isinstance(body, bytes):
            response = await self._handle(Request(scope["method"], scope["path"], headers, body))
        else:
            response = body
        length = b"%d" % len(response.body)
        told = [(b"content-type", response.kind), (b"content-length", length), *response.headers]
        await send({"type": "http.response.start", "status": response.status, "headers": told})
        await send({"type": "http.response.body", "body": response.body})


async def _body(headers: Mapping[bytes, bytes], receive: Callable[[], Awaitable[_Message]]) -> bytes | Response:
    """Return a request's body, or what is answered in its place."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > BODY_BYTES_MAX:
        return _TOO_LARGE
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(_BODY_LIMIT_S):
            while True:
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > BODY_BYTES_MAX:
                    return _TOO_LARGE
                if not message.get("more_body"):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        return _TOO_SLOW


_CLOSE = ((b"connection", b"close"),)
_TOO_LARGE = Response(413, b'{"detail":"the body is larger than %d bytes"}' % BODY_BYTES_MAX, headers=_CLOSE)
_TOO_SLOW = Response(408, b'{"detail":"the body did not come within %d s"}' % _BODY_LIMIT_S, headers=_CLOSE)


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
    # uvicorn raises a signal that ended it once more, at the handler that was there before
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    async def run() -> None:
        config = _config(App(await open_handler()), security)
        try:
            await uvicorn.Server(config).serve(sockets=[bound])
        finally:
            await close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _config(app: App, security: Security) -> uvicorn.Config:
    if security.certificate is None and (security.key or security.client_ca):  # uvicorn would speak plain HTTP
        hint = "set FRESHET_SERVER_CERTIFICATE, or neither …_KEY nor …_CLIENT_CA"
        raise Refused(
            [Problem("certificate", str(security.key or security.client_ca), "is of no use alone", hint=hint)]
        )
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=security.certificate,
        ssl_keyfile=security.key,
        ssl_ca_certs=None if security.client_ca is None else str(security.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if security.client_ca is None else ssl.CERT_REQUIRED,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        hint = "FRESHET_SERVER_CERTIFICATE, …_KEY and …_CLIENT_CA name PEM files"
        raise Refused(
            [Problem("certificate", str(security.certificate), f"cannot be used: {error}", hint=hint)]
        ) from error
    return config
