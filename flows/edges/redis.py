"""The online store on Redis or Valkey: byte for byte what Feast 0.67 writes, and each row in one atomic step.

Feast keeps one hash for each entity and project (feast/infra/online_stores/redis.py, …/key_encoding_utils.py):

| key | entity key, serialization version 3, then the project's name |
| --- | --- |
| `_ts:<view>` | the row's event time, a `google.protobuf.Timestamp` |
| murmur3_32("<view>:<feature>"), little-endian | the value, a `feast.types.Value`; null and NaN are empty |
| `_v:<view>` | ours: the `_ts:<view>` bytes that the version belongs to, then the version, 8 bytes big-endian |

Feast reads the stored time, compares in Python and then writes: two writers can bring an older row back, and a
correction with an equal time is dropped. Here a script compares and sets inside the server, one key a call, so it runs
on a cluster too. A row replaces the stored one iff its (event_timestamp, version) is not smaller. A row that stock
Feast wrote has version 0: the prefix of `_v` tells that the version is not its own.

One key more, `freshet:<project>:writes`, counts round trips of writes, in the store itself. A server that restarted
without its data, or with older data, or a replica that took over behind its primary, counts less than it was seen to.

Values are encoded a column at a time, without protobuf objects.
"""

import heapq
import random
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import Any, TypeVar

import mmh3
import pyarrow as pa
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from freshet.schemas import feast_bytes
from freshet.schemas.errors import Problem, Refused, StoreLost, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.view import VERSION, StoredRow, View

_T = TypeVar("_T")
_COMMANDS_PER_TRIP = 1000
_PATIENCE_S, _FIRST_PAUSE_S, _PAUSE_S_MAX = 60.0, 0.1, 5.0
_PASSING = ("READONLY", "OOM", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF")
_PASSING_ERRORS = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
)
"""Answers that a failover, an operator or time may mend, in words and as the client knows them."""
_KEYS_PER_SCAN, _SCANS = 1000, 200

# ARGV is the flat list HSET takes: `_ts` field and value, `_v` field and value, then the features'.
_REPLACE = """
local function varint(text, at)
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
local stored = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[3])
local time, version = stored[1], stored[2]
if time then
  local order = 0
  if time ~= ARGV[2] then
    local seconds, nanos = instant(ARGV[2])
    local stored_seconds, stored_nanos = instant(time)
    order = seconds - stored_seconds
    if order == 0 then order = nanos - stored_nanos end
  end
  if order == 0 and version and #version == #time + 8 and string.sub(version, 1, #time) == time then
    local high, low = struct.unpack('>I4I4', string.sub(ARGV[4], -8))
    local stored_high, stored_low = struct.unpack('>I4I4', string.sub(version, -8))
    order = high - stored_high
    if order == 0 then order = low - stored_low end
  end
  if order < 0 then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""


class OnlineStore:
    """The views' newest rows in Redis, readable by every Feast client.

    `url_or_client` is a redis://, rediss:// or unix:// URL, or a client that does not decode its responses. Outages are
    retried with growing, jittered pauses for `patience_s`, then raise `Unavailable`; the message never
    holds credentials. Raises `Refused` for a URL that cannot be read, and for two features that Feast would keep in
    one hash field.
    """

    def __init__(
        self,
        url_or_client: str | redis.Redis,
        project: str,
        views: Sequence[View],
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._layouts = _layouts(project, views)
        self._client: Any = _client(url_or_client, patience_s) if isinstance(url_or_client, str) else url_or_client
        self._patience_s = patience_s
        self._script = ""
        self._troubles: dict[int, str] = {}
        self._counter = f"freshet:{project}:writes"
        self.writes_count = 0
        """How many round trips of writes the store was seen to have counted."""

    def expect(self, writes_count: int) -> None:
        """Make sure that the store has counted so many writes; raises `StoreLost` if it has not, and `Unavailable`."""
        counted = self.counted_writes()
        if counted < writes_count:
            raise self._lost(counted, writes_count)
        self.writes_count = max(self.writes_count, counted)

    def counted_writes(self) -> int:
        """Return how many round trips of writes the store itself has counted; raises `Unavailable`."""
        return int(self._attempt(self._client.get, self._counter) or 0)

    def catch_up(self, writes_count: int) -> None:
        """Have the store count at least so many writes, all of whose rows it holds again; raises `Unavailable`."""
        counted = self.counted_writes()
        if counted < writes_count:  # an attempt that is made twice counts too many, which harms nothing
            counted = int(self._attempt(self._client.incrby, self._counter, writes_count - counted))
        self.writes_count = max(self.writes_count, counted)

    @property
    def trouble(self) -> str:
        """What is being waited out in any thread; nothing if all is well."""
        return next(iter(list(self._troubles.values())), "")

    def _lost(self, counted: int, expected: int) -> StoreLost:
        fact = f"has lost what was written: it counts {counted} writes, and had {expected}"
        return StoreLost(f"online store Redis at {self._address} {fact}. Hint: `freshet repair` fills it again")

    def write(self, view: View, rows: pa.Table) -> int:
        """Compare and set each row, in order; return how many replaced what was stored.

        `rows` has the view's `row_schema`. After an outage the rows on their way are sent again, which changes nothing
        in the store; the number returned is then the last attempt's. Raises `Unavailable`, and `StoreLost` for a store
        that came back without all of what was written: before anything is written to it, if it did so since the last
        call.
        """
        self.expect(self.writes_count)
        return sum(sum(self._replaced(trip)) for trip in _trips(self._layouts[view.name].commands(rows)))

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order, None where the view has no row; raises `Unavailable`."""
        layout = self._layouts[view.name]
        found: list[StoredRow | None] = []
        for part in _trips(zip(entities, layout.keys_of(entities), strict=True)):
            values = self._attempt(self._pipelined, [("HMGET", key, *layout.fields) for _, key in part])
            found += [layout.row(entity, stored) for (entity, _), stored in zip(part, values, strict=True)]
        return found

    def ping(self) -> None:
        """Make sure that the store answers; raises `Unavailable`."""
        self._attempt(self._client.ping)

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        """Return up to `size` entities that have a row of the view, the same ones for the same seed and store.

        The walk over the keys starts at a place given by the seed and visits at most 200,000 of them, so of a large
        store it sees a part, and may return fewer entities than asked for. Raises `Unavailable`.
        """
        layout, keys = self._layouts[view.name], set[bytes]()
        cursor, ends = mmh3.hash(view.name, seed, signed=False), 0
        for _ in range(_SCANS):
            cursor, found = self._attempt(self._client.scan, cursor, match=layout.pattern, count=_KEYS_PER_SCAN)
            own = [key for key in found if layout.entity(key) is not None]
            held = self._attempt(self._pipelined, [("HEXISTS", key, layout.fields[0]) for key in own])
            keys.update(key for key, holds in zip(own, held, strict=True) if holds)
            ends += cursor == 0
            if ends == 2 or len(keys) >= 20 * size:  # the walk began in the middle: the second end is after it
                break
        return layout.chosen(keys, size, seed)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _replaced(self, trip: Sequence[tuple[bytes, ...]]) -> list[int]:
        before = self.writes_count
        replaced: list[int]
        *replaced, counted = self._attempt(self._compare_and_set, trip)
        if counted <= before:
            raise self._lost(counted, before + 1)
        self.writes_count = max(self.writes_count, counted)
        return replaced

    def _compare_and_set(self, trip: Sequence[tuple[bytes, ...]]) -> list[int]:
        if not self._script:
            self._script = self._client.script_load(_REPLACE)
        try:
            return self._counted(trip)
        except exceptions.NoScriptError:  # the server restarted, or a replica took over
            self._script = self._client.script_load(_REPLACE)
            return self._counted(trip)

    def _counted(self, trip: Sequence[tuple[bytes, ...]]) -> list[int]:
        writes = (("EVALSHA", self._script, 1, *command) for command in trip)
        return self._pipelined([*writes, ("INCR", self._counter)])

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
        return Unavailable(f"online store Redis at {self._address} cannot be used: {type(root).__name__}: {said}")


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
    """Say whether waiting may help: a wrong password stays wrong."""
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False
    passing = isinstance(error, _PASSING_ERRORS)
    return passing or any(word in str(error) for word in _PASSING)


class MemoryOnlineStore:
    """The twin of `OnlineStore`: the same bytes and the same rule, kept in this process."""

    def __init__(self, project: str, views: Sequence[View]) -> None:
        self._layouts = _layouts(project, views)
        self._hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._counted = 0
        self.writes_count = 0
        """How many writes the store was seen to have counted."""

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

    def forget(self) -> None:
        """Lose everything, as a server that restarts without its data."""
        self._hashes, self._counted = {}, 0

    def write(self, view: View, rows: pa.Table) -> int:
        """Compare and set each row, in order; return how many replaced what was stored."""
        self.expect(self.writes_count)
        self._counted += 1
        self.writes_count = self._counted
        layout, replaced = self._layouts[view.name], 0
        for key, *pairs in layout.commands(rows):
            fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
            stored = self._hashes.setdefault(key, {})
            if layout.standing(fields) >= layout.standing(stored):
                stored.update(fields)
                replaced += 1
        return replaced

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order, None where the view has no row."""
        layout = self._layouts[view.name]
        hashes = [self._hashes.get(key, {}) for key in layout.keys_of(entities)]
        values = [[stored.get(field) for field in layout.fields] for stored in hashes]
        return [layout.row(entity, stored) for entity, stored in zip(entities, values, strict=True)]

    def ping(self) -> None:
        """Answer."""

    def sample(self, view: View, size: int, seed: int) -> list[tuple[Any, ...]]:
        """Return up to `size` entities that have a row of the view, the same ones for the same seed and store."""
        layout = self._layouts[view.name]
        return layout.chosen((key for key, stored in self._hashes.items() if layout.fields[0] in stored), size, seed)

    def close(self) -> None:
        """Do nothing: the rows stay readable."""


@dataclass(frozen=True)
class _Layout:
    """Where one view's rows stand: the constant parts of keys, and the names of fields.

    `fields` are the time's, the version's, then the features'. `order` sorts the entity's columns by name, as Feast
    does.
    """

    view: View
    prefix: bytes
    project: bytes
    order: tuple[int, ...]
    fields: tuple[bytes, ...]

    @property
    def pattern(self) -> bytes:
        """The glob that this view's keys match, among them keys of projects whose names end alike."""
        return re.sub(rb"([\\*?\[\]^-])", rb"\\\1", self.prefix) + b"*" + self.project

    def commands(self, rows: pa.Table) -> Iterator[tuple[bytes, ...]]:
        """For each row its key, then fields and values in turns."""
        assert rows.schema.equals(self.view.row_schema), f"rows of another schema for view {self.view.name}"
        times = feast_bytes.encode_times(rows[EVENT_TIME].combine_chunks())
        versions = feast_bytes.numbers_of(rows[VERSION].combine_chunks()).astype(">i8").view("V8").tolist()
        values = [feast_bytes.encode(rows[feature.name].combine_chunks()) for feature in self.view.features]
        stamped = [time + version for time, version in zip(times, versions, strict=True)]
        pairs = zip(map(repeat, self.fields), [times, stamped, *values], strict=True)
        # The columns end together; the names repeat for ever.
        return zip(self._keys([rows[name].combine_chunks() for name in self.view.entity_names]), *chain(*pairs))  # noqa: B905

    def keys_of(self, entities: Sequence[tuple[Any, ...]]) -> list[bytes]:
        """The keys of entities given as tuples in the order of PARTITION BY."""
        columns = zip(*entities, strict=True) if entities else ((),) * len(self.view.entity)
        return self._keys([pa.array(c, e.type) for c, e in zip(columns, self.view.entity, strict=True)])

    def _keys(self, columns: Sequence[pa.Array]) -> list[bytes]:
        parts = [feast_bytes.encode_entity(columns[place]) for place in self.order]
        if len(parts) == 1:
            prefix, project = self.prefix, self.project
            return [prefix + part + project for part in parts[0]]
        return [b"".join((self.prefix, *row, self.project)) for row in zip(*parts, strict=True)]

    def entity(self, key: bytes) -> tuple[Any, ...] | None:
        """Return the entity a key names, or None where the key is of other join keys, types or another project."""
        if not key.startswith(self.prefix):
            return None
        found = feast_bytes.decode_entity(
            [self.view.entity[place].type for place in self.order], key[len(self.prefix) :]
        )
        if found is None or found[1] != self.project:
            return None
        values = dict(zip(self.order, found[0], strict=True))
        return tuple(values[place] for place in range(len(values)))

    def row(self, entity: tuple[Any, ...], stored: Sequence[bytes | None]) -> StoredRow | None:
        """Read the values of `fields`, as HMGET gives them."""
        time, version, *values = stored
        if time is None:
            return None
        seconds, nanos = feast_bytes.decode_time(time)
        at = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds, microseconds=nanos // 1000)
        names = (feature.name for feature in self.view.features)
        return StoredRow(
            entity, at, _version(time, version), dict(zip(names, map(feast_bytes.decode, values), strict=True))
        )

    def standing(self, fields: dict[bytes, bytes]) -> tuple[float, int, int]:
        """What rows are compared by: seconds, nanoseconds, version; before all others where there is no row."""
        time = fields.get(self.fields[0])
        return (
            (float("-inf"), 0, 0)
            if time is None
            else (*feast_bytes.decode_time(time), _version(time, fields.get(self.fields[1])))
        )

    def chosen(self, keys: Iterable[bytes], size: int, seed: int) -> list[tuple[Any, ...]]:
        """Return the entities of those `size` keys whose hashes are the smallest."""
        entities = map(self.entity, heapq.nsmallest(size, keys, key=lambda key: (mmh3.hash(key, seed), key)))
        return [entity for entity in entities if entity is not None]


def _layouts(project: str, views: Sequence[View]) -> dict[str, _Layout]:
    """Name keys and fields of every view, and refuse two features that fall into one field of one hash."""
    layouts: dict[str, _Layout] = {}
    owners: dict[tuple[bytes, bytes], str] = {}
    problems: list[Problem] = []
    for view in views:
        names = sorted(view.entity_names)
        prefix = feast_bytes.key_prefix(names)
        order = tuple(view.entity_names.index(name) for name in names)
        hashes = [mmh3.hash(f"{view.name}:{feature.name}", signed=False) for feature in view.features]
        fields = (f"_ts:{view.name}".encode(), f"_v:{view.name}".encode(), *(struct.pack("<I", h) for h in hashes))
        layouts[view.name] = _Layout(view, prefix, project.encode(), order, fields)
        for feature, field in zip(view.features, fields[2:], strict=True):
            other = owners.setdefault((prefix, field), f"{view.name}:{feature.name}")
            if other != f"{view.name}:{feature.name}":
                fact = f"has the same hash as {other}, and Feast would keep both in one Redis field"
                problems.append(
                    Problem("feature", feature.name, fact, f"{view.name}:{feature.name}", "rename one of them")
                )
    if problems:
        raise Refused(problems)
    return layouts


def _client(url: str, patience_s: float) -> redis.Redis:
    """Open a client; one attempt lasts no longer than the patience."""
    limits_s = {"socket_timeout": min(10.0, patience_s), "socket_connect_timeout": min(5.0, patience_s)}
    try:
        return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits_s)
    except ValueError:  # its text may hold pieces of the password
        hint = "write redis://host:6379/0, rediss://… or unix:///path; percent-encode user and password"
        raise Refused([Problem("key", "onlineStore", "is not a Redis URL", hint=hint)]) from None


def _trips(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut into lists that one round trip carries."""
    part: list[_T] = []
    for item in items:
        part.append(item)
        if len(part) == _COMMANDS_PER_TRIP:
            yield part
            part = []
    if part:
        yield part


def _version(time: bytes, version: bytes | None) -> int:
    """Read the version that belongs to the stored time; 0 where another writer stored the row."""
    own = version is not None and len(version) == len(time) + 8 and version.startswith(time)
    return int.from_bytes(version[-8:]) if own and version is not None else 0
