"""A view made anew from the archived events: all rows that it would have, had its declaration always been this one.

The rows are made by the flow's own steps, so those that follow from the running flow go on from them. DuckDB's answer
for some entities is held against theirs before anything comes of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.archives import Hashes, is_able, known
from freshet.flows.edges.parquet import last_versions
from freshet.flows.reread import Archive, Reread, archived, partitions_count
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.oracle import compare, union_of
from freshet.flows.steps.shards import hashes
from freshet.flows.steps.sql import Finisher
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import EVENT_TIME, NEVER_US, Contract
from freshet.schemas.ledger import Ledger, ShardMark
from freshet.schemas.plan import ViewPlan
from freshet.schemas.view import View

_ROWS_PER_PART = 500_000
_CHECKED_ENTITIES, _CHECKED_EVENTS = 100, 20_000


class Offline(Archive, Protocol):
    """The offline store, as `edges.parquet` does."""

    def append(self, name: str, table: pa.Table) -> str | None:
        """Make rows durable and visible."""

    def visible_parts(self, name: str) -> list[str]:
        """Return the names of all visible parts."""


@dataclass(frozen=True)
class Carry:
    """Rows of before, of which events are no longer kept, or that are not asked for: taken over as they are.

    From the folder `source`, those before `before_us`. `columns` has, for each feature that means the same as one of
    before, that one's name; all others are NULL there.
    """

    source: str
    before_us: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Made:
    """A view made whole: where each of its shards ends, the states to go on from, and how many rows it has."""

    marks: Mapping[str, ShardMark]
    folds: Mapping[str, ShardFold]
    rows_count: int
    checked_count: int


@dataclass
class Backfill:
    """Makes one view's rows into a folder of its own, which nobody reads yet.

    `advance` takes the archived events of all epochs until a ledger's, as often as one likes; `finish` those of the
    last one, and the ticks up to where the flow's own clock stands. Rows before `since_us` are not made.
    """

    plan: ViewPlan
    contracts: Mapping[str, Contract]
    offline: Offline
    folder: str
    shards_count: int
    now_us: Callable[[], int]
    since_us: int = NEVER_US
    carry: Carry | None = None
    rows_count: int = 0
    events_count: int = 0
    _epoch: int = 0
    _carried: set[str] = field(default_factory=set)
    _waiting: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reread = Reread(self.plan, self.contracts, self.shards_count)
        self._folds, self._finisher = self._reread.new_folds(), Finisher(self.plan)
        self._sample = _Sample(self.plan, self.contracts)

    def advance(self, ledger: Ledger) -> None:
        """Make the rows of all events that are durable by a ledger, and were not by the last one."""
        self._carry_over()
        found = archived(self.offline, self.plan.view.sources, [self._epoch], ledger.epoch)
        for epoch, stream, events in found:
            self.events_count += events.num_rows
            self._sample.add(stream, events)
            for shard, items in self._reread.inputs(ledger, epoch, stream, events).items():
                self._take(self._folds[shard], items)
            self._write(_ROWS_PER_PART)
        self._epoch = ledger.epoch

    def finish(self, ledger: Ledger) -> Made:
        """Make all that is left, and prove a part of it; nothing may write to the ledger meanwhile.

        Raises `Refused` where DuckDB's answer is another one.
        """
        self.advance(ledger)
        clocks_us = {shard: self._clock_us(ledger, shard) for shard in self._folds}
        for shard, fold in self._folds.items():
            self._take(fold, self._ends(ledger, shard, clocks_us[shard]))
        self._write(1)
        proved = self._sample.prove(min(fold.shard.clock_us for fold in self._folds.values()), self.since_us)
        name = self.plan.view.name
        marks = {
            f"{name}/{shard}": ShardMark(
                clock_us=fold.shard.clock_us, created_us=fold.shard.created_us, events_count=fold.events_count
            )
            for shard, fold in self._folds.items()
        }
        folds = {f"{name}/{shard}": fold for shard, fold in self._folds.items()}
        return Made(marks, folds, self.rows_count, proved)

    def _clock_us(self, ledger: Ledger, shard: int) -> int | None:
        """Return up to when the flow's rows go already; None where it has none of these streams."""
        own = ledger.shards.get(f"{self.plan.view.name}/{shard}")
        if own is not None:
            return own.clock_us
        return min((mark.clock_us for mark in ledger.shards.values()), default=None)

    def _ends(self, ledger: Ledger, shard: int, clock_us: int | None) -> list[ShardInput]:
        """Return what tells a shard how far all partitions are."""
        view = self.plan.view
        return [
            ShardInput(
                view.name, shard, ledger.epoch, stream, part, partitions_count(ledger, stream),
                mark.accepted_us, clock_us, None,
            )
            for stream in view.sources
            for part, mark in ledger.partitions_of(stream).items()
        ]  # fmt: skip

    def _take(self, fold: ShardFold, items: list[ShardInput]) -> None:
        if not items:
            return
        for rows in fold.fold(items, self.now_us()):
            finished = self._finisher.finish(rows.table)
            kept = finished.filter(pc.greater_equal(finished[EVENT_TIME].cast(pa.int64()), self.since_us))
            self._sample.made(kept)
            self._waiting.append(kept)

    def _write(self, rows_count: int) -> None:
        """Write what waits, if it is so much."""
        if sum(table.num_rows for table in self._waiting) >= rows_count:
            table = pa.concat_tables(self._waiting)
            self.offline.append(self.folder, table)
            self.rows_count, self._waiting = self.rows_count + table.num_rows, []

    def _carry_over(self) -> None:
        """Take over rows of before that came since the last time, widened to the columns of today."""
        if self.carry is None:
            return
        new = [part for part in self.offline.visible_parts(self.carry.source) if part not in self._carried]
        for part in new:
            table = self.offline.read_parts(self.carry.source, [part])
            old = table.filter(pc.less(table[EVENT_TIME].cast(pa.int64()), self.carry.before_us))
            if old.num_rows:  # parts of their own: they were made by another declaration, which they name
                self.offline.append(self.folder, widened(old, self.plan.view, self.carry.columns))
                self.rows_count += old.num_rows
        self._carried.update(new)


def widened(rows: pa.Table, view: View, columns: Mapping[str, str]) -> pa.Table:
    """Return rows of an older form of a view in today's; a feature that is not among `columns` is NULL."""
    features = {feature.name for feature in view.features}
    made = [
        rows[columns.get(column.name, column.name)].cast(column.type)
        if column.name not in features or column.name in columns
        else pa.nulls(rows.num_rows, column.type)
        for column in view.row_schema
    ]
    return pa.table(made, schema=view.row_schema.with_metadata(rows.schema.metadata))


class _Sample:
    """Some entities of a view: all of their events, and all of their rows, to be proved."""

    def __init__(self, plan: ViewPlan, contracts: Mapping[str, Contract]) -> None:
        self._plan = plan
        self._events = {stream: [contracts[stream].schema.empty_table()] for stream in plan.view.sources}
        self._rows: list[pa.Table] = []
        self._chosen: Hashes = np.array([], np.int64)
        self._dropped: Hashes = np.array([], np.int64)
        self._is_able = is_able(plan)

    def add(self, stream: str, events: pa.Table) -> None:
        """Keep the events of chosen entities; the first that come are chosen, and let go of if they have very many."""
        if not self._is_able:
            return
        view = self._plan.view
        events = known(events, view)
        found = hashes(events, view)
        if len(self._chosen) < _CHECKED_ENTITIES and not len(self._dropped):
            new = np.setdiff1d(found, self._chosen)
            self._chosen = np.union1d(self._chosen, new[: _CHECKED_ENTITIES - len(self._chosen)])
        self._events[stream].append(events.filter(pa.array(np.isin(found, self._chosen))))
        while sum(table.num_rows for tables in self._events.values() for table in tables) > _CHECKED_EVENTS:
            self._drop_largest()

    def _drop_largest(self) -> None:
        view = self._plan.view
        numbers, counts = np.unique(
            np.concatenate([hashes(table, view) for tables in self._events.values() for table in tables]),
            return_counts=True,
        )
        largest = numbers[np.argmax(counts)]
        self._chosen = self._chosen[self._chosen != largest]
        self._dropped = np.append(self._dropped, largest)
        self._events = {stream: [*self._only(tables)] for stream, tables in self._events.items()}
        self._rows = [*self._only(self._rows)]

    def _only(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            yield table.filter(pa.array(np.isin(hashes(table, self._plan.view), self._chosen)))

    def made(self, rows: pa.Table) -> None:
        """Keep the rows of chosen entities."""
        if self._is_able:
            self._rows.extend(self._only([rows]))

    def prove(self, until_us: int, since_us: int) -> int:
        """Return how many rows DuckDB makes the same; raises `Refused` if it makes one of them otherwise."""
        if not self._rows or not len(self._chosen):
            return 0
        view = self._plan.view
        events = union_of([pa.concat_tables(tables) for tables in self._events.values()])
        final = last_versions(pa.concat_tables(self._rows), view)
        compared = compare(self._plan, events, final, until_us, since_us)
        if compared.differing_count:
            fact = f"would get {compared.differing_count} of {compared.rows_count} rows that DuckDB makes otherwise"
            hint = (
                "this is a defect of Freshet's; `freshet replay --check` on these events shows it, nothing was changed"
            )
            raise Refused([Problem("feature view", view.name, fact, str(compared.differing[0]), hint)])
        return compared.rows_count


def exact_since_us(plan: ViewPlan, ledger: Ledger) -> int | None:
    """Return from which instant on all events are kept that a row needs; None if there is no such instant."""
    expired = [ledger.expired[stream] for stream in plan.view.sources if stream in ledger.expired]
    if not expired:
        return NEVER_US
    return None if plan.lookback_us is None else max(expired) + plan.lookback_us + 1
