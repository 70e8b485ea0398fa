"""The embedded online store: there while its parent is, and gone without a trace however that ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from freshet.flows.edges.valkey import Valkey

LIMIT_S = 30.0
PARENT = """
import sys
from freshet.flows.edges.valkey import Valkey
print(Valkey.start().port, flush=True)
sys.stdin.read()
"""


def silent(port: int) -> bool:
    """Wait until nobody listens on a port."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) != 0:
                return True
        time.sleep(0.01)
    return False


def test_a_new_server_is_empty_and_keeps_what_it_is_given() -> None:
    with Valkey.start() as server, redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
        client.set("a", "b")
        assert client.get("a") == b"b"


def test_it_listens_on_loopback_only() -> None:
    with Valkey.start() as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_closing_ends_it_and_leaves_no_file(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with Valkey.start() as server, redis.Redis.from_url(server.url) as client:
            client.set("a", "b")
            port = server.port
    finally:
        os.chdir(before)

    assert silent(port)
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_closing_once() -> None:
    server = Valkey.start()
    server.close()
    server.close()

    assert silent(server.port)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_parent_however_that_ends(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        os.kill(parent.pid, how)
        parent.wait(LIMIT_S)

        assert silent(port)


def test_two_servers_share_nothing() -> None:
    with Valkey.start() as one, Valkey.start() as other, redis.Redis.from_url(one.url) as client:
        client.set("a", "b")
        assert one.port != other.port
        with redis.Redis.from_url(other.url) as second:
            assert second.dbsize() == 0
