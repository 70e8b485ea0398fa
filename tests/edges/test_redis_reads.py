"""Reading hashes for many at once: Redis and its twin answer alike, and an outage is told to all who wait."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
import redis

from freshet.flows.edges.redis import MemoryOnlineStore, OnlineStore
from freshet.flows.edges.redis_reads import MemoryReads, RedisReads
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.online_layout import layouts
from freshet.schemas.progress import Progress, progress_key
from freshet.schemas.serving import Question
from freshet.schemas.view import Feature, View

PROJECT = "reads"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
VIEW = View("by_user", ("edits",), (pa.field("user", pa.string()),), (Feature("edits", DTYPES["int64"], ""),))
LAYOUT = layouts(PROJECT, [VIEW])["by_user"]
DEADLINE_S = 20.0
"""Long, so that a busy machine misses none."""

Reads = RedisReads | MemoryReads


def rows(*users: str) -> pa.Table:
    stamps = {"event_timestamp": NOON, "created": NOON, "_version": 1, "_partition": 0, "_offset": 0}
    found = [{"user": user, "edits": place, **stamps} for place, user in enumerate(users)]
    return pa.Table.from_pylist(found, schema=VIEW.row_schema)


@pytest.fixture(params=["redis", "memory"])
def opened(request: pytest.FixtureRequest, online_url: str) -> Callable[[], Reads]:
    """Return what opens the same rows, for an event loop of its own."""
    with redis.Redis.from_url(online_url) as client:
        client.flushdb()
        written = {"edits/000000": Progress(1, 2, 3), "edits/000001": Progress(4, 5, 6)}
        client.hset(progress_key(PROJECT), mapping={key: one.to_bytes() for key, one in written.items()})
    if request.param == "redis":
        OnlineStore(online_url, PROJECT, [VIEW]).write(VIEW, rows("ada", "bob"))
        return lambda: RedisReads(online_url, PROJECT, DEADLINE_S)
    store = MemoryOnlineStore(PROJECT, [VIEW])
    store.write(VIEW, rows("ada", "bob"))
    twin = MemoryReads(store)
    twin.progress = written
    return lambda: twin


@contextlib.asynccontextmanager
async def using(opened: Callable[[], Reads]) -> AsyncIterator[Reads]:
    reads = opened()
    try:
        yield reads
    finally:
        await reads.close()


def run(opened: Callable[[], Reads], act: Callable[[Reads], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        async with using(opened) as reads:
            return await act(reads)

    return asyncio.run(whole())


def question(*users: str) -> Question:
    return Question(LAYOUT.keys_of([(user,) for user in users]), LAYOUT.fields[2:])


def test_fields_are_read_in_the_order_of_the_questions_and_none_where_there_is_nothing(
    opened: Callable[[], Reads],
) -> None:
    asked = [question("bob", "eve", "ada"), Question([], LAYOUT.fields), question("ada")]

    found = run(opened, lambda reads: reads.read(asked))

    assert found == [[[b"\x20\x01"], [None], [b"\x20\x00"]], [], [[b"\x20\x00"]]]


def test_nothing_asked_is_nothing_read(opened: Callable[[], Reads]) -> None:
    assert run(opened, lambda reads: reads.read([])) == []


def test_progress_is_read_by_source(opened: Callable[[], Reads]) -> None:
    found = run(opened, lambda reads: reads.read_progress())

    assert found == {"edits/000000": Progress(1, 2, 3), "edits/000001": Progress(4, 5, 6)}


def test_many_who_ask_at_once_each_get_their_own_answer(opened: Callable[[], Reads]) -> None:
    async def crowd(reads: Reads) -> list[Any]:
        return await asyncio.gather(*(reads.read([question("ada" if n % 3 else "bob")]) for n in range(500)))

    found = run(opened, crowd)

    assert found == [[[[b"\x20\x00" if n % 3 else b"\x20\x01"]]] for n in range(500)]


def test_one_who_gives_up_takes_nobody_elses_answer(opened: Callable[[], Reads]) -> None:
    async def act(reads: Reads) -> Any:
        await reads.ping()
        gone = asyncio.ensure_future(reads.read([question("bob")]))
        await asyncio.sleep(0)
        gone.cancel()
        return await reads.read([question("ada")])

    assert run(opened, act) == [[[b"\x20\x00"]]]


@pytest.fixture
def mute() -> Iterator[int]:
    """A port where whatever comes is taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = list[socket.socket]()

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield listener.getsockname()[1]
        for one in held:
            one.close()


def test_what_never_answers_is_given_up_and_all_who_wait_are_told(mute: int) -> None:
    async def crowd() -> list[Any]:
        reads = RedisReads(f"redis://127.0.0.1:{mute}/0", PROJECT, 0.2)
        return await asyncio.gather(*(reads.ping() for _ in range(5)), return_exceptions=True)

    found = asyncio.run(crowd())

    assert [type(one) for one in found] == [Unavailable] * 5
    assert "did not answer within 0.2 s" in str(found[0])


def test_a_store_that_is_not_there_is_said_at_once_and_used_once_it_is(online_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"

    async def act() -> str:
        reads = RedisReads(url, PROJECT, DEADLINE_S)
        with pytest.raises(
            Unavailable, match=rf"online store Redis at 127\.0\.0\.1:{port} cannot be read: ConnectionRef"
        ):
            await reads.ping()
        host, _, found = online_url.removeprefix("redis://").partition("/")[0].partition(":")
        server = await asyncio.start_server(lambda *ends: relay(*ends, host, int(found)), "127.0.0.1", port)
        await reads.ping()
        server.close()
        await reads.close()
        return "answered"

    assert asyncio.run(act()) == "answered"


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    behind_reader, behind_writer = await asyncio.open_connection(host, port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer), return_exceptions=True)


def test_a_connection_that_was_closed_is_opened_again(online_url: str) -> None:
    async def act() -> None:
        reads = RedisReads(online_url, PROJECT, DEADLINE_S)
        await reads.ping()
        with redis.Redis.from_url(online_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        deadline = time.monotonic() + 60
        while True:  # the first question may meet the connection before it is known to be lost
            try:
                await reads.ping()
            except Unavailable:
                assert time.monotonic() < deadline
            else:
                break
        await reads.close()

    asyncio.run(act())


def test_what_is_no_redis_is_said(online_url: str) -> None:
    del online_url

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async def act() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="is no Redis"):
            await RedisReads(f"redis://127.0.0.1:{port}/0", PROJECT, DEADLINE_S).ping()
        server.close()

    asyncio.run(act())


def test_a_url_of_another_kind_is_refused_without_saying_it() -> None:
    with pytest.raises(Refused) as refusal:
        RedisReads("http://user:s3cret@host", PROJECT, DEADLINE_S)

    assert "s3cret" not in str(refusal.value)


def test_a_password_that_is_wrong_is_said(online_url: str) -> None:
    async def act() -> None:
        with pytest.raises(Unavailable, match="cannot be read: ReplyError: (WRONGPASS|ERR AUTH)"):
            await RedisReads(online_url.replace("redis://", "redis://nobody:no@"), PROJECT, DEADLINE_S).ping()

    asyncio.run(act())
