"""What the validator holds of an entity between its looks, and when that can be judged: pure.

An entity is looked at twice. At the first look the offline row that it was chosen by, if there is one, is already
committed, so the online row must be at least as new: rows are online before they are committed. At the second look, a
grace later, it must not have become older. The row of the first look must then be offline with the same values, once
everything is committed that it can have been made of: all that Kafka held at the second look, and the row's own time.
Nothing here depends on how long anything takes; a slow flow only makes the verdict late.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.shards import split
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.ledger import Ledger
from freshet.schemas.part import PartSummary
from freshet.schemas.units import instant_us
from freshet.schemas.view import VERSION, StoredRow, View

Entity = tuple[Any, ...]
Place = tuple[datetime, int]
"""Where a row stands among those of its entity: its time, then its version."""

PART = "_part"
"""The column that says which part a row was found in."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """An entity that is being looked at.

    `floor` is an offline row from before the first look, `seen` the newest place ever seen online before it. `first`
    and `second` are the online rows of both looks; `ends` says, by source partition, where Kafka ended after the
    second.
    """

    entity: Entity
    floor: Place | None
    seen: Place | None
    first: StoredRow | None
    first_at: datetime
    second: StoredRow | None = None
    ends: Mapping[str, int] | None = None

    def again(self, second: StoredRow | None, ends: Mapping[str, int]) -> "Ticket":
        """Return the ticket after its second look."""
        return replace(self, second=second, ends=ends)


class Found(StrEnum):
    """What became of the online row of the first look."""

    FOUND = "found"
    ABSENT = "absent"
    """It is not offline, and must be."""
    SUPERSEDED = "superseded"
    """Only a later version of it is offline: a crash came between, and the replay made that one at once."""
    PENDING = "pending"
    """It may still come, and has not for long."""


@dataclass(frozen=True)
class OfflineRow:
    """A row as it was found offline, in how many copies."""

    row: Mapping[str, Any]
    copies_count: int


Versions = Mapping[tuple[Entity, datetime], Mapping[int, OfflineRow]]
"""Of (entity, event time), every offline version."""


@dataclass(frozen=True)
class Judgeable:
    """A ticket that can be judged. `offline` is there where the row was found, or nothing was to be looked for."""

    ticket: Ticket
    found: Found | None
    offline: OfflineRow | None = None


def place(row: StoredRow | None) -> Place | None:
    """Return where an online row stands."""
    return None if row is None else (row.event_timestamp, row.version)


def is_settled(view: View, ticket: Ticket, ledger: Ledger) -> bool:
    """Say whether everything is committed that the row of the first look can have been made of."""
    if ticket.ends is None:
        return False
    if any(ledger.offsets.get(key, 0) < end for key, end in ticket.ends.items()):
        return False
    if ticket.first is None:
        return True
    mark = ledger.shards.get(f"{view.name}/{_shard(view, ticket.entity, ledger.shards_count)}")
    return mark is not None and mark.clock_us >= instant_us(ticket.first.event_timestamp)


def _shard(view: View, entity: Entity, shards_count: int) -> int:
    columns = [pa.array([value], column.type) for value, column in zip(entity, view.entity, strict=True)]
    (shard,) = split(pa.Table.from_arrays(columns, schema=pa.schema(view.entity)), view, shards_count)
    return shard


def judgeable(ticket: Ticket, versions: Versions, *, settled: bool, overdue: bool) -> Judgeable | None:
    """Say what became of a ticket that was looked at twice; None while nothing can be said.

    `versions` were read after the ledger that settled it. One that is `overdue` is judged as far as it goes.
    """
    if not (settled or overdue):
        return None
    row = ticket.first
    if row is None:
        return Judgeable(ticket, None)
    there = versions.get((row.entity, row.event_timestamp), {})
    if settled and row.version in there:
        return Judgeable(ticket, Found.FOUND, there[row.version])
    if any(version > row.version for version in there):
        return Judgeable(ticket, Found.SUPERSEDED)
    return Judgeable(ticket, Found.ABSENT if settled else Found.PENDING)


def covering(summaries: Mapping[str, PartSummary], instants: Iterable[datetime]) -> list[str]:
    """Return the parts that may hold rows of some times.

    >>> day = [datetime(2026, 1, number) for number in range(1, 9)]
    >>> parts = {"a": PartSummary(3, pa.schema([]), day[0], day[2]), "b": PartSummary(1, pa.schema([]), day[2], day[4])}
    >>> covering(parts, [day[1]]), covering(parts, [day[2]]), covering(parts, [day[6]])
    (['a'], ['a', 'b'], [])
    """
    times = sorted(set(instants))
    return [name for name, part in summaries.items() if part.rows_count and _covers(part, times)]


def _covers(part: PartSummary, times: Sequence[datetime]) -> bool:
    if part.oldest is None or part.newest is None:
        return bool(times)
    return any(part.oldest <= time <= part.newest for time in times)


def versions_of(view: View, rows: Iterable[tuple[str, pa.Table]], wanted: Sequence[StoredRow]) -> Versions:
    """Return every offline version at the times of some online rows, of tables that are each a part's."""
    keys = {(row.entity, row.event_timestamp) for row in wanted}
    times = pa.array(sorted({at for _, at in keys}), view.row_schema.field(EVENT_TIME).type)
    firsts = pa.array({entity[0] for entity, _ in keys}, view.entity[0].type)
    found: dict[tuple[Entity, datetime], dict[int, OfflineRow]] = {}
    for part, table in rows:
        near = table.filter(pc.and_(pc.is_in(table[EVENT_TIME], times), pc.is_in(table[view.entity[0].name], firsts)))
        for row in near.to_pylist():
            key = tuple(row[name] for name in view.entity_names), row[EVENT_TIME]
            if key in keys:
                versions = found.setdefault(key, {})
                known = versions.get(row[VERSION])
                versions[row[VERSION]] = OfflineRow({**row, PART: part}, known.copies_count + 1 if known else 1)
    return found


def newest_of(view: View, rows: Iterable[pa.Table], wanted: Iterable[Entity]) -> dict[Entity, Place]:
    """Return where the newest row of each of some entities stands, among the rows of some tables."""
    found: dict[Entity, Place] = {}
    entities = set(wanted)
    firsts = pa.array({entity[0] for entity in entities}, view.entity[0].type)
    for table in rows:
        for row in table.filter(pc.is_in(table[view.entity[0].name], firsts)).to_pylist():
            entity, where = tuple(row[name] for name in view.entity_names), (row[EVENT_TIME], row[VERSION])
            if entity in entities:
                found[entity] = max(where, found.get(entity, where))
    return found


@dataclass
class Memory:
    """The newest place at which each of so many entities was seen online, the last seen ones."""

    size: int = 100_000
    _seen: dict[Entity, Place] = field(default_factory=dict)

    def of(self, entity: Entity) -> Place | None:
        """Return the newest place."""
        return self._seen.get(entity)

    def see(self, row: StoredRow | None) -> None:
        """Note a row."""
        where = place(row)
        if row is None or where is None:
            return
        known = self._seen.pop(row.entity, None)
        self._seen[row.entity] = where if known is None else max(known, where)
        if len(self._seen) > self.size:
            del self._seen[next(iter(self._seen))]

    def clear(self) -> None:
        """Forget all: the store is another one by now."""
        self._seen.clear()
