"""What the server answers: which hashes and fields a request needs, and what their bytes mean. Pure.

A request is resolved once, to a `Selection`, and that is kept: the next one that names the same features only encodes
its entities' keys. All views with the same join keys are one hash, so one entity is one HMGET, whatever is asked of it,
and no answer mixes two versions of a view's row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import groupby, islice
from typing import Any

from pydantic_core import to_json

from freshet.schemas import feast_bytes
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.event import Contract
from freshet.schemas.online_layout import Layout, version_of
from freshet.schemas.progress import Progress
from freshet.schemas.record import partition_of
from freshet.schemas.serving import (
    ENTITIES_MAX,
    FEATURES_MAX,
    NAME_MAX,
    TOLD_MAX,
    VALUES_MAX,
    Answer,
    Question,
    ReadRequest,
    ServedRow,
    Status,
)
from freshet.schemas.units import count_us
from freshet.schemas.view import View

_KEPT = 1000
"""How many selections are remembered: a model asks for the same features each time."""
_EVER_US = -(2**63)
_NO_TIME = b'"1970-01-01T00:00:00Z"'
"""What Feast gives where there is no event time."""
_STATUSES = {b'"%b"' % status.encode(): status for status in Status}
_PRESENT, _NULL, _OUTSIDE, _MISSING = _STATUSES
_LINE = b'{"values":['

Raw = Sequence[bytes | None]
"""The fields of one hash, as HMGET gives them."""


class Unknown(Refused):
    """What is asked for is not declared."""


_ALL = (True,)


@dataclass(frozen=True)
class Behind:
    """Which partitions of which streams have events that may have waited too long."""

    partitions: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, progress: Mapping[str, Progress], target_us: int, now_us: int) -> "Behind":
        """Judge what the materializer wrote, by source key."""
        found: dict[str, dict[int, bool]] = {}
        for key, one in progress.items():
            stream, _, number = key.rpartition("/")
            found.setdefault(stream, {})[int(number)] = one.is_behind(target_us, now_us)
        return cls(
            {stream: tuple(parts.get(at, True) for at in range(max(parts) + 1)) for stream, parts in found.items()}
        )

    def among(self, streams: Sequence[str]) -> list[tuple[bool, ...]]:
        """Return the partitions of those streams of which one is behind; of a stream that is not known all are."""
        found = (self.partitions.get(stream, _ALL) for stream in streams)
        return [parts for parts in found if any(parts)]


@dataclass(frozen=True)
class _Asked:
    """What is asked of one view: where its time, version and features stand among the fields that are read.

    `is_keyed` says that its entity is its streams' own key, so that one partition has all of an entity's events.
    """

    layout: Layout
    time_at: int
    places: Mapping[str, int]
    is_keyed: bool

    @property
    def view(self) -> View:
        return self.layout.view

    @cached_property
    def ttl_us(self) -> int:
        return count_us(self.view.ttl)

    def standings(self, raws: Sequence[Raw], keys: Sequence[Any], behind: Behind, now_us: int) -> "_Standings":
        """Judge each entity's row; `keys` has each one's first join key."""
        statuses, times = list[bytes](), list[bytes]()
        oldest_us, late = now_us - self.ttl_us if self.ttl_us else _EVER_US, behind.among(self.view.sources)
        at = self.time_at
        for raw, key in zip(raws, keys, strict=True):
            time = raw[at]
            if time is None:
                statuses.append(_MISSING)
                times.append(_NO_TIME)
                continue
            at_us, spelled = _instant(time)
            times.append(spelled)
            statuses.append(_OUTSIDE if at_us < oldest_us or (late and self._waits(key, late)) else _PRESENT)
        return _Standings(statuses, times)

    def _waits(self, key: Any, late: Sequence[tuple[bool, ...]]) -> bool:
        """Say whether events of an entity may wait: of its own partition, or of any if its key does not tell which."""
        if not self.is_keyed:
            return True
        raw = str(key).encode()
        return any(parts[partition_of(raw, len(parts))] for parts in late)


class _Standings:
    """What an answer says of a view's rows, an entity each, as JSON; and how many of its values were asked for."""

    __slots__ = ("_end", "_features_count", "_nulls_count", "_tail", "statuses")

    def __init__(self, statuses: list[bytes], times: list[bytes]) -> None:
        self.statuses = statuses
        self._end = _end(times)
        self._tail = _tail(statuses, self._end)
        self._features_count = self._nulls_count = 0

    def lines(self, raws: Sequence[Raw], places: Sequence[int]) -> bytes:
        """Return the lines of some features, each with a value for each entity, as JSON."""
        self._features_count += len(places)
        if len(raws) != 1:
            columns = ([raw[place] for raw in raws] for place in places)
            return b",".join([self._line(values, feast_bytes.json_of_all(values)) for values in columns])
        raw, tail = raws[0], self._tail
        values = [raw[place] for place in places]
        spelled = map(feast_bytes.json_of, values)
        if None in values or b"" in values:
            return b",".join(map(self._line, zip(values), spelled))
        return b"%b%b%b" % (_LINE, (tail + b"," + _LINE).join(spelled), tail)

    def _line(self, values: Raw, spelled: bytes) -> bytes:
        tail = self._tail
        if None in values or b"" in values:
            told = zip(values, self.statuses, strict=True)
            statuses = [status if value or status is not _PRESENT else _NULL for value, status in told]
            self._nulls_count += statuses.count(_NULL)
            tail = _tail(statuses, self._end)
        return b"%b%b%b" % (_LINE, spelled, tail)

    def counts(self) -> dict[Status, int]:
        """Return how many values there were, by their status."""
        rows = self.statuses
        found = {_STATUSES[status]: rows.count(status) * self._features_count for status in {*rows}}
        if self._nulls_count:
            found[Status.NULL_VALUE] = self._nulls_count
            found[Status.PRESENT] -= self._nulls_count
        return found


def _tail(statuses: Sequence[bytes], end: bytes) -> bytes:
    return b'],"statuses":[%b]%b' % (b",".join(statuses), end)


def _end(times: Sequence[bytes]) -> bytes:
    return b',"event_timestamps":[%b]}' % b",".join(times)


@dataclass(frozen=True)
class _Hash:
    """All that is asked of the hashes of some join keys: one HMGET for each entity."""

    names: tuple[str, ...]
    encoders: tuple[Callable[[Any], bytes | None], ...]
    prefix: bytes
    suffix: bytes
    fields: tuple[bytes, ...]
    asked: tuple[_Asked, ...]
    kinds: tuple[str, ...]

    def keys(self, entities: Mapping[str, Sequence[Any]]) -> list[bytes]:
        """Return the hashes' keys; raises `Refused` for a value that is not of the join key's type."""
        columns = [self._encoded(place, entities[name]) for place, name in enumerate(self.names)]
        if len(columns) == 1:
            prefix, suffix = self.prefix, self.suffix
            return [prefix + part + suffix for part in columns[0]]
        return [b"".join((self.prefix, *parts, self.suffix)) for parts in zip(*columns, strict=True)]

    def _encoded(self, place: int, values: Sequence[Any]) -> list[bytes]:
        encode, found = self.encoders[place], list[bytes]()
        for value in values:
            encoded = encode(value)
            if encoded is None:
                got, name, kind = repr(value)[:80], self.names[place], self.kinds[place]
                raise Refused([Problem("entity", name, f"is {kind}", got, f"send values of type {kind}")])
            found.append(encoded)
        return found


@dataclass(frozen=True)
class Selection:
    """Which features are asked for, by name in the answer, and what is to be read for them."""

    hashes: tuple[_Hash, ...]
    names: bytes
    """The features' names in the answer, as JSON."""
    runs: tuple[tuple[int, int, tuple[int, ...]], ...]
    """Of features that follow each other in one view: their hash, the view in the hash, and their fields."""
    features_count: int
    known: frozenset[str]

    @cached_property
    def needed(self) -> frozenset[str]:
        """The join keys without which nothing can be read."""
        return frozenset(name for one in self.hashes for name in one.names)

    def check(self, entities: Mapping[str, Sequence[Any]]) -> None:
        """Raise `Refused` where join keys are missing, unknown or uneven, or where too much is asked at once."""
        counts = {len(values) for values in entities.values()}
        most = min(ENTITIES_MAX, VALUES_MAX // self.features_count)
        if entities.keys() == self.needed and len(counts) == 1 and max(counts) <= most:
            return
        problems = [
            Problem("entity", name, "is needed and not given", hint=f'add "{name}": […] to entities')
            for name in sorted(self.needed - entities.keys())
        ]
        for name in sorted(entities.keys() - self.known)[:TOLD_MAX]:
            meant = nearest(name[:NAME_MAX], self.known)
            hint = f"did you mean {meant}?" if meant else f"join keys are {listed(sorted(self.known))}"
            problems.append(Problem("entity", name[:NAME_MAX], "is unknown", hint=hint))
        if len(counts) > 1:
            given = islice(entities.items(), TOLD_MAX)
            got = ", ".join(f"{name[:NAME_MAX]}: {len(values)}" for name, values in given)
            problems.append(Problem("request", "entities", "needs as many values of each join key", got))
        if max(counts) > most:
            fact = f"may ask for {most} at once, of so many features"
            problems.append(Problem("request", "entities", fact, f"{max(counts)} entities", "ask in parts"))
        if problems:
            raise Refused(problems)

    def questions(self, entities: Mapping[str, Sequence[Any]]) -> list[Question]:
        """Return what is to be read; raises `Refused` for a value that is not of its join key's type."""
        return [Question(one.keys(entities), one.fields) for one in self.hashes]

    def answer(
        self, entities: Mapping[str, Sequence[Any]], read: Sequence[Sequence[Raw]], behind: Behind, now_us: int
    ) -> Answer:
        """Return the response: first the join keys, then the features as they were asked for.

        It is put together from pieces of JSON, most of which are the same for all features of a view: no value becomes
        an object of Python's first.
        """
        standings = self._standings(entities, read, behind, now_us)
        names, lines = [to_json(name) for name in entities], list[bytes]()
        for values in entities.values():
            count = len(values)
            tail = _tail([_PRESENT] * count, _end([_NO_TIME] * count))
            lines.append(b'{"values":%b%b' % (to_json(values, inf_nan_mode="strings")[:-1], tail))
        for at, view_at, places in self.runs:
            lines.append(standings[at][view_at].lines(read[at], places))
        names.append(self.names)
        body = b'{"metadata":{"feature_names":[%b]},"results":[%b]}' % (b",".join(names), b",".join(lines))
        views = zip(self.hashes, standings, strict=True)
        return Answer(
            body, {asked.view.name: own.counts() for one, of in views for asked, own in zip(one.asked, of, strict=True)}
        )

    def _standings(
        self, entities: Mapping[str, Sequence[Any]], read: Sequence[Sequence[Raw]], behind: Behind, now_us: int
    ) -> list[list[_Standings]]:
        """Return what is said of rows, by hash and view."""
        found = []
        for one, raws in zip(self.hashes, read, strict=True):
            keys = entities[one.names[0]]
            found.append([asked.standings(raws, keys, behind, now_us) for asked in one.asked])
        return found

    def rows(
        self,
        entities: Mapping[str, Sequence[Any]],
        read: Sequence[Sequence[Raw]],
        behind: Behind,
        now_us: int,
        is_chosen: Callable[[bytes], bool],
    ) -> list[ServedRow]:
        """Return what was served, a row for each view and entity whose key is chosen."""
        found = []
        for one, raws in zip(self.hashes, read, strict=True):
            tuples = zip(*(entities[name] for name in one.names), strict=True)
            for key, raw, values in zip(one.keys(entities), raws, tuples, strict=True):
                if is_chosen(key):
                    found += [_served(asked, one.names, raw, values, behind, now_us) for asked in one.asked]
        return found


def _served(
    asked: _Asked, names: Sequence[str], raw: Raw, values: tuple[Any, ...], behind: Behind, now_us: int
) -> ServedRow:
    time, version = raw[asked.time_at], raw[asked.time_at + 1]
    (status,) = asked.standings([raw], values[:1], behind, now_us).statuses
    by_name = dict(zip(names, values, strict=True))
    return ServedRow(
        asked.view.name,
        tuple(by_name[name] for name in asked.view.entity_names),
        None if time is None else _instant(time)[0],
        0 if time is None else version_of(time, version),
        _STATUSES[status],
        {name: feast_bytes.decode(raw[place]) for name, place in asked.places.items()},
    )


class Catalog:
    """All that can be asked for."""

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        contracts: Mapping[str, Contract],
        services: Mapping[str, Sequence[str]],
    ) -> None:
        """`services` names, for each feature service, its views."""
        self.layouts, self.services = layouts, services
        self._keyed = {
            name: all(layout.view.entity_names == (contracts[one].stream.key,) for one in layout.view.sources)
            for name, layout in layouts.items()
        }
        self.join_keys = frozenset(name for layout in layouts.values() for name in layout.view.entity_names)
        self._select = lru_cache(_KEPT)(self._resolve)

    def select(self, request: ReadRequest) -> Selection:
        """Resolve what a request names. Raises `Unknown` for what is not declared, and `Refused`."""
        return self._select(tuple(request.features), request.feature_service, request.full_feature_names)

    def _resolve(self, features: tuple[str, ...], service: str | None, full_names: bool) -> Selection:  # noqa: FBT001  # lru_cache keys
        references = self._references(features, service)
        names = [f"{view}__{name}" if full_names else name for view, name in references]
        if double := sorted({name for name in names if names.count(name) > 1}):
            hint = "ask for each feature once, and set full_feature_names where views have features of one name"
            raise Refused([Problem("feature", name, "is asked for twice", hint=hint) for name in double])
        hashes: dict[bytes, dict[str, list[str]]] = {}
        for view, name in references:
            hashes.setdefault(self.layouts[view].prefix, {}).setdefault(view, []).append(name)
        made = [self._hash(views) for views in hashes.values()]
        places = {
            asked.view.name: (at, in_hash) for at, one in enumerate(made) for in_hash, asked in enumerate(one.asked)
        }
        runs = []
        for view, group in groupby(references, lambda reference: reference[0]):
            at, in_hash = places[view]
            fields = made[at].asked[in_hash].places
            runs.append((at, in_hash, tuple(fields[name] for _, name in group)))
        return Selection(tuple(made), b",".join(map(to_json, names)), tuple(runs), len(references), self.join_keys)

    def _references(self, features: tuple[str, ...], service: str | None) -> list[tuple[str, str]]:
        if bool(features) == (service is not None):
            hint = 'write "features": ["view:feature", …] or "feature_service": "…"'
            raise Refused([Problem("request", "features", "needs either features or a feature service", hint=hint)])
        if len(features) > FEATURES_MAX:
            fact = f"may ask for {FEATURES_MAX} features at once"
            raise Refused([Problem("request", "features", fact, f"{len(features)} features", "ask in parts")])
        if service is not None:
            if service not in self.services:
                hint = f"there is {listed(sorted(self.services))}"
                raise Unknown([Problem("feature service", service[:NAME_MAX], "is unknown", hint=hint)])
            views = (self.layouts[name].view for name in self.services[service])
            return [(view.name, feature.name) for view in views for feature in view.features]
        found, problems = list[tuple[str, str]](), list[Problem]()
        for reference in features:
            view, _, name = reference.partition(":")
            if view in self.layouts and any(name == one.name for one in self.layouts[view].view.features):
                found.append((view, name))
            elif len(problems) < TOLD_MAX:
                problems.append(self._unknown(reference[:NAME_MAX], view))
        if problems:
            raise Unknown(problems)
        return found

    def _unknown(self, reference: str, view: str) -> Problem:
        every = [f"{one.view.name}:{made.name}" for one in self.layouts.values() for made in one.view.features]
        meant = nearest(reference, every)
        others = f"views are {listed(sorted(self.layouts))}" if view not in self.layouts else "GET /features lists them"
        return Problem("feature", reference, "is unknown", hint=f"did you mean {meant}?" if meant else others)

    def _hash(self, views: Mapping[str, Sequence[str]]) -> _Hash:
        fields, asked = list[bytes](), list[_Asked]()
        for view, names in views.items():
            layout = self.layouts[view]
            own = dict(zip((made.name for made in layout.view.features), layout.fields[2:], strict=True))
            places = {name: len(fields) + 2 + at for at, name in enumerate(names)}
            asked.append(_Asked(layout, len(fields), places, self._keyed[view]))
            fields += [*layout.fields[:2], *(own[name] for name in names)]
        first = asked[0].layout
        types = {column.name: column.type for column in first.view.entity}
        sorted_names = tuple(sorted(types))
        return _Hash(
            sorted_names,
            tuple(feast_bytes.entity_encoder(types[name]) for name in sorted_names),
            first.prefix,
            first.project,
            tuple(fields),
            tuple(asked),
            tuple(str(types[name]) for name in sorted_names),
        )


@lru_cache(10_000)
def _instant(time: bytes) -> tuple[int, bytes]:
    """Return a stored time in microseconds since the epoch, and as JSON has it.

    >>> _instant(bytes.fromhex("0880c2d6cb06"))
    (1769316608000000, b'"2026-01-25T04:50:08Z"')
    """
    seconds, nanos = feast_bytes.decode_time(time)
    spelled = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{nanos:09d}"[: 10 if nanos % 1000 else 7 if nanos % 1_000_000 else 4] if nanos else ""
    return seconds * 1_000_000 + nanos // 1000, f'"{spelled}{digits}Z"'.encode()
