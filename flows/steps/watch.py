"""What the validator holds of an entity between its looks, and when that can be judged: pure.

An entity is looked at twice. At the first look the offline row that it was chosen by, if there is one, is already
committed, so the online row must be at least as new: rows are online before they are committed. At the second look, a
grace later, it must not have become older. The row of the first look must then be offline with the same values, once
everything is committed that it can have been made of: all that Kafka held at the second look, and the row's own time.
Nothing here depends on how long anything takes; a slow flow only makes the verdict late.

An offline row that the online store lacks was lost on its way, or was there and went away. One that was seen was there;
of another the entity's own rows tell, and what befell others of late (`Signs`).
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.steps.shards import hashes
from freshet.schemas.event import EVENT_TIME, NEVER_US
from freshet.schemas.ledger import Ledger
from freshet.schemas.part import PartSummary, epoch_of, run_of
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import instant_us
from freshet.schemas.view import VERSION, StoredRow, View

Entity = tuple[Any, ...]
Place = tuple[datetime, int]
"""Where a row stands among those of its entity: its time, then its version."""

PART = "_part"
"""The column that says which part a row was found in."""


def unlike(plan: ViewPlan, ledger: Ledger) -> str:
    """Say why a view's rows, as the ledger speaks for them, cannot be judged by a plan; nothing if they can be.

    A change of the declaration replaces the ledger before it touches a row, and has its digests stay.
    """
    name = plan.view.name
    if ledger.pending is not None and name in ledger.pending.generations:
        return "its rows are being made anew: another declaration comes into force"
    if name not in ledger.views:
        return "the flow makes no rows of it"
    return "" if ledger.views[name] == plan.digest else "its rows are those of another declaration"


@dataclass(frozen=True, slots=True)
class Ticket:
    """An entity that is being looked at.

    `floor` is an offline row from before the first look, `seen` the newest place ever seen online before it. `first`
    and `second` are the online rows of both looks, over at `first_at` and `second_at`; `ends` says, by source
    partition, where Kafka ended after the second. `epoch` is the newest that was known to be committed before the
    first; `runs` are those that had by then passed all that another run can have written online before them.
    """

    entity: Entity
    floor: Place | None
    seen: Place | None
    first: StoredRow | None
    first_at: datetime
    second: StoredRow | None = None
    ends: Mapping[str, int] | None = None
    second_at: datetime | None = None
    epoch: int = 0
    runs: frozenset[str | None] = frozenset({None})

    @property
    def known(self) -> Place | None:
        """The newest place at which the entity was seen online until the first look."""
        return max(filter(None, (self.seen, place(self.first))), default=None)

    @property
    def is_absent(self) -> bool:
        """Whether there was no online row at one of the looks."""
        return self.first is None or self.second is None

    @property
    def is_behind(self) -> bool:
        """Whether the online row was older than the floor, and was never seen as new as that."""
        known = self.known
        return not self.is_absent and self.floor is not None and known is not None and known < self.floor

    def again(self, second: StoredRow | None, ends: Mapping[str, int], at: datetime) -> "Ticket":
        """Return the ticket after its second look."""
        return replace(self, second=second, ends=ends, second_at=at)


class Found(StrEnum):
    """What became of the online row of the first look."""

    FOUND = "found"
    ABSENT = "absent"
    """It is not offline, and must be."""
    SUPERSEDED = "superseded"
    """A later version of it is offline, and a crash came between: the replay made that one at once, or on the way to it
    a row that counts as many events, but others, since partitions are read in another order."""
    CUT = "cut"
    """It is not offline, and parts have fewer rows that can be read than were committed: it may be one of those."""
    PENDING = "pending"
    """It may still come, and has not for long."""


@dataclass
class Runs:
    """The runs of the flow that made parts, and which of them have passed all that one before them wrote online.

    A run that is killed leaves rows online that are not durable. The next one reads their events again, perhaps in
    another order among partitions: on the way to the same final rows it makes others, and a version that is not final
    may count as many events, but not the same ones. So until all that Kafka held when a run was first met is
    committed, an online row may be of the run before it.
    """

    sole: frozenset[str | None] = frozenset({None})
    """Those that have passed. Parts that the flow did not make are of none."""
    _met: set[str | None] = field(default_factory=set)
    _young: dict[str | None, Mapping[str, int]] = field(default_factory=dict)

    def note(self, parts: Iterable[str], ends: Callable[[], Mapping[str, int]], ledger: Ledger) -> None:
        """Note parts that are new, and what is durable by now; `ends` asks Kafka, and may raise `Unavailable`."""
        self._met.update(map(run_of, parts))
        if unknown := self._met - self.sole - self._young.keys():
            self._young |= dict.fromkeys(unknown, ends())
        passed = [
            run
            for run, held in self._young.items()
            if all(ledger.offsets.get(source, 0) >= end for source, end in held.items())
        ]
        for run in passed:
            del self._young[run]
        self.sole |= frozenset(passed)


@dataclass(frozen=True)
class OfflineRow:
    """A row as it was found offline, in how many copies."""

    row: Mapping[str, Any]
    copies_count: int


Versions = Mapping[tuple[Entity, datetime], Mapping[int, OfflineRow]]
"""Of (entity, event time), every offline version."""


@dataclass(frozen=True)
class Judgeable:
    """A ticket that can be judged. `offline` is there where the row was found.

    `was_online` says of an offline row that the online store lacks whether it was there before, as far as can be told.
    """

    ticket: Ticket
    found: Found | None
    offline: OfflineRow | None = None
    was_online: bool = True


def place(row: StoredRow | None) -> Place | None:
    """Return where an online row stands."""
    return None if row is None else (row.event_timestamp, row.version)


def settled(view: View, tickets: Sequence[Ticket], ledger: Ledger) -> list[bool]:
    """Say of each ticket whether everything is committed that the row of its first look can have been made of."""
    committed = [
        ticket.ends is not None and all(ledger.offsets.get(key, 0) >= end for key, end in ticket.ends.items())
        for ticket in tickets
    ]
    rows = [ticket.first for ticket, is_committed in zip(tickets, committed, strict=True) if is_committed]
    clocks_us = iter(_clocks_us(view, [row.entity for row in rows if row is not None], ledger))
    reached = (row is None or next(clocks_us) >= instant_us(row.event_timestamp) for row in rows)
    return [is_committed and next(reached) for is_committed in committed]


def _clocks_us(view: View, entities: Sequence[Entity], ledger: Ledger) -> list[int]:
    """Return how far time has passed for the shard of each entity."""
    names = view.entity_names
    lines = [dict(zip(names, entity, strict=True)) for entity in entities]
    shards = hashes(pa.Table.from_pylist(lines, pa.schema(view.entity)), view) % ledger.shards_count
    marks = (ledger.shards.get(f"{view.name}/{shard}") for shard in shards)
    return [NEVER_US if mark is None else mark.clock_us for mark in marks]


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
    is_superseded = any(version > row.version for version in there)
    if settled and row.version in there:
        found = there[row.version]
        if not is_superseded or run_of(found.row[PART]) in ticket.runs:
            return Judgeable(ticket, Found.FOUND, found)
    if is_superseded:
        return Judgeable(ticket, Found.SUPERSEDED)
    return Judgeable(ticket, Found.ABSENT if settled else Found.PENDING)


def covering(summaries: Mapping[str, PartSummary], instants: Iterable[datetime]) -> list[str]:
    """Return the parts that may hold rows of some times.

    >>> day = [datetime(2026, 1, number) for number in range(1, 9)]
    >>> parts = {"a": PartSummary(3, pa.schema([]), day[0], day[2]), "b": PartSummary(1, pa.schema([]), day[2], day[4])}
    >>> covering(parts, [day[1]]), covering(parts, [day[2]]), covering(parts, [day[6]])
    (['a'], ['a', 'b'], [])
    """
    times = sorted({*instants})
    return [name for name, part in summaries.items() if part.rows_count and _covers(part, times)]


def _covers(part: PartSummary, times: Sequence[datetime]) -> bool:
    if part.oldest is None or part.newest is None:
        return bool(times)
    place = bisect_left(times, part.oldest)
    return place < len(times) and times[place] <= part.newest


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


# --- lost, or gone ----------------------------------------------------------------------------------------------------


@dataclass
class Signs:
    """What befell entities of late, each for `lasting`: it tells of those of which nothing was seen.

    An entity that was seen and is `gone`, and an online row that went `back`, are signs that no lost write leaves; a
    row that stays `behind` is the sign of lost writes, unless rows go back. What may have outlived its ttl is no sign.
    """

    lasting: timedelta
    ttl: timedelta = timedelta(0)
    _seen_at: dict[str, datetime] = field(default_factory=dict)

    def note(self, tickets: Iterable[Ticket], at: datetime) -> None:
        """Note what both looks at some entities tell."""
        for ticket in tickets:
            sign, known = _sign(ticket), ticket.known
            ages = self.ttl and known is not None and ticket.first_at + self.lasting - known[0] > self.ttl
            if sign is not None and not ages:
                self._seen_at[sign] = at
        self._seen_at = {sign: seen_at for sign, seen_at in self._seen_at.items() if at - seen_at <= self.lasting}

    def clear(self) -> None:
        """Forget all: the store is another one by now."""
        self._seen_at.clear()

    def was_online(self, ticket: Ticket, rewritten: Collection[Entity]) -> bool:
        """Say whether the floor, which the online store lacks, was there before.

        `rewritten` are the entities that were written more than once before they were looked at, as offline rows say:
        to lose each of several writes is less likely than to lose the entity once.
        """
        if ticket.known is not None:
            return not ticket.is_behind or "back" in self._seen_at
        if "gone" in self._seen_at:
            return True
        return "behind" not in self._seen_at and ticket.entity in rewritten


def _sign(ticket: Ticket) -> str | None:
    known, second = ticket.known, place(ticket.second)
    if ticket.is_absent:
        return None if known is None else "gone"
    assert known is not None, "there was a row at the first look"
    assert second is not None, "there was a row at the second look"
    if min(place(ticket.first) or second, second) < known:
        return "back"
    if not ticket.is_behind:
        return None
    # The compare-and-set takes no row that is older than the floor, if that was there.
    moved = ticket.floor is not None and known < second < ticket.floor
    return "back" if moved else "behind"


def written_often(view: View, rows: Iterable[tuple[str, pa.Table]], until: Mapping[Entity, int]) -> set[Entity]:
    """Return the entities that were written more than once until an epoch, as far as tables, each a part's, tell.

    A part is what one worker wrote in one epoch. An entity's first row has version 1, so one part whose rows all count
    more events follows another.
    """
    parts_count: dict[Entity, int] = {}
    found: set[Entity] = set()
    firsts = pa.array({entity[0] for entity in until}, view.entity[0].type)
    for part, table in rows:
        epoch = epoch_of(part) or 0
        lowest: dict[Entity, int] = {}
        for row in table.filter(pc.is_in(table[view.entity[0].name], firsts)).to_pylist():
            entity = tuple(row[name] for name in view.entity_names)
            if entity in until and epoch <= until[entity]:
                lowest[entity] = min(row[VERSION], lowest.get(entity, row[VERSION]))
        for entity, version in lowest.items():
            parts_count[entity] = parts_count.get(entity, 0) + 1
            if version != 1 or parts_count[entity] > 1:
                found.add(entity)
    return found
