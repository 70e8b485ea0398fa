"""The archive of accepted events, as the validator knows it: which parts have events of which entities and partitions.

Of each part the columns of entities and partitions are read once, for all views of its stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.flows.steps.conservation import Conservation, Conserved
from freshet.flows.steps.freshness import Progress, Source
from freshet.flows.steps.shards import hashes
from freshet.schemas.event import PARTITION, archive_name
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

    def is_staged(self, name: str, part: str) -> bool:
        """Say whether a part still waits to be published."""

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some."""


@dataclass(frozen=True)
class Budget:
    """How much one round may take of a view: rows and events that are recomputed, entities that are known.

    `events_count` is what a round takes of events over many rounds, `saved_count` what it may have saved for an entity
    that has more. What reading takes is counted as events, too.
    """

    rows_count: int = 8
    events_count: int = 20_000
    saved_count: int = 400_000
    indexed_parts_count: int = 500
    hashes_count: int = 20_000_000


@dataclass(frozen=True)
class _Indexed:
    """Of an archive part, when its events happened, and how many are of which partition.

    And the hashes of the entities that have some, by their columns, each with how many.
    """

    epoch: int
    summary: PartSummary
    counts: Mapping[int, int]
    hashes: Mapping[tuple[str, ...], tuple[Hashes, npt.NDArray[np.int32]]]

    @property
    def hashes_count(self) -> int:
        return sum(len(entities) for entities, _ in self.hashes.values())


class ArchiveIndex:
    """Of one stream's archive, which parts have events of which entities, for all views of the stream."""

    def __init__(self, stream: str, views: Iterable[View], archive: Archive, budget: Budget) -> None:
        self.name, self._archive, self._budget = archive_name(stream), archive, budget
        self._views = {view.entity_names: view for view in views}
        self._columns = [*dict.fromkeys(name for names in self._views for name in names)]
        self._parts: dict[str, _Indexed] = {}
        self._hashes_count = 0
        self._conservation = Conservation(stream)
        self._is_listed = self._is_complete = False

    def begin(self) -> None:
        """Note that a round begins: the archive may be another one by now."""
        self._is_listed = self._is_complete = False  # what a failed listing leaves is held against no ledger

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
                table = self._archive.read_parts(self.name, [part], [*self._columns, PARTITION])
                counts = {one["values"]: one["counts"] for one in table.column(PARTITION).value_counts().to_pylist()}
                found = {names: _counted(hashes(known(table, view), view)) for names, view in self._views.items()}
                self._parts[part] = _Indexed(epoch_of(part) or 0, summary, counts, found)
                self._hashes_count += self._parts[part].hashes_count
        self._is_complete = self._parts.keys() == {*visible}
        self._is_listed = True

    def conserved(self, ledger: Ledger, progress: Mapping[Source, Progress]) -> list[Conserved] | None:
        """Hold all parts against the ledger, which was read before and after `learn`; None while some are not known.

        `progress` was asked for before the ledger was read.
        """
        told = ledger.parts.get(self.name, {})
        if not self._is_complete or any(self._may_come(part) for part in told if part not in self._parts):
            return None
        stream, counts = self._conservation.stream, {part: one.counts for part, one in self._parts.items()}
        offsets = {partition: one.committed for (of, partition), one in progress.items() if of == stream}
        return self._conservation.look(ledger, counts, offsets)

    def _may_come(self, part: str) -> bool:
        """Say whether a part that was not listed waits to be published, or was since; it moves, so in this order."""
        archive = self._archive
        return archive.is_staged(self.name, part) or archive.summary(self.name, part) is not None

    @property
    def _is_full(self) -> bool:
        return self._hashes_count > self._budget.hashes_count * len(self._views)

    def is_whole(self, ledger: Ledger) -> bool:
        """Say whether all that the ledger says is archived is known."""
        dropped = {*ledger.dropped.get(self.name, ())}
        counted = [one for part, one in self._parts.items() if one.epoch <= ledger.epoch and part not in dropped]
        count = sum(one.summary.rows_count for one in counted)
        return bool(self._parts) and not self._is_full and count == ledger.rows_counts.get(self.name, 0)

    def of(self, view: View, entity_hash: int, epoch: int, oldest_us: int | None, newest_us: int) -> dict[str, int]:
        """Return the parts up to an epoch that have events of an entity between two times, with how many in all."""
        found = {}
        for part, one in self._parts.items():
            summary, (entities, counts) = one.summary, one.hashes[view.entity_names]
            if one.epoch > epoch or not len(entities):
                continue
            if summary.oldest is not None and instant_us(summary.oldest) > newest_us:
                continue
            if summary.newest is not None and oldest_us is not None and instant_us(summary.newest) < oldest_us:
                continue
            place = np.searchsorted(entities, entity_hash)
            if place < len(entities) and entities[place] == entity_hash:
                found[part] = int(counts[place])
        return found

    def events_count(self, parts: Iterable[str]) -> int:
        """Return how many events some parts have, of whatever entity."""
        return sum(self._parts[part].summary.rows_count for part in parts)

    @property
    def schema(self) -> pa.Schema:
        """The columns of archived events, of which there must be some."""
        return next(iter(self._parts.values())).summary.schema


def _counted(numbers: Hashes) -> tuple[Hashes, npt.NDArray[np.int32]]:
    found, counts = np.unique(numbers, return_counts=True)
    return found, counts.astype(np.int32)


def indexes_of(plans: Iterable[ViewPlan], archive: Archive, budget: Budget) -> dict[str, ArchiveIndex]:
    """Return an index of each stream's archive, shared by the views of which events tell the entity without any SQL."""
    views: dict[str, list[View]] = {}
    for plan in plans:
        for stream in plan.view.sources:
            views.setdefault(stream, []).extend([plan.view] if is_able(plan) else [])
    return {stream: ArchiveIndex(stream, own, archive, budget) for stream, own in views.items()}


def is_able(plan: ViewPlan) -> bool:
    """Say whether events tell a view's entity without any SQL."""
    return {*plan.events.names}.issuperset(plan.view.entity_names)


def known(table: pa.Table, view: View) -> pa.Table:
    """Return the events whose entity is known."""
    for name in view.entity_names:
        table = table.filter(table.column(name).is_valid())
    return table
