"""The online store on Redis or Valkey: byte for byte what Feast 0.67 writes, and each row in one atomic step.

Keys, fields and values are as `schemas.online_layout` has them.

Feast reads the stored time, compares in Python and then writes: two writers can bring an older row back, and a
correction with an equal time is dropped. Here a script compares and sets inside the server, one key a call, so it runs
on a cluster too. A row replaces the stored one iff its (event_timestamp, version) is not smaller. A row that stock
Feast wrote has version 0: the prefix of `_v` tells that the version is not its own.

One key more, `freshet:<project>:writes`, counts writes of up to a thousand rows, in the store itself. A server that
restarted without its data, or with older data, or a replica that took over behind its primary, counts less than it was
seen to. Another, `schemas.progress.progress_key`, says up to when the rows are whole.

A hash expires when the last of its rows has outlived its view's ttl, and never if one of them is of a view without ttl,
or of a view that somebody else keeps there. A row's ttl counts from its event time, as in Feast's point-in-time joins;
of a row that has outlived it by the time it is written it counts from then, as Feast's own `key_ttl_seconds` does:
events of long ago that are replayed make rows that can be read. Redis drops whole hashes only, so beside a row that
lasts longer, one that has outlived its ttl stays.
"""

import math
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice, repeat
from typing import Any, TypeVar

import hiredis
import mmh3
import pyarrow as pa
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from freshet.schemas import feast_bytes
from freshet.schemas.errors import Problem, Refused, StoreLost, Unavailable
from freshet.schemas.online_layout import NO_EXPIRY, Layout, layouts, milliseconds
from freshet.schemas.progress import Progress, progress_key
from freshet.schemas.units import instant_us
from freshet.schemas.view import StoredRow, View

_T = TypeVar("_T")
Command = tuple[bytes | str | int, ...]
_COMMANDS_PER_TRIP = 1000
_ROW_COST, _UNANSWERED_COST = 100, 5000
"""What a row costs Redis beside the square of its fields, each of which it looks for among all of a hash's; and how
much is on its way, and once more while that is answered: two rows of fifty features, or 25 of eight. Redis runs all
that it has read of one client before it serves another, up to a megabyte: who reads would wait for a thousand rows."""
_PATIENCE_S, _FIRST_PAUSE_S, _PAUSE_S_MAX = 60.0, 0.1, 5.0
_PASSING = ("READONLY", "OOM", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF")
_PASSING_ERRORS = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
)
"""Answers that a failover, an operator or time may mend, in words and as the client knows them."""
_TOLD_APART = (exceptions.AuthenticationError, exceptions.NoPermissionError, ssl.SSLCertVerificationError)
_KEYS_PER_SCAN, _SCANS = 1000, 200

_FOR_EVER_MS = 2**62

# ARGV is the flat list HSET takes: `_ts` field and value, `_v` field and value, then the features'; and at its end the
# view's ttl in ms, 0 if it has none, followed by name and ttl of each view that has one and may be in the same hash.
# Both scripts begin with the row's own time, as seconds and nanos.
_INSTANTS = """
local function varint(text, at)
  local a, b, c, d, e = string.byte(text, at, at + 4)
  if d and a > 127 and b > 127 and c > 127 then  -- most have four octets or five: the rest is for any number of them
    if d < 128 then return a + b * 128 + c * 16384 + d * 2097152 - 2113664, at + 4 end
    if e and e < 128 then return a + b * 128 + c * 16384 + d * 2097152 + e * 268435456 - 270549120, at + 5 end
  end
  local value, scale, negated = 0, 1, 0
  for place = 1, 10 do
    local octet = string.byte(text, at)
    if not octet then break end
    at = at + 1
    local low = octet % 128
    if place == 10 then value = -negated - 1 break end  -- only a negative number has ten octets
    value, negated, scale = value + low * scale, negated + (127 - low) * scale, scale * 128
    if octet < 128 then break end
  end
  return value, at
end
local function instant(text)
  local seconds, nanos, at = 0, 0, 1
  while at <= #text do
    local tag = string.byte(text, at)
    local value
    value, at = varint(text, at + 1)
    if tag == 8 then seconds = value elseif tag == 16 then nanos = value end
  end
  return seconds, nanos
end
local seconds, nanos = instant(ARGV[2])
"""
_COMPARE = """
local stored = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[3])
local time, version = stored[1], stored[2]
if time then
  local order = 0
  if time ~= ARGV[2] then
    local stored_seconds, stored_nanos = instant(time)
    order = seconds - stored_seconds
    if order == 0 then order = nanos - stored_nanos end
    if math.abs(stored_seconds) > 253402300799 then order = 1 end  -- no time that we know: another wrote it
  end
  if order == 0 and version and #version == #time + 8 and string.sub(version, 1, #time) == time then
    local high, low = struct.unpack('>I4I4', string.sub(ARGV[4], -8))
    local stored_high, stored_low = struct.unpack('>I4I4', string.sub(version, -8))
    order = high - stored_high
    if order == 0 then order = low - stored_low end
  end
  if order < 0 then return 0 end
end
"""
_SET = """
redis.call('HSET', KEYS[1], unpack(ARGV, 1, #ARGV - 1))
local ttls, longest = ARGV[#ARGV], 0
local ttl = tonumber(string.match(ttls, '^%d+'))
if ttl > 0 and redis.call('HLEN', KEYS[1]) > (#ARGV - 1) / 2 then
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 4) == '_ts:' and field ~= ARGV[1] then
      local _, at = string.find(ttls, ' ' .. string.sub(field, 5) .. ' ', 1, true)
      local other = at and tonumber(string.match(ttls, '^%d+', at + 1))
      if not other then ttl = 0 break end
      longest = math.max(longest, other)
    end
  end
end
if ttl == 0 then
  redis.call('PERSIST', KEYS[1])
  return 1
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local gone = seconds * 1000 + math.ceil(nanos / 1000000) + ttl
if gone <= now then gone = now + ttl end
if longest > 0 then  -- as long as the others were to stay, but no longer than they ever may
  local left = redis.call('PTTL', KEYS[1])
  if left < 0 or left > longest then left = longest end
  gone = math.max(gone, now + left)
end
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', gone))
return 1
"""
_REPLACE, _OVERWRITE = _INSTANTS + _COMPARE + _SET, _INSTANTS + _SET


class OnlineStore:
    """The views' newest rows in Redis, readable by every Feast client.

    `url_or_client` is a redis://, rediss:// or unix:// URL, or a client that neither decodes its responses nor caches
    them. Outages are retried with growing, jittered pauses for `patience_s`, then raise `Unavailable`; the message
    never holds credentials. Raises `Refused` for a URL that cannot be read, and for two features that Feast would keep
    in one hash field.
    """

    def __init__(
        self,
        url_or_client: str | redis.Redis,
        project: str,
        views: Sequence[View],
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._project, self._layouts = project, layouts(project, views)
        self._client: Any = _client(url_or_client, patience_s) if isinstance(url_or_client, str) else url_or_client
        self._patience_s = patience_s
        self._scripts: dict[str, str] = {}
        self._troubles: dict[int, str] = {}
        self._counter, self._progress = f"freshet:{project}:writes", progress_key(project)
        self.writes_count = 0
        """How many writes the store was seen to have counted."""

    def expect(self, writes_count: int) -> None:
        """Make sure that the store has counted so many writes; raises `StoreLost` if it has not, and `Unavailable`."""
        counted = self.counted_writes()
        if counted < writes_count:
            raise self._lost(counted, writes_count)
        self.writes_count = max(self.writes_count, counted)

    def counted_writes(self) -> int:
        """Return how many writes the store itself has counted; raises `Unavailable`."""
        return int(self._attempt(self._client.get, self._counter) or 0)

    def catch_up(self, writes_count: int) -> None:
        """Have the store count at least so many writes, all of whose rows it holds again; raises `Unavailable`."""
        counted = self.counted_writes()
        if counted < writes_count:  # an attempt that is made twice counts too many, which harms nothing
            counted = int(self._attempt(self._client.incrby, self._counter, writes_count - counted))
        self.writes_count = max(self.writes_count, counted)

    def write_progress(self, progress: Mapping[str, Progress]) -> None:
        """Keep how far it is, by source partition, in one round trip, which counts as no write; raises `Unavailable`.

        Raises `StoreLost` for a store that came back without all of what was written; there no progress is left.
        """
        if not progress:
            return
        expected, words = self.writes_count, (word for key, one in progress.items() for word in (key, one.to_bytes()))
        commands = [("HSET", self._progress, *words), ("GET", self._counter)]
        _, counted = self._attempt(self._pipelined, commands)
        if int(counted or 0) < expected:
            self._attempt(self._client.delete, self._progress)
            raise self._lost(int(counted or 0), expected)

    def read_progress(self) -> dict[str, Progress]:
        """Return what `write_progress` kept, of all partitions; raises `Unavailable`."""
        found = self._attempt(self._client.hgetall, self._progress)
        return {key.decode(): Progress.from_bytes(raw) for key, raw in found.items()}

    @property
    def trouble(self) -> str:
        """What is being waited out in any thread; nothing if all is well."""
        return next(iter(list(self._troubles.values())), "")

    def _lost(self, counted: int, expected: int) -> StoreLost:
        fact = f"has lost what was written: it counts {counted} writes, and had {expected}"
        return StoreLost(f"online store Redis at {self._address} {fact}. Hint: `freshet repair` fills it again")

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        """Compare and set each row, in order; return how many replaced what was stored.

        `rows` has the view's `row_schema`. With `overwrite` nothing is compared: what is stored was made by another
        declaration, of which versions say nothing here. After an outage the rows on their way are sent again, which
        changes nothing in the store; the number returned is then the last attempt's. Raises `Unavailable`, and
        `StoreLost` for a store that came back without all of what was written: before anything is written to it, if it
        did so since the last call.
        """
        self.expect(self.writes_count)
        text = _OVERWRITE if overwrite else _REPLACE
        return sum(sum(self._replaced(trip, text)) for trip in _trips(self._layouts[view.name].commands(rows)))

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order, None where the view has no row; raises `Unavailable`."""
        layout = self._layouts[view.name]
        found: list[StoredRow | None] = []
        for part in _trips(zip(entities, layout.keys_of(entities), strict=True)):
            questions = [question for _, key in part for question in layout.questions(key)]
            answers = iter(self._attempt(self._pipelined, questions))
            now = datetime.now(UTC)
            each = zip(*[answers] * (len(questions) // len(part)), strict=True)
            for (entity, _), (stored, *expiry) in zip(part, each, strict=True):
                row = layout.row(entity, stored)
                found.append(layout.kept(row, expiry[0], expiry[1], now) if expiry else row)
        return found

    def delete(self, view: View, entities: Sequence[tuple[Any, ...]]) -> int:
        """Delete the view's rows of some entities; return how many there were. What others keep there stays.

        Raises `Unavailable`.
        """
        layout, count = self._layouts[view.name], 0
        for keys in _trips(layout.keys_of(entities)):
            deleted = self._attempt(self._pipelined, [("HDEL", key, *layout.fields) for key in keys])
            count += sum(map(bool, deleted))
        return count

    def ping(self) -> None:
        """Make sure that the store answers; raises `Unavailable`."""
        self._attempt(self._client.ping)

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        """Return up to `size` entities that have a row of the view, the same ones for the same seed and store.

        The walk over the keys starts at a place given by the seed and visits at most 200,000 of them, so of a large
        store it sees a part, and may return fewer entities than asked for. Raises `Unavailable`.
        """
        layout, chosen = self._layouts[view.name], list[bytes]()
        for keys in self._walk(layout, 20 * size, seed):
            waiting = layout.ordered(keys, seed)
            while waiting and len(chosen) < size:  # most hold a row of the view: few are asked
                asked, waiting = waiting[:size], waiting[size:]
                held = self._attempt(self._pipelined, [("HEXISTS", key, layout.fields[0]) for key in asked])
                chosen += [key for key, holds in zip(asked, held, strict=True) if holds]
            if len(chosen) >= size:
                break
        return layout.entities(chosen[:size])

    def _walk(self, layout: Layout, count: int, seed: int) -> Iterator[set[bytes]]:
        """Give keys of the view's entities, at least so many at a time, each once."""
        cursor, ends = mmh3.hash(layout.view.name, seed, signed=False), 0
        given, keys = set[bytes](), set[bytes]()
        for _ in range(_SCANS):
            cursor, found = self._attempt(self._client.scan, cursor, match=layout.pattern, count=_KEYS_PER_SCAN)
            keys.update(key for key in found if key not in given and layout.entity(key) is not None)
            ends += cursor == 0
            if ends == 2:  # the walk began in the middle: the second end is after it
                break
            if len(keys) >= count:
                yield keys
                given, keys = given | keys, set()
        yield keys

    def drop(self, view: View, features: Collection[str] | None) -> int:
        """Delete what is stored of features that a view no longer has, of every entity; None for whole rows.

        Returns of how many entities something was deleted; raises `Unavailable`.
        """
        layout = layouts(self._project, [view])[view.name]
        fields, cursor, count = layout.fields_of(features), -1, 0
        while fields and cursor:
            cursor, found = self._attempt(self._client.scan, max(cursor, 0), match=layout.pattern, count=_KEYS_PER_SCAN)
            keys = [key for key in found if layout.entity(key) is not None]
            count += sum(map(bool, self._attempt(self._pipelined, [("HDEL", key, *fields) for key in keys])))
        return count

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _replaced(self, trip: Sequence[tuple[bytes, ...]], text: str) -> list[int]:
        before = self.writes_count
        replaced: list[int]
        *replaced, counted = self._attempt(self._run, text, trip)
        if counted <= before:
            raise self._lost(counted, before + 1)
        self.writes_count = max(self.writes_count, counted)
        return replaced

    def _run(self, text: str, trip: Sequence[tuple[bytes, ...]]) -> list[int]:
        if text not in self._scripts:
            self._scripts[text] = self._client.script_load(text)
        try:
            return self._counted(self._scripts[text], trip)
        except exceptions.NoScriptError:  # the server restarted, or a replica took over
            self._scripts[text] = self._client.script_load(text)
            return self._counted(self._scripts[text], trip)

    def _counted(self, script: str, trip: Sequence[tuple[bytes, ...]]) -> list[int]:
        """Send a trip, and count it; return all answers. redis-py's pipeline would take longer than Redis itself."""
        rows = packed_rows(("EVALSHA", script, 1), trip)  # each when its turn comes: Redis is at those before
        cost = _ROW_COST + (len(trip[0]) // 2 - 1) ** 2  # key, fields with values, ttls
        questions = chain(rows, [packed(("INCR", self._counter))])
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            return [*_asked(connection, questions, math.ceil(_UNANSWERED_COST / cost))]
        except BaseException:  # answers are on their way that nobody waits for: they must be nobody else's
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _pipelined(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute()  # type: ignore[no-any-return]

    def _attempt(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call, again after each pause while the server is away, loading, full or failing over; then `Unavailable`."""
        for pause_s in pauses(self._patience_s):
            try:
                answer = call(*args, **options)
            except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ResponseError) as error:
                if pause_s is None or not _may_pass(error):
                    raise self._unavailable(error) from error
                self._troubles[threading.get_ident()] = str(self._unavailable(error))
                time.sleep(pause_s)
            else:
                self._troubles.pop(threading.get_ident(), None)
                return answer
        raise AssertionError("the last pause is None")

    @property
    def _address(self) -> str:
        options = self._client.connection_pool.connection_kwargs
        return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")

    def _unavailable(self, error: Exception) -> Unavailable:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        said = str(root).rpartition(" of pipeline caused error: ")[2]  # before that are a row's own bytes
        why = f"{type(root).__name__}: {said.removesuffix('.')}"
        return Unavailable(f"online store Redis at {self._address} cannot be used: {why}. Hint: {_hint(error)}")


def _asked(connection: Any, questions: Iterable[bytes], sent_count: int) -> Iterator[Any]:
    """Give the answer to each question, in order; the next `sent_count` are sent before those to the last are read."""
    unanswered_count = 0
    for some in _cut(questions, sent_count):
        connection.send_packed_command([b"".join(some)])
        yield from _answers(connection, unanswered_count)
        unanswered_count = len(some)
    yield from _answers(connection, unanswered_count)


def _answers(connection: Any, count: int) -> Iterator[Any]:
    """Give the next answers. What redis-py does for each, numbers need none of: it took a third of the CPU."""
    parser = connection._parser  # noqa: SLF001  # there is no other way to what it has read
    for _ in range(count):
        answer = parser._reader.gets()  # noqa: SLF001
        if type(answer) is not int:  # it is not there yet, or no answer of a script of ours
            parser._next_response = answer  # noqa: SLF001
            answer = connection.read_response()
            if isinstance(answer, Exception):
                raise answer
        yield answer


def packed(command: Command) -> bytes:
    """Return a command as Redis reads it."""
    octets: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub has a tuple of one
    return octets


def packed_rows(head: Command, rows: Sequence[tuple[bytes, ...]]) -> Iterator[bytes]:
    """Give, for each row of one view, the command that begins with `head`, and goes on as `Layout.commands` says.

    What rows have in common, fields and ttls, is written once.

    >>> rows = [(b"ada", b"age", b"7", b"0"), (b"bob", b"age", b"51", b"0")]
    >>> [*packed_rows(("EVALSHA", "sha", 1), rows)] == [packed(("EVALSHA", "sha", 1, *row)) for row in rows]
    True
    """
    columns = [*zip(*rows, strict=True)]
    text = b"*%d\r\n" % (len(head) + len(columns)) + packed(head).partition(b"\r\n")[2]
    pieces: list[Iterable[bytes]] = []
    for place, column in enumerate(columns):
        if place % 2:
            text += b"$%d\r\n%b\r\n" % (len(column[0]), column[0])
        else:
            pieces += [map(_Before(text).__getitem__, map(len, column)), column]
            text = b"\r\n"
    return map(b"".join, zip(*pieces, repeat(text, len(rows)), strict=True))


class _Before(dict[int, bytes]):
    """What Redis is told before an argument, by how long that is: what comes in between, and its length."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self._text = text

    def __missing__(self, octets_count: int) -> bytes:
        told = self[octets_count] = b"%b$%d\r\n" % (self._text, octets_count)
        return told


def pauses(patience_s: float, clock: Callable[[], float] = time.monotonic) -> Iterator[float | None]:
    """Give the pauses between attempts, each about twice the last and none of equal length, then None.

    They end with the patience, which the attempts use up, too; those who wait for one server do not all come back at
    once.

    >>> seconds = iter(range(100))  # an attempt takes one
    >>> *waited, last = pauses(60, lambda: next(seconds))
    >>> last is None, len(waited), max(waited) <= 5
    (True, 59, True)
    """
    deadline, pause_s = clock() + patience_s, _FIRST_PAUSE_S
    while (left_s := deadline - clock()) > 0:
        yield min(left_s, random.uniform(pause_s / 2, pause_s))  # noqa: S311  # no secret
        pause_s = min(2 * pause_s, _PAUSE_S_MAX)
    yield None


def _may_pass(error: Exception) -> bool:
    """Say whether waiting may help: a wrong password stays wrong, and an unknown certificate unknown."""
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False
    if any(isinstance(found, ssl.SSLCertVerificationError) for found in _chain(error)):
        return False
    passing = isinstance(error, _PASSING_ERRORS)
    return passing or any(word in str(error) for word in _PASSING)


def _hint(error: Exception) -> str:
    """Return the thing to look at."""
    match next((found for found in _chain(error) if isinstance(found, _TOLD_APART)), None):
        case exceptions.AuthenticationError():
            return "user and password stand in onlineStore, or FRESHET_ONLINE_STORE"
        case exceptions.NoPermissionError():
            return "its ACL must allow this user what README says"
        case ssl.SSLCertVerificationError():
            return "name the file of the CA that signed its certificate: rediss://…?ssl_ca_certs=/path/ca.pem"
        case _:
            return "is it running there? redis:// is without TLS, rediss:// with it"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class MemoryOnlineStore:
    """The twin of `OnlineStore`: the same bytes and the same rules, kept in this process. `now` is its clock."""

    def __init__(
        self, project: str, views: Sequence[View], now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._project, self._layouts, self._now = project, layouts(project, views), now
        self._progress = progress_key(project).encode()
        self._hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._expiries_ms: dict[bytes, int] = {}
        self._counted = 0
        self.writes_count = 0
        """How many writes the store was seen to have counted."""

    def reopened(self, views: Sequence[View]) -> "MemoryOnlineStore":
        """Return what another process has of the same store, which it opens for other views."""
        other = MemoryOnlineStore(self._project, views, self._now)
        vars(other).update({name: vars(self)[name] for name in ("_hashes", "_expiries_ms", "_counted")})
        return other

    def expect(self, writes_count: int) -> None:
        """Make sure that the store has counted so many writes; raises `StoreLost` if it has not."""
        if self._counted < writes_count:
            raise StoreLost(
                f"online store in memory has lost what was written: {self._counted} of {writes_count} writes"
            )
        self.writes_count = max(self.writes_count, self._counted)

    def counted_writes(self) -> int:
        """Return how many writes the store has counted."""
        return self._counted

    def catch_up(self, writes_count: int) -> None:
        """Have the store count at least so many writes, all of whose rows it holds again."""
        self._counted = self.writes_count = max(self._counted, writes_count)

    def write_progress(self, progress: Mapping[str, Progress]) -> None:
        """Keep how far it is, by source partition; raises `StoreLost` if the store has lost what was written."""
        self.expect(self.writes_count)
        kept = {key.encode(): one.to_bytes() for key, one in progress.items()}
        self._hashes[self._progress] = {**self._hash(self._progress), **kept}

    def read_progress(self) -> dict[str, Progress]:
        """Return what `write_progress` kept, of all partitions."""
        found = self._hash(self._progress)
        return {key.decode(): Progress.from_bytes(raw) for key, raw in found.items()}

    def forget(self) -> None:
        """Lose everything, as a server that restarts without its data."""
        self._hashes, self._expiries_ms, self._counted = {}, {}, 0

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        """Compare and set each row, in order, or just set it; return how many replaced what was stored."""
        self.expect(self.writes_count)
        self._counted += 1
        self.writes_count = self._counted
        layout, replaced = self._layouts[view.name], 0
        for key, *pairs, _ in layout.commands(rows):
            fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
            stored = self._hash(key)
            if overwrite or layout.standing(fields) >= layout.standing(stored):
                self._hashes[key] = {**stored, **fields}
                self._expire(layout, key)
                replaced += 1
        return replaced

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order, None where the view has no row."""
        layout = self._layouts[view.name]
        found = []
        for entity, key in zip(entities, layout.keys_of(entities), strict=True):
            stored = self._hash(key)
            row = layout.row(entity, [stored.get(field) for field in layout.fields])
            left_ms = self._expiries_ms[key] - self._now_ms if key in self._expiries_ms else NO_EXPIRY
            found.append(layout.kept(row, left_ms, list(stored), self._now()) if view.ttl else row)
        return found

    def fields(self, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
        """Return fields of a hash, as HMGET does."""
        stored = self._hash(key)
        return [stored.get(field) for field in fields]

    @property
    def _now_ms(self) -> int:
        return instant_us(self._now()) // 1000

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        """Return what is under a key, once it is forgotten if its time has come."""
        if self._expiries_ms.get(key, _FOR_EVER_MS) <= self._now_ms:
            del self._hashes[key], self._expiries_ms[key]
        return self._hashes.get(key, {})

    def _expire(self, layout: Layout, key: bytes) -> None:
        """Have a hash expire that a row was just written to, or never."""
        stored, now_ms = self._hashes[key], self._now_ms
        if layout.longest(stored) is None:
            self._expiries_ms.pop(key, None)
            return
        seconds, nanos = feast_bytes.decode_time(stored[layout.fields[0]])
        ttl_ms = milliseconds(layout.view.ttl)
        gone_ms = seconds * 1000 - -nanos // 1_000_000 + ttl_ms
        if gone_ms <= now_ms:
            gone_ms = now_ms + ttl_ms
        longest = layout.longest(name for name in stored if name != layout.fields[0])
        if longest:
            gone_ms = max(gone_ms, min(self._expiries_ms.get(key, _FOR_EVER_MS), now_ms + milliseconds(longest)))
        self._expiries_ms[key] = gone_ms

    def delete(self, view: View, entities: Sequence[tuple[Any, ...]]) -> int:
        """Delete the view's rows of some entities; return how many there were. What others keep there stays."""
        layout, count = self._layouts[view.name], 0
        for key in layout.keys_of(entities):
            stored = self._hash(key)
            left = {field: value for field, value in stored.items() if field not in layout.fields}
            count += len(left) < len(stored)
            if left:
                self._hashes[key] = left
            elif stored:
                del self._hashes[key]
                self._expiries_ms.pop(key, None)
        return count

    def ping(self) -> None:
        """Answer."""

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        """Return up to `size` entities that have a row of the view, the same ones for the same seed and store."""
        layout = self._layouts[view.name]
        keys = [
            key for key in [*self._hashes] if layout.fields[0] in self._hash(key) and layout.entity(key) is not None
        ]
        return layout.entities(layout.ordered(keys, seed)[:size])

    def drop(self, view: View, features: Collection[str] | None) -> int:
        """Delete what is stored of some features of a view, of every entity; None for whole rows."""
        layout, count = layouts(self._project, [view])[view.name], 0
        for key in [*self._hashes]:
            stored, fields = self._hash(key), layout.fields_of(features)
            if layout.entity(key) is None or not {*fields} & stored.keys():
                continue
            count += 1
            self._hashes[key] = {name: value for name, value in stored.items() if name not in fields}
            if not self._hashes[key]:
                del self._hashes[key]
                self._expiries_ms.pop(key, None)
        return count

    def close(self) -> None:
        """Do nothing: the rows stay readable."""


def _client(url: str, patience_s: float) -> redis.Redis:
    """Open a client; one attempt lasts no longer than the patience."""
    limits_s = {"socket_timeout": min(10.0, patience_s), "socket_connect_timeout": min(5.0, patience_s)}
    try:
        client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits_s)
    except ValueError:  # its text may hold pieces of the password
        hint = "write redis://host:6379/0, rediss://… or unix:///path; percent-encode user and password"
        raise Refused([Problem("key", "onlineStore", "is not a Redis URL", hint=hint)]) from None
    options = client.connection_pool.connection_kwargs
    absent = [name for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if not _may_be_read(options.get(name))]
    if absent:
        fact = f"names a file by {absent[0]} that cannot be read"
        raise Refused([Problem("key", "onlineStore", fact, options[absent[0]], "write its path, from / on")])
    return client


def _may_be_read(path: str | None) -> bool:
    return path is None or os.access(path, os.R_OK)


def _trips(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut into lists that are counted as one write."""
    return _cut(items, _COMMANDS_PER_TRIP)


def _cut(items: Iterable[_T], count: int) -> Iterator[list[_T]]:
    """Cut into lists of so many; the last one has what is left."""
    left = iter(items)
    while part := list(islice(left, count)):
        yield part
