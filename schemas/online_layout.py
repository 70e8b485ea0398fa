"""Where a row of a view stands in the online store, byte for byte as Feast 0.67 has it, and our version beside it.

Feast keeps one hash for each entity and project (feast/infra/online_stores/redis.py, …/key_encoding_utils.py):

| key | entity key, serialization version 3, then the project's name |
| --- | --- |
| `_ts:<view>` | the row's event time, a `google.protobuf.Timestamp` |
| murmur3_32("<view>:<feature>"), little-endian | the value, a `feast.types.Value`; null and NaN are empty |
| `_v:<view>` | ours: the `_ts:<view>` bytes that the version belongs to, then the version, 8 bytes big-endian |

Values are encoded a column at a time, without protobuf objects.
"""

import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import Any

import mmh3
import pyarrow as pa

from freshet.schemas import feast_bytes
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.view import VERSION, StoredRow, View

TIME_OF = b"_ts:"
"""What the field of a view's time begins with."""
NO_EXPIRY, NO_KEY = -1, -2
"""What PTTL answers."""
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Layout:
    """Where one view's rows stand: the constant parts of keys, and the names of fields.

    `fields` are the time's, the version's, then the features'. `order` sorts the entity's columns by name, as Feast
    does. `ttls` has, by the field of its time, the ttl of each view that has one and may share a hash with this one.
    """

    view: View
    prefix: bytes
    project: bytes
    order: tuple[int, ...]
    fields: tuple[bytes, ...]
    ttls: Mapping[bytes, timedelta]

    @property
    def pattern(self) -> bytes:
        """The glob that this view's keys match, among them keys of projects whose names end alike."""
        return re.sub(rb"([\\*?\[\]^-])", rb"\\\1", self.prefix) + b"*" + self.project

    def fields_of(self, features: Collection[str] | None) -> tuple[bytes, ...]:
        """Return the fields of some of the view's features, None for the whole row."""
        if features is None:
            return self.fields
        names = [feature.name for feature in self.view.features]
        return tuple(field for name, field in zip(names, self.fields[2:], strict=True) if name in features)

    def commands(self, rows: pa.Table) -> Iterator[tuple[bytes, ...]]:
        """For each row its key, then fields and values in turns, then what the script is told of ttls."""
        assert rows.schema.equals(self.view.row_schema), f"rows of another schema for view {self.view.name}"
        times = feast_bytes.encode_times(rows[EVENT_TIME].combine_chunks())
        versions = feast_bytes.numbers_of(rows[VERSION].combine_chunks()).astype(">i8").view("V8").tolist()
        values = [feast_bytes.encode(rows[feature.name].combine_chunks()) for feature in self.view.features]
        stamped = [time + version for time, version in zip(times, versions, strict=True)]
        pairs = zip(map(repeat, self.fields), [times, stamped, *values], strict=True)
        keys = self._keys([rows[name].combine_chunks() for name in self.view.entity_names])
        told = b" ".join([b"%d" % milliseconds(self.view.ttl), *self._spelled_ttls(), b""])
        # The columns end together; the names repeat for ever, and so do the ttls.
        return zip(keys, *chain(*pairs), repeat(told))

    def _spelled_ttls(self) -> Iterator[bytes]:
        return (b"%s %d" % (field.removeprefix(TIME_OF), milliseconds(ttl)) for field, ttl in self.ttls.items())

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
        """Read the values of `fields`, as HMGET gives them; raises `Unavailable` where one is no Feast value."""
        time, version, *values = stored
        if time is None:
            return None
        try:
            seconds, nanos = feast_bytes.decode_time(time)
            decoded = [*map(feast_bytes.decode, values)]
        except feast_bytes.NoValue as error:
            what = f"online row of {self.view.name} {entity} cannot be read: {error}"
            raise Unavailable(f"{what}. Hint: `freshet repair` writes it again; look who else writes there") from error
        at = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds, microseconds=nanos // 1000)
        names = (feature.name for feature in self.view.features)
        return StoredRow(entity, at, version_of(time, version), dict(zip(names, decoded, strict=True)))

    def questions(self, key: bytes) -> list[tuple[Any, ...]]:
        """What is asked of a row, the second and third of what `kept` says: answered later, they hold of no less."""
        row = ("HMGET", key, *self.fields)
        return [row, ("PTTL", key), ("HKEYS", key)] if self.view.ttl else [row]

    def kept(self, row: StoredRow | None, left_ms: int, names: Sequence[bytes], now: datetime) -> StoredRow | None:
        """Add for how long a row is kept; None if it has gone since it was read."""
        if row is None or left_ms == NO_KEY or self.fields[0] not in names:
            return None
        expires_at = None if left_ms == NO_EXPIRY else now + min(timedelta(milliseconds=left_ms), _LAST - now)
        return replace(row, expires_at=expires_at, kept_for=self.longest(names))

    def longest(self, names: Iterable[bytes]) -> timedelta | None:
        """Return the longest ttl of the views that have a row in a hash of such fields; None if one has no ttl."""
        ttls = [self.ttls.get(name) for name in names if name.startswith(TIME_OF)]
        known = [ttl for ttl in ttls if ttl]
        return max(known, default=timedelta(0)) if len(known) == len(ttls) else None

    def standing(self, fields: dict[bytes, bytes]) -> tuple[float, int, int]:
        """What rows are compared by: seconds, nanoseconds, version; before all others where there is no row to read."""
        time = fields.get(self.fields[0])
        try:
            seconds, nanos = (float("-inf"), 0) if time is None else feast_bytes.decode_time(time)
        except feast_bytes.NoValue:  # what another wrote there does not stand in the way
            return float("-inf"), 0, 0
        return seconds, nanos, 0 if time is None else version_of(time, fields.get(self.fields[1]))

    def ordered(self, keys: Iterable[bytes], seed: int) -> list[bytes]:
        """Return keys in an order of chance, the same one for the same seed."""
        return sorted(keys, key=lambda key: (mmh3.hash(key, seed), key))

    def entities(self, keys: Iterable[bytes]) -> list[tuple[Any, ...]]:
        """Return the entities of keys that are all of this view's join keys."""
        return [entity for key in keys if (entity := self.entity(key)) is not None]


def layouts(project: str, views: Sequence[View]) -> dict[str, Layout]:
    """Name keys and fields of every view, and refuse two features that fall into one field of one hash."""
    layouts: dict[str, Layout] = {}
    ttls: dict[bytes, dict[bytes, timedelta]] = {}
    owners: dict[tuple[bytes, bytes], str] = {}
    problems: list[Problem] = []
    for view in views:
        names = sorted(view.entity_names)
        prefix = feast_bytes.key_prefix(names)
        order = tuple(view.entity_names.index(name) for name in names)
        hashes = [mmh3.hash(f"{view.name}:{feature.name}", signed=False) for feature in view.features]
        time = TIME_OF + view.name.encode()
        fields = (time, f"_v:{view.name}".encode(), *(struct.pack("<I", h) for h in hashes))
        shared = ttls.setdefault(prefix, {})
        if view.ttl:
            shared[time] = view.ttl
        layouts[view.name] = Layout(view, prefix, project.encode(), order, fields, shared)
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


def milliseconds(length: timedelta) -> int:
    """Return a length in whole milliseconds, none shorter than it is.

    >>> milliseconds(timedelta(seconds=1)), milliseconds(timedelta(microseconds=1)), milliseconds(timedelta(0))
    (1000, 1, 0)
    """
    return -(-length // timedelta(milliseconds=1))


def version_of(time: bytes, version: bytes | None) -> int:
    """Read the version that belongs to the stored time; 0 where another writer stored the row."""
    own = version is not None and len(version) == len(time) + 8 and version.startswith(time)
    return int.from_bytes(version[-8:]) if own and version is not None else 0
