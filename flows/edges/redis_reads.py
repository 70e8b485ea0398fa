"""Reading the online store while many wait: one connection, everybody's questions in one pipeline, no thread.

What a request asks is one write to the socket, however many entities it is about, and it waits for nobody else's
answer but those that were asked before it. hiredis packs and parses. A connection whose oldest question has had no
answer for the deadline is given up, with all who wait for it; the next question opens another.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection

from freshet.flows.edges.redis import Command, MemoryOnlineStore, packed
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.progress import Progress, progress_key
from freshet.schemas.serving import Question

_LOOKS = 10
"""How often in a deadline it is looked whether it has passed."""


class RedisReads:
    """Hashes of a Redis, read by the fields that are asked for. It belongs to one event loop.

    `url` is a redis://, rediss:// or unix:// URL; raises `Refused` for another. An outage is not waited out here: who
    asked is told at once, or at the latest after `deadline_s`, by `Unavailable`, and may ask again.
    """

    def __init__(self, url: str, project: str, deadline_s: float) -> None:
        self._deadline_s, self._progress_key = deadline_s, progress_key(project)
        try:
            self._options: Any = Redis.from_url(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
        except ValueError:  # its text may hold pieces of the password
            hint = "write redis://host:6379/0, rediss://… or unix:///path; percent-encode user and password"
            raise Refused([Problem("key", "onlineStore", "is not a Redis URL", hint=hint)]) from None
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None

    async def read(self, questions: Sequence[Question]) -> list[list[list[bytes | None]]]:
        """Return, for each question, the fields of each of its hashes, in order. Raises `Unavailable`."""
        answers = await self._ask([command for each in questions for command in _hmgets(each)])
        found, at = [], 0
        for each in questions:
            found.append(answers[at : at + len(each.keys)])
            at += len(each.keys)
        return found

    async def read_progress(self) -> dict[str, Progress]:
        """Return what the materializer wrote, by source key. Raises `Unavailable`."""
        (flat,) = await self._ask([packed(("HGETALL", self._progress_key))])
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {key.decode(): Progress.from_bytes(value) for key, value in pairs}

    async def ping(self) -> None:
        """Make sure that the store answers; raises `Unavailable`."""
        await self._ask([packed(("PING",))])

    async def answered(self) -> None:
        """Return once all who asked before have been answered, or told that they will not be."""
        with contextlib.suppress(Unavailable):  # then they were told so, too
            await self.ping()  # answers come in the order of their questions

    async def close(self) -> None:
        """Let go of the connection."""
        if self._link is not None:
            self._link.give_up(Unavailable("the server is stopping"))

    async def _ask(self, commands: Sequence[bytes]) -> list[Any]:
        link = self._link
        if link is None or link.is_lost:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._opened())
            link = await asyncio.shield(self._opening)  # one for all, else each would wait after the other
        answers = await link.ask(commands)
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise self._unavailable(answer)
        return answers

    async def _opened(self) -> "_Link":
        try:
            async with asyncio.timeout(self._deadline_s):
                link = await self._connected()
                for said in await link.ask([*map(packed, self._greeting())]):
                    if isinstance(said, hiredis.ReplyError):
                        link.give_up(self._unavailable(said))
                        raise self._unavailable(said)
        except (OSError, TimeoutError) as error:
            raise self._unavailable(error) from error
        self._link = link
        return link

    async def _connected(self) -> "_Link":
        loop, options = asyncio.get_running_loop(), self._options

        def make() -> _Link:
            return _Link(self._deadline_s, self._address)

        if path := getattr(options, "path", None):
            _, link = await loop.create_unix_connection(make, path)
            return link
        secure: ssl.SSLContext | None = options.ssl_context.get() if isinstance(options, SSLConnection) else None
        _, link = await loop.create_connection(make, options.host, options.port, ssl=secure)
        return link

    def _greeting(self) -> list[Command]:
        options, greeting = self._options, list[Command]()
        if options.password:
            greeting.append(("AUTH", *([options.username] if options.username else []), options.password))
        if options.db:
            greeting.append(("SELECT", str(options.db)))
        return greeting

    @property
    def _address(self) -> str:
        options = self._options
        return str(getattr(options, "path", None) or f"{options.host}:{options.port}")

    def _unavailable(self, error: Exception) -> Unavailable:
        said = str(error) or f"no answer within {self._deadline_s:g} s"
        return Unavailable(f"online store Redis at {self._address} cannot be read: {type(error).__name__}: {said}")


def _hmgets(question: Question) -> list[bytes]:
    """Return the commands of a question as Redis reads them; all but the key is the same for all entities.

    >>> _hmgets(Question([b"ada"], (b"age",))) == [packed(("HMGET", b"ada", b"age"))]
    True
    """
    head, tail = _around_key(tuple(question.fields))
    return [b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, tail) for key in question.keys]


@lru_cache(1000)
def _around_key(fields: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    head, _, tail = packed(("HMGET", b"", *fields)).partition(b"$0\r\n\r\n")
    return head, tail


class _Link(asyncio.Protocol):
    """One connection, and who waits for its answers."""

    def __init__(self, deadline_s: float, address: str) -> None:
        self._parser = hiredis.Reader()
        self._waiting: deque[_Waiting] = deque()
        self._deadline_s, self._address = deadline_s, address
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._look: asyncio.TimerHandle | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by inheritance

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands; return their answers, errors among them. Raises `Unavailable`."""
        if not commands:
            return []
        assert self._transport is not None, "asked before it was connected"
        waiting = _Waiting(len(commands), self._loop.create_future(), self._loop.time())
        self._waiting.append(waiting)
        self._transport.write(b"".join(commands))
        if self._look is None:
            self._look = self._loop.call_later(self._deadline_s / _LOOKS, self._look_at_deadline)
        return await waiting.told

    def data_received(self, data: bytes) -> None:
        """Hand out answers, in the order of the questions."""
        self._parser.feed(data)
        while self._waiting:
            first = self._waiting[0]
            while len(first.answers) < first.count:
                try:
                    answer = self._parser.gets()
                except hiredis.ProtocolError as error:
                    self.give_up(Unavailable(f"what answers at {self._address} is no Redis: {error}"))
                    return
                if answer is False:
                    return
                first.answers.append(answer)
            self._waiting.popleft()
            if not first.told.done():  # who asked may have gone
                first.told.set_result(first.answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait."""
        why = f": {exc}" if exc else ""
        self.give_up(Unavailable(f"online store Redis at {self._address} closed the connection{why}"))

    def give_up(self, error: Unavailable) -> None:
        """Close, and tell all who wait why."""
        self.is_lost = True
        if self._look is not None:
            self._look.cancel()
            self._look = None
        while self._waiting:
            told = self._waiting.popleft().told
            if not told.done():
                told.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    def _look_at_deadline(self) -> None:
        self._look = None
        if not self._waiting:
            return
        if self._loop.time() - self._waiting[0].since_s > self._deadline_s:
            fact = f"did not answer within {self._deadline_s:g} s"
            self.give_up(Unavailable(f"online store Redis at {self._address} {fact}"))
        else:
            self._look = self._loop.call_later(self._deadline_s / _LOOKS, self._look_at_deadline)


class _Waiting:
    """Who waits for so many answers, and since when."""

    __slots__ = ("answers", "count", "since_s", "told")

    def __init__(self, count: int, told: "asyncio.Future[list[Any]]", since_s: float) -> None:
        self.count, self.told, self.since_s = count, told, since_s
        self.answers: list[Any] = []


class MemoryReads:
    """The twin of `RedisReads`: the hashes of a `MemoryOnlineStore`."""

    def __init__(self, store: MemoryOnlineStore) -> None:
        self._store = store
        self.progress: Mapping[str, Progress] = {}
        self.outage: Unavailable | None = None
        """What is raised instead of an answer."""

    async def read(self, questions: Sequence[Question]) -> list[list[list[bytes | None]]]:
        """Return, for each question, the fields of each of its hashes, in order."""
        await self.ping()
        return [[self._store.fields(key, each.fields) for key in each.keys] for each in questions]

    async def read_progress(self) -> dict[str, Progress]:
        """Return what was written."""
        await self.ping()
        return dict(self.progress)

    async def ping(self) -> None:
        """Answer."""
        if self.outage is not None:
            raise self.outage

    async def answered(self) -> None:
        """Return: nobody waits."""

    async def close(self) -> None:
        """Do nothing."""
