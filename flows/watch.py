"""What is known of one view from round to round: a sample of its rows in both stores, as frames to be judged.

A `Watch` holds what it saw until that can be judged (`steps/watch.py`). It has no part in the materializer's memory: it
sees the stores, the ledger that stands in one of them, and where Kafka's partitions end.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from freshet.flows.archives import ArchiveIndex, Budget
from freshet.flows.parity import EVERY, Client, Parity
from freshet.flows.recompute import Recompute
from freshet.flows.steps import frames
from freshet.flows.steps.canaries import CanaryLine, Probe
from freshet.flows.steps.freshness import Progress, Source
from freshet.flows.steps.parts import Parts
from freshet.flows.steps.watch import (
    Entity,
    Found,
    Judgeable,
    Memory,
    Place,
    Runs,
    Signs,
    Ticket,
    Versions,
    covering,
    judgeable,
    settled,
    versions_of,
    written_often,
)
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.finding import Frame
from freshet.schemas.generations import Generation
from freshet.schemas.ledger import Ledger
from freshet.schemas.part import PartSummary, epoch_of
from freshet.schemas.plan import ViewPlan
from freshet.schemas.view import VERSION, StoredRow, View

_NEW_PARTS, _OLD_PARTS = 5, 1
_HISTORY_PARTS = 50
"""How many parts are read for how often an entity was written, in a round that finds one that was never online."""
_FOLDER = "all"


class Online(Protocol):
    """What rows are served from."""

    def sample(self, view: View, size: int, seed: int) -> list[Entity]:
        """Return up to `size` entities that have a row of the view."""

    def read(self, view: View, entities: Sequence[Entity]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""

    def counted_writes(self) -> int:
        """Return how many writes the store has counted."""


class Offline(Protocol):
    """What keeps rows for ever."""

    def generation(self, name: str) -> Generation:
        """Return the folder's current generation."""

    def anew_count(self, name: str) -> int:
        """Return how often a folder's rows were made anew, by another declaration."""

    def visible_parts(self, name: str) -> list[str]:
        """Return the names of all visible parts."""

    def summary(self, name: str, part: str) -> PartSummary | None:
        """Return what a part's footer says, None if the part is gone."""

    def is_staged(self, name: str, part: str) -> bool:
        """Say whether a part still waits to be published."""

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some."""


class LedgerReader(Protocol):
    """What says how far both stores are durable."""

    def read(self) -> Ledger | None:
        """Return the ledger, None before the first commit."""


@dataclass(frozen=True)
class Outside:
    """All that a validator sees.

    `ends` gives, by source partition, the offset after the last message; `progress`, by stream and partition, what is
    committed, asked first, and the end. `feast` makes a client of Feast, which takes seconds at the first time; None
    where Feast is not asked. `is_in_force` says that what is looked by is in force, and that nobody is changing it.
    `close` lets go of all connections.
    """

    online: Online
    offline: Offline
    ledger: LedgerReader
    ends: Callable[[], Mapping[str, int]]
    progress: Callable[[], Mapping[Source, Progress]]
    now: Callable[[], datetime]
    feast: Callable[[], Client] | None = None
    is_in_force: Callable[[], bool] = lambda: True
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Sampling:
    """How much of a view one round looks at, and how long it waits.

    `rows_count` entities come from the offline store, most from its newest parts, and `keys_count` from the online
    store. Between the two looks at an entity lies `grace`; what cannot be judged after `limit` is inconclusive. Feast
    is asked about a few rows every `parity_every`, or never.
    """

    rows_count: int = 100
    keys_count: int = 50
    grace: timedelta = timedelta(seconds=3)
    limit: timedelta = timedelta(seconds=60)
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    parity_every: timedelta | None = EVERY


class Watch:
    """What is known of one view from round to round."""

    def __init__(
        self, plan: ViewPlan, outside: Outside, sampling: Sampling, indexes: Mapping[str, ArchiveIndex]
    ) -> None:
        self.plan, self.view, self._outside, self._sampling = plan, plan.view, outside, sampling
        self._recompute = Recompute(plan, outside.offline, indexes, sampling.budget)
        self._parity = None
        if outside.feast and sampling.parity_every:
            edges = (outside.feast, outside.online, outside.offline, outside.now, outside.is_in_force)
            self._parity = Parity(plan.view, *edges, sampling.parity_every)
        self._memory, self._tickets, self._signs = Memory(), list[Ticket](), Signs(sampling.limit, plan.view.ttl)
        self._parts = Parts(plan.view.row_schema)
        self._gone: dict[str, PartSummary] = {}
        self._generation: Generation | None = None
        self._runs = Runs()
        self._durable: Ledger | None = None
        """The newest ledger all of whose parts were visible."""
        self._told: Mapping[str, int] = {}
        """The parts that it names, with their numbers of rows; none once another generation may have them merged."""
        self.canary_lines: list[CanaryLine] = []
        """What this round saw of canaries."""
        self._is_counted = False
        """Whether the visible parts are those of that ledger, none of a later one."""
        self._cut: set[tuple[Entity, Place]] = set()
        """The online rows that may be those that parts lack."""
        self._due_before: datetime | None = None

    @property
    def waiting_count(self) -> int:
        """How many entities cannot be judged yet."""
        return len(self._tickets)

    @property
    def trouble(self) -> str:
        """Why Feast could not be asked; nothing if it could be, or was not."""
        return self._parity.trouble if self._parity else ""

    def list_parts(self, ledger: Ledger) -> tuple[list[str], Ledger]:
        """Learn which parts are visible, the ledger having been read before; return new ones, and the ledger after."""
        offline, found = self._outside.offline, dict[str, None]()
        while True:
            generation = offline.generation(self.view.name)
            more, staged, missed, after = self._listed(ledger)
            found |= dict.fromkeys(more)
            may_be_merged = missed and after != ledger and generation != self._generation
            if offline.generation(self.view.name) == generation and not may_be_merged:
                break
            ledger = after  # parts of two generations were met, or those of a commit that is no longer the last
        new = [part for part in found if part in self._parts]
        if generation != self._generation:  # parts of another one are not gone, but merged
            self._generation, self._told = generation, {}
            self._gone.clear()
        self._runs.note(new, self._outside.ends, ledger)
        if not staged:  # between the ledger and the renaming lies a moment, or a crash
            self._durable, self._told = ledger, ledger.parts.get(self.view.name, {})
        self._is_counted = not staged and after == ledger
        return new, after

    def _listed(self, ledger: Ledger) -> tuple[list[str], list[str], list[str], Ledger]:
        """Return new parts, those of the ledger that are staged, those of it that are missed, and the ledger after."""
        name, offline = self.view.name, self._outside.offline
        visible = dict.fromkeys(offline.visible_parts(name))
        told = ledger.parts.get(name, {})
        staged = [part for part in told if part not in visible and offline.is_staged(name, part)]
        for part in [part for part in self._parts if part not in visible]:
            self._gone[part] = self._parts.pop(part)
        new = []
        for part in {**visible, **told}:  # one that was told and not listed may have been published since
            if part not in self._parts and (summary := offline.summary(name, part)) is not None:
                self._parts.put(part, summary)
                self._gone.pop(part, None)
                new.append(part)
        missed = [part for part in told if part not in self._parts and part not in staged]
        return new, staged, missed, self._outside.ledger.read() or ledger

    def _committed_count(self, ledger: Ledger) -> int:
        """Return how many rows the parts must have: those that were committed, and not dropped by compaction."""
        dropped_count = self._generation.dropped_count if self._generation else 0
        return ledger.rows_counts.get(self.view.name, 0) - dropped_count

    def begin(self, new_parts: Sequence[str], number: int) -> None:
        """Take a first look at entities that are chosen anew; some may wait for a verdict still."""
        outside, sampling = self._outside, self._sampling
        chance = random.Random(f"{sampling.seed} {number} {self.view.name}")  # noqa: S311  # no secret
        floors = self._floors(new_parts, chance)
        keys = outside.online.sample(self.view, sampling.keys_count, chance.getrandbits(32))
        entities = [*dict.fromkeys((*floors, *keys))]
        epoch = self._durable.epoch if self._durable else 0
        for entity, row in zip(entities, outside.online.read(self.view, entities), strict=True):
            seen = self._memory.of(entity)
            self._memory.see(row)
            now = outside.now()
            self._tickets.append(Ticket(entity, floors.get(entity), seen, row, now, epoch=epoch, runs=self._runs.sole))

    def look_again(self) -> dict[Entity, StoredRow | None]:
        """Take the second look at those that have waited for the grace."""
        self._due_before = self._outside.now() - self._sampling.grace
        due = [*dict.fromkeys(ticket.entity for ticket in self._tickets if self._is_due(ticket))]
        rows = dict(zip(due, self._outside.online.read(self.view, due), strict=True))
        for row in rows.values():
            self._memory.see(row)
        return rows

    def looked_again(self, rows: Mapping[Entity, StoredRow | None], ends: Mapping[str, int]) -> None:
        """Note the second look, and where Kafka ended after it."""
        now = self._outside.now()
        self._tickets = [
            ticket.again(rows[ticket.entity], ends, now) if ticket.entity in rows and self._is_due(ticket) else ticket
            for ticket in self._tickets
        ]

    def _is_due(self, ticket: Ticket) -> bool:
        return ticket.ends is None and self._due_before is not None and ticket.first_at <= self._due_before

    def frames(self) -> dict[Frame, pd.DataFrame]:
        """Let go of all tickets that can be judged by what was durable before the parts were listed, as frames."""
        done, versions = self._judgeable()
        made = {Frame.ROWS: frames.joined(self.view, self._explained(done))}
        if self._durable is not None and self._is_counted:
            found = self._recompute.frame(self._durable, _final(done, versions))
            if found is not None:
                made[Frame.RECOMPUTED] = found
        if self._parity:
            made |= self._parity.frames(done, self._parts.comparable)
        return made

    def _judgeable(self) -> tuple[list[Judgeable], Versions]:
        ledger = self._durable
        overdue_before = self._outside.now() - self._sampling.limit
        is_settled = settled(self.view, self._tickets, ledger) if ledger else [False] * len(self._tickets)
        is_overdue = [ticket.ends is not None and ticket.first_at <= overdue_before for ticket in self._tickets]
        told = [*zip(self._tickets, is_settled, is_overdue, strict=True)]
        wanted = [one.first for one, is_due, is_late in told if (is_due or is_late) and one.first]
        parts = self._as_declared(covering(self._parts.comparable, [row.event_timestamp for row in wanted]))
        tables = ((part, self._outside.offline.read_parts(self.view.name, [part])) for part in parts)
        versions = versions_of(self.view, tables, wanted) if wanted else {}
        done, left = list[Judgeable](), list[Ticket]()
        for ticket, is_due, is_late in told:
            one = judgeable(ticket, versions, settled=is_due, overdue=is_late)
            if one is not None and one.found is Found.ABSENT:
                one = self._absent(one, overdue=is_late)
            left.append(ticket) if one is None else done.append(one)
        self._tickets = left
        return done, versions

    def look_at(self, probes: Iterable[Probe], asked_at: datetime) -> None:
        """See what became of canaries, by what was durable before the parts were listed."""
        ledger, outside = self._durable, self._outside
        self.canary_lines = []
        if ledger is None:
            return
        known = [probe for probe in probes if probe.state is not None]
        answered_at = outside.now()
        for probe in known:
            probe.look(ledger, asked_at, answered_at)
        wanted = [row for probe in known if (row := probe.wanted) is not None]
        entities = [row.entity for row in wanted]
        online = dict(zip(entities, outside.online.read(self.view, entities), strict=True))
        parts = covering(self._parts.comparable, [row.event_timestamp for row in wanted])
        names = [*self.view.entity_names, EVENT_TIME, VERSION]
        tables = ((part, outside.offline.read_parts(self.view.name, [part], names)) for part in parts)
        offline = versions_of(self.view, tables, wanted) if wanted else {}
        for probe in known:
            row = probe.wanted
            there = row is not None and (row.entity, row.event_timestamp) in offline
            stored = None if row is None else online[row.entity]
            self.canary_lines.append(
                probe.line(stored, is_offline=there or (False if self._parts.are_all_as_declared else None))
            )
            probe.let_go()

    def _absent(self, one: Judgeable, *, overdue: bool) -> Judgeable | None:
        """Say that a row is not offline, or may be one of those that parts lack; None until these are counted."""
        row, ledger = one.ticket.first, self._durable
        assert row is not None, "no row is absent"
        assert ledger is not None, "nothing is settled before the first commit"
        if not self._is_counted:
            return one if overdue else None
        read_count = sum(part.rows_count for part in self._parts.comparable.values())
        lacking_count = self._committed_count(ledger) - read_count
        if lacking_count <= 0:
            self._cut.clear()
            return one
        cut = row.entity, (row.event_timestamp, row.version)
        if cut not in self._cut and len(self._cut) >= lacking_count:
            return one
        self._cut.add(cut)
        return replace(one, found=Found.CUT)

    def _explained(self, done: Sequence[Judgeable]) -> list[Judgeable]:
        """Tell rows that were lost on their way from those that went away."""
        tickets = [one.ticket for one in done]
        self._signs.note(tickets, self._outside.now())
        until = {one.entity: one.epoch for one in tickets if one.floor and one.is_absent and one.known is None}
        often = self._written_often(until) if until else set()
        return [replace(one, was_online=self._signs.was_online(one.ticket, often)) for one in done]

    def _written_often(self, until: Mapping[Entity, int]) -> set[Entity]:
        """Return the entities that were written more than once until an epoch, as the newest parts until then tell."""
        newest = max(until.values())
        known = sorted((part for part in self._parts.comparable if (epoch_of(part) or 0) <= newest), reverse=True)
        parts = self._as_declared(known[:_HISTORY_PARTS])
        names = [*self.view.entity_names, VERSION]
        tables = ((part, self._outside.offline.read_parts(self.view.name, [part], names)) for part in parts)
        return written_often(self.view, tables, until)

    def forget(self) -> None:
        """Begin anew: the online store is another one than was looked at."""
        self._tickets, self.canary_lines = [], []
        self._memory.clear()
        self._signs.clear()

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the first part of each schema."""
        return self._parts.schemas()

    def part_lines(self) -> list[tuple[str, int, int | None]]:
        """Return the rows' numbers of parts, and of the whole folder, as `frames.parts` wants them."""
        ledger = self._durable
        if ledger is None:
            return []
        told = self._told
        lines = [
            (part, count, one.rows_count if (one := self._parts.get(part)) else None) for part, count in told.items()
        ]
        if not self._is_counted:  # a commit came while the folder was listed: the next round counts
            return lines
        visible = self._parts.rows_count
        committed = self._committed_count(ledger)
        if visible >= committed:  # what went away was not the flow's
            self._gone.clear()
        lines += [(part, gone.rows_count, None) for part, gone in self._gone.items() if part not in told]
        explained = sum(max(0, count - (there or 0)) for _, count, there in lines)  # not missed twice
        return [*lines, (_FOLDER, committed, visible + explained)]

    def _as_declared(self, parts: Sequence[str]) -> list[str]:
        """Return those of some parts that are as declared still: a file may be damaged after it was first met."""
        for part in parts:
            summary = self._outside.offline.summary(self.view.name, part)
            if summary is not None:  # else reading it says so
                self._parts.put(part, summary)
        return [part for part in parts if part in self._parts.comparable]

    def _floors(self, new_parts: Sequence[str], chance: random.Random) -> dict[Entity, Place]:
        """Choose offline rows; return the newest of each entity."""
        there = self._parts.comparable
        new = [part for part in new_parts if part in there]
        chosen = chance.sample(new, min(_NEW_PARTS, len(new)))
        rest = [part for part in there if part not in chosen]
        chosen += chance.sample(rest, min(_OLD_PARTS + _NEW_PARTS - len(chosen), len(rest)))
        floors: dict[Entity, Place] = {}
        names = [*self.view.entity_names, EVENT_TIME, VERSION]
        chosen = self._as_declared(chosen)
        for index, part in enumerate(chosen):
            wanted = -(-self._sampling.rows_count * (index + 1) // len(chosen)) - len(floors)
            rows = self._outside.offline.read_parts(self.view.name, [part], names)
            for row in rows.take(chance.sample(range(rows.num_rows), min(max(0, wanted), rows.num_rows))).to_pylist():
                entity, where = tuple(row[name] for name in names[:-2]), (row[EVENT_TIME], row[VERSION])
                floors[entity] = max(where, floors.get(entity, where))
        return floors


def _final(done: Sequence[Judgeable], versions: Versions) -> list[Mapping[str, Any]]:
    """Return the offline rows that were found, each in its newest version."""
    found = [one.ticket.first for one in done if one.offline is not None and one.ticket.first is not None]
    there = (versions[row.entity, row.event_timestamp] for row in found)
    return [known[max(known)].row for known in there]
