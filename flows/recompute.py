"""The declared SQL once more, over the archived events, for a few rows of a view in each round.

The only leg that sees what both stores have wrong in the same way. At the end of an epoch the offline rows are what
the accepted events of all epochs until then make, so rows and events are taken up to one and the same epoch.

An index says which archive parts have events of which entity: each part's entity columns are read once, for all views
of the stream, the rest only of the parts that a row was made of.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from freshet.flows.materializer import archive_name
from freshet.flows.steps import checks
from freshet.flows.steps.oracle import answers, union_of
from freshet.flows.steps.shards import hashes
from freshet.flows.steps.watch import Entity
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.ledger import Ledger
from freshet.schemas.part import PartSummary, epoch_of
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import instant_us
from freshet.schemas.view import View

Hashes = npt.NDArray[np.int64]


class Archive(Protocol):
    """What keeps accepted events."""

    def visible_parts(self, name: str) -> list[str]:
        """Return the names of all visible parts."""

    def summary(self, name: str, part: str) -> PartSummary | None:
        """Return what a part's footer says, None if the part is gone."""

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some."""


@dataclass(frozen=True)
class Budget:
    """How much one round may take of a view: rows that are recomputed, parts that are read, entities that are known."""

    rows_count: int = 8
    parts_count: int = 200
    indexed_parts_count: int = 500
    hashes_count: int = 20_000_000


@dataclass(frozen=True)
class _Indexed:
    """Of an archive part, when its events happened, and the hashes of the entities that have some, by their columns."""

    summary: PartSummary
    hashes: Mapping[tuple[str, ...], Hashes]

    @property
    def hashes_count(self) -> int:
        return sum(map(len, self.hashes.values()))


class ArchiveIndex:
    """Of one stream's archive, which parts have events of which entities, for all views of the stream."""

    def __init__(self, stream: str, views: Iterable[View], archive: Archive, budget: Budget) -> None:
        self.name, self._archive, self._budget = archive_name(stream), archive, budget
        self._views = {view.entity_names: view for view in views}
        self._columns = [*dict.fromkeys(name for names in self._views for name in names)]
        self._parts: dict[str, _Indexed] = {}
        self._hashes_count = 0
        self._is_listed = False

    def begin(self) -> None:
        """Note that a round begins: the archive may be another one by now."""
        self._is_listed = False

    def learn(self) -> None:
        """Index parts that are new, once a round, and forget those that are gone. Raises `Unavailable`."""
        if self._is_listed:
            return
        visible = self._archive.visible_parts(self.name)
        for part in self._parts.keys() - {*visible}:
            self._hashes_count -= self._parts.pop(part).hashes_count
        new = [part for part in visible if part not in self._parts]
        for part in new[: self._budget.indexed_parts_count]:
            if self._is_full:
                break
            summary = self._archive.summary(self.name, part)
            if summary is not None:
                table = self._archive.read_parts(self.name, [part], self._columns)
                found = {names: np.unique(hashes(_known(table, view), view)) for names, view in self._views.items()}
                self._parts[part] = _Indexed(summary, found)
                self._hashes_count += self._parts[part].hashes_count
        self._is_listed = True

    @property
    def _is_full(self) -> bool:
        return self._hashes_count > self._budget.hashes_count * len(self._views)

    def is_whole(self, ledger: Ledger) -> bool:
        """Say whether all that the ledger says is archived is known."""
        count = sum(
            one.summary.rows_count for part, one in self._parts.items() if (epoch_of(part) or 0) <= ledger.epoch
        )
        return bool(self._parts) and not self._is_full and count == ledger.rows_counts.get(self.name, 0)

    def of(self, view: View, entity_hash: int, epoch: int, oldest_us: int | None, newest_us: int) -> list[str]:
        """Return the parts up to an epoch that have events of an entity between two times."""
        found = []
        for part, one in self._parts.items():
            summary, entities = one.summary, one.hashes[view.entity_names]
            if not len(entities) or (epoch_of(part) or 0) > epoch:
                continue
            if summary.oldest is not None and instant_us(summary.oldest) > newest_us:
                continue
            if summary.newest is not None and oldest_us is not None and instant_us(summary.newest) < oldest_us:
                continue
            place = np.searchsorted(entities, entity_hash)
            if place < len(entities) and entities[place] == entity_hash:
                found.append(part)
        return found

    @property
    def schema(self) -> pa.Schema:
        """The columns of archived events, of which there must be some."""
        return next(iter(self._parts.values())).summary.schema


def indexes_of(plans: Iterable[ViewPlan], archive: Archive, budget: Budget) -> dict[str, ArchiveIndex]:
    """Return an index of each stream's archive, shared by the views of which events tell the entity without any SQL."""
    views: dict[str, list[View]] = {}
    for plan in plans:
        for stream in plan.view.sources:
            views.setdefault(stream, []).extend([plan.view] if _is_able(plan) else [])
    return {stream: ArchiveIndex(stream, own, archive, budget) for stream, own in views.items()}


class Recompute:
    """Recomputes rows of one view."""

    def __init__(self, plan: ViewPlan, archive: Archive, indexes: Mapping[str, ArchiveIndex], budget: Budget) -> None:
        self._plan, self._archive, self._budget = plan, archive, budget
        self._indexes = {stream: indexes[stream] for stream in plan.view.sources}

    def frame(self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
        """Return some of the offline rows beside the SQL's answers; None if nothing can be said in this round.

        `rows` are final as of the ledger, each with its part as `_part`. Raises `Unavailable`.
        """
        view = self._plan.view
        if not _is_able(self._plan):
            return None
        for index in self._indexes.values():
            index.learn()
        if not all(index.is_whole(ledger) for index in self._indexes.values()):
            return None
        chosen, parts = self._choose(ledger, rows)
        if not chosen:
            return None
        wanted = _hashes_of(view, [_entity(view, row) for row in chosen])
        events = union_of([self._events(stream, parts[stream], wanted) for stream in view.sources])
        until_us = max(instant_us(row[EVENT_TIME]) for row in chosen)
        given = pa.Table.from_pylist([dict(row) for row in chosen], view.row_schema)
        return checks.recomputed(view, chosen, answers(self._plan, events, given, until_us))

    def _choose(
        self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], dict[str, set[str]]]:
        """Return the rows that can be recomputed, as many as the budget has, and the archive parts they need."""
        view, reach_us = self._plan.view, self._plan.reach_us
        chosen, parts = list[Mapping[str, Any]](), {stream: set[str]() for stream in view.sources}
        numbers = _hashes_of(view, [_entity(view, row) for row in rows])
        expired_us = max((ledger.expired.get(stream, 0) for stream in view.sources), default=0)
        for row, number in zip(rows, numbers, strict=True):
            until_us = instant_us(row[EVENT_TIME])
            since_us = None if reach_us is None else until_us - reach_us
            if expired_us and (since_us is None or since_us <= expired_us):
                continue
            reach = view, int(number), ledger.epoch, since_us, until_us
            more = {stream: {*self._indexes[stream].of(*reach)} for stream in parts}
            merged = {stream: parts[stream] | more[stream] for stream in parts}
            if sum(map(len, merged.values())) > self._budget.parts_count:
                continue
            chosen, parts = [*chosen, row], merged
            if len(chosen) == self._budget.rows_count:
                break
        return chosen, parts

    def _events(self, stream: str, parts: Collection[str], wanted: Hashes) -> pa.Table:
        name, view = archive_name(stream), self._plan.view
        if not parts:
            return self._indexes[stream].schema.empty_table()
        table = _known(self._archive.read_parts(name, sorted(parts)), view)
        return table.filter(pa.array(np.isin(hashes(table, view), wanted)))


def _is_able(plan: ViewPlan) -> bool:
    """Say whether events tell a view's entity without any SQL."""
    return {*plan.events.names}.issuperset(plan.view.entity_names)


def _known(table: pa.Table, view: View) -> pa.Table:
    """Return the events whose entity is known."""
    for name in view.entity_names:
        table = table.filter(table.column(name).is_valid())
    return table


def _entity(view: View, row: Mapping[str, Any]) -> Entity:
    return tuple(row[name] for name in view.entity_names)


def _hashes_of(view: View, entities: Sequence[Entity]) -> Hashes:
    lines = [dict(zip(view.entity_names, entity, strict=True)) for entity in entities]
    return hashes(pa.Table.from_pylist(lines, pa.schema(view.entity)), view)
