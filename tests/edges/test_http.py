"""HTTP as a function: what a client sends, in whatever pieces, is one request each, answered in its order."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.edges import http
from freshet.flows.edges.http import HEAD_BYTES_MAX, Request, Response

LIMIT_S = 60.0
ASKED = b"POST /a?x=1 HTTP/1.1\r\nHost: x\r\nX-One: 1\r\ncontent-length: 2\r\n\r\nhi"


@dataclass
class Asked:
    """Remembers what was asked, and answers with the body, once it may; `held` are the server's connections."""

    held: set[Any]
    requests: list[Request] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: Request) -> Response:
        self.requests.append(request)
        await self.may_answer.wait()
        if request.path == "/large":
            return Response(200, b"x" * LARGE_BYTES)
        if request.path == "/defect":
            raise AssertionError("ours")
        return Response(200, b"<%b>" % request.body, b"text/plain", ((b"x-two", b"2"),))


def talk(
    act: Callable[[asyncio.StreamReader, asyncio.StreamWriter, Asked], Awaitable[Any]], *, at_once: bool = True
) -> Any:
    """Let a client talk to a server of its own."""

    async def whole() -> Any:
        held = set[Any]()
        asked = Asked(held)
        if at_once:
            asked.may_answer.set()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: http._Connection(asked.handle, held), "127.0.0.1", 0)  # noqa: SLF001
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            async with asyncio.timeout(LIMIT_S):
                return await act(reader, writer, asked)
        finally:
            writer.close()
            server.close()

    return asyncio.run(whole())


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110  # what is waited for tells nobody
        await asyncio.sleep(0)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def test_a_request_is_one_object_and_its_answer_says_how_long_it_is() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        writer.write(ASKED)
        return await answer(reader), asked.requests

    told, requests = talk(act)

    headers = {b"host": b"x", b"x-one": b"1", b"content-length": b"2"}
    assert requests == [Request("POST", "/a", headers, b"hi")]
    assert told == (200, {"content-type": "text/plain", "content-length": "4", "x-two": "2"}, b"<hi>")


@given(st.lists(st.integers(0, 2 * len(ASKED) + 10), max_size=8))
def test_in_whatever_pieces_requests_come_they_are_the_same(cuts: list[int]) -> None:
    raw = ASKED + b"GET /b HTTP/1.1\r\n\r\n" + ASKED.replace(b"/a", b"/c")

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
        for start, end in itertools.pairwise(places):
            writer.write(raw[start:end])
            await writer.drain()
            await asyncio.sleep(0)
        return [(await answer(reader))[2] for _ in range(3)], [request.path for request in asked.requests]

    assert talk(act) == ([b"<hi>", b"<>", b"<hi>"], ["/a", "/b", "/c"])


def test_many_requests_that_come_before_any_answer_are_answered_in_their_order() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        for number in range(200):
            body = b"%d" % number
            writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await until(lambda: asked.requests)
        at_first = len(asked.requests)
        asked.may_answer.set()
        return at_first, [(await answer(reader))[2] for _ in range(200)]

    assert talk(act, at_once=False) == (1, [b"<%d>" % number for number in range(200)])


LARGE = b"POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000
LARGE_BYTES = 1_000_000


@pytest.mark.parametrize("ends", [False, True])
def test_who_takes_no_answers_gets_no_more_of_them_until_they_are_taken(*, ends: bool) -> None:
    """Also where the server is to end meanwhile: it finishes what it was asked."""
    count = 60  # answers take more than what lies between a client and a server can hold

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001  # else it reads ahead
        writer.write(b"GET /large HTTP/1.1\r\n\r\n" * count)
        await until(lambda: asked.held and all(one._is_full for one in asked.held))  # noqa: SLF001
        (connection,), at_first = asked.held, len(asked.requests)
        untaken_bytes = connection._transport.get_write_buffer_size()  # noqa: SLF001  # what it keeps
        if ends:
            connection.end()
        reader._transport.resume_reading()  # type: ignore[attr-defined]  # noqa: SLF001
        answers = [await answer(reader) for _ in range(count)]
        return at_first, untaken_bytes, [len(body) for _, _, body in answers], answers[-1][1].get("connection")

    at_first, untaken_bytes, lengths, last = talk(act)

    assert at_first < count // 2
    assert untaken_bytes < 2 * LARGE_BYTES
    assert (lengths, last) == ([LARGE_BYTES] * count, "close" if ends else None)


async def written(writer: asyncio.StreamWriter) -> None:
    while True:
        await writer.drain()
        writer.write(LARGE)


def test_who_takes_no_answers_for_long_is_let_go() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001  # else it reads ahead
        writer.write(LARGE * 200)
        with pytest.raises(ConnectionError):  # it is told so when it writes
            await written(writer)
        return len(asked.requests)

    assert talk(act) > 0


@pytest.mark.parametrize(
    "raw", [ASKED.replace(b"HTTP/1.1", b"HTTP/1.0"), ASKED.replace(b"X-One: 1", b"connection: close")]
)
def test_who_asks_once_is_answered_and_the_connection_closed(raw: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Asked) -> Any:
        writer.write(raw)
        return (await answer(reader))[1]["connection"], await reader.read()

    assert talk(act) == ("close", b"")


def test_a_client_that_waits_to_be_told_is_told_to_go_on() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Asked) -> Any:
        writer.write(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        told = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hi")
        return told, (await answer(reader))[2]

    assert talk(act) == (b"HTTP/1.1 100 Continue\r\n\r\n", b"<hi>")


def test_the_answer_to_head_has_no_body() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Asked) -> Any:
        writer.write(b"HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        return (await reader.read()).count(b"<>")

    assert talk(act) == 1


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 431),
        (b"hello\r\n\r\n", 400),
    ],
)
def test_what_cannot_be_read_is_refused_and_the_connection_closed(raw: bytes, status: int) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        writer.write(raw)
        told = (await answer(reader))[0]
        return told, await reader.read(), asked.requests

    assert talk(act) == (status, b"", [])


def test_another_protocol_that_is_offered_is_not_taken() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Asked) -> Any:
        writer.write(b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        return (await answer(reader))[0], await reader.read()

    assert talk(act) == (200, b"")


def test_a_defect_is_a_500_and_the_connection_closed() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: Asked) -> Any:
        told = list[dict[str, Any]]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        writer.write(b"GET /defect HTTP/1.1\r\n\r\n")
        return (await answer(reader))[0], await reader.read()

    assert talk(act) == (500, b"")


def test_a_path_with_scheme_and_host_is_the_path() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        writer.write(b"GET http://x:1/a/b?c HTTP/1.1\r\nhost: x\r\n\r\n")
        await answer(reader)
        return asked.requests[0].path

    assert talk(act) == "/a/b"


def test_who_goes_away_takes_his_question_along() -> None:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked) -> Any:
        writer.write(ASKED)
        await until(lambda: asked.requests)
        writer.transport.abort()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        return "gone"

    assert talk(act, at_once=False) == "gone"
