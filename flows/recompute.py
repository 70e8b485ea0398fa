"""The declared SQL once more, over the archived events, for a few rows of a view in each round.

The only leg that sees what both stores have wrong in the same way. At the end of an epoch the offline rows are what
the accepted events of all epochs until then make, so rows and events are taken up to one and the same epoch.

An index says which archive parts have events of which entity: each part's entity columns are read once, the rest only
of the parts that a row was made of.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass
class _Index:
    """Of one stream's archive parts, when their events happened, and the hashes of the entities that have some."""

    parts: dict[str, tuple[PartSummary, Hashes]] = field(default_factory=dict)
    hashes_count: int = 0

    def take(self, part: str, summary: PartSummary, found: Hashes) -> None:
        self.parts[part] = summary, found
        self.hashes_count += len(found)

    def keep(self, names: Collection[str]) -> None:
        for part in [part for part in self.parts if part not in names]:
            self.hashes_count -= len(self.parts.pop(part)[1])

    def rows_count(self, epoch: int) -> int:
        """Return how many events were archived up to an epoch."""
        return sum(one.rows_count for part, (one, _) in self.parts.items() if (epoch_of(part) or 0) <= epoch)

    def of(self, entity_hash: int, epoch: int, oldest_us: int | None, newest_us: int) -> list[str]:
        """Return the parts up to an epoch that have events of an entity between two times."""
        found = []
        for part, (summary, entities) in self.parts.items():
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


class Recompute:
    """Recomputes rows of one view."""

    def __init__(self, plan: ViewPlan, archive: Archive, budget: Budget) -> None:
        self._plan, self._archive, self._budget = plan, archive, budget
        self._indexes = {stream: _Index() for stream in plan.view.sources}
        known = set(plan.events.names)
        self._is_able = known.issuperset(plan.view.entity_names)
        """Whether events tell their entity without any SQL."""

    def frame(self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
        """Return some of the offline rows beside the SQL's answers; None if nothing can be said in this round.

        `rows` are final as of the ledger, each with its part as `_part`. Raises `Unavailable`.
        """
        view = self._plan.view
        if not self._is_able or not all(self._learn(stream, ledger) for stream in view.sources):
            return None
        chosen, parts = self._choose(ledger, rows)
        if not chosen:
            return None
        wanted = _hashes_of(view, [_entity(view, row) for row in chosen])
        events = union_of([self._events(stream, parts[stream], wanted) for stream in view.sources])
        until_us = max(instant_us(row[EVENT_TIME]) for row in chosen)
        given = pa.Table.from_pylist([dict(row) for row in chosen], view.row_schema)
        return checks.recomputed(view, chosen, answers(self._plan, events, given, until_us))

    def _learn(self, stream: str, ledger: Ledger) -> bool:
        """Index new parts; say whether all that the ledger says is archived is known."""
        name, index, view = archive_name(stream), self._indexes[stream], self._plan.view
        visible = self._archive.visible_parts(name)
        index.keep(visible)
        new = [part for part in visible if part not in index.parts]
        for part in new[: self._budget.indexed_parts_count]:
            summary = self._archive.summary(name, part)
            if summary is None:
                continue
            table = self._archive.read_parts(name, [part], view.entity_names)
            index.take(part, summary, np.unique(hashes(_known(table, view), view)))
        if index.hashes_count > self._budget.hashes_count:
            return False
        return index.rows_count(ledger.epoch) == ledger.rows_counts.get(name, 0)

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
            more = {
                stream: {*self._indexes[stream].of(int(number), ledger.epoch, since_us, until_us)} for stream in parts
            }
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
            schema = next(iter(self._indexes[stream].parts.values()))[0].schema
            return schema.empty_table()
        table = _known(self._archive.read_parts(name, sorted(parts)), view)
        return table.filter(pa.array(np.isin(hashes(table, view), wanted)))


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
