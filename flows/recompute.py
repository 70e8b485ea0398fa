"""The declared SQL once more, over the archived events, for a few rows of a view in each round.

The only leg that sees what both stores have wrong in the same way. At the end of an epoch the offline rows are what
the accepted events of all epochs until then make, so rows and events are taken up to one and the same epoch, of the
parts that have events of the rows' entities.

What it costs grows with the events in a row's reach, so a round takes a bounded number of them. An entity that has more
is judged less often: part of each round is saved for such ones, which take turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from freshet.flows.archives import Archive, ArchiveIndex, Budget, Hashes, is_able, known
from freshet.flows.steps import frames
from freshet.flows.steps.oracle import answers, union_of
from freshet.flows.steps.shards import hashes
from freshet.flows.steps.watch import Entity
from freshet.schemas.event import EVENT_TIME, NEVER_US, archive_name
from freshet.schemas.ledger import Ledger
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import instant_us
from freshet.schemas.view import VERSION, View

_PART_EVENTS = 100
"""As many events are windowed in the time that it takes to open a part."""
_READ_EVENTS = 20
"""As many events are read in the time that it takes to window one."""
_TURNS_MAX = 10_000


@dataclass(frozen=True)
class _Need:
    """A row, the number of its entity, and what it takes: parts by stream, each with its events of the entity.

    Of a row of all of the past the archive `may_lack` events: if it does, DuckDB's version is another one.
    """

    row: Mapping[str, Any]
    number: int
    parts: Mapping[str, Mapping[str, int]]
    may_lack: bool = False


class Recompute:
    """Recomputes rows of one view."""

    def __init__(self, plan: ViewPlan, archive: Archive, indexes: Mapping[str, ArchiveIndex], budget: Budget) -> None:
        self._plan, self._archive, self._budget = plan, archive, budget
        self._indexes = {stream: indexes[stream] for stream in plan.view.sources}
        self._saved_count = 0
        self._awaited: int | None = None
        """The entity for which events are saved."""
        self._turns: dict[int, None] = {}
        """The entities that had some of what was saved, the last one last."""

    def frame(self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
        """Return some of the offline rows beside the SQL's answers; None if nothing can be said in this round.

        `rows` are final as of the ledger, each with its part as `_part`. Raises `Unavailable`.
        """
        view = self._plan.view
        if not is_able(self._plan):
            return None
        if not all(index.is_whole(ledger) for index in self._indexes.values()):
            return None
        needs = self._choose([*self._needs(ledger, rows)])
        if not needs:
            return None
        chosen = [need.row for need in needs]
        names = [*view.entity_names, EVENT_TIME]
        events = union_of([self._events(stream, needs) for stream in view.sources])
        until_us = max(instant_us(row[EVENT_TIME]) for row in chosen)
        given = pa.Table.from_pylist([dict(row) for row in chosen], view.row_schema)
        found = answers(self._plan, events, given, until_us)
        versions = {tuple(line[name] for name in names): line[VERSION] for line in found.to_pylist()}
        whole = [
            need.row
            for need in needs
            if not need.may_lack or need.row[VERSION] == versions.get(tuple(need.row[name] for name in names))
        ]
        return frames.recomputed(view, whole, found) if whole else None

    def _needs(self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> Iterator[_Need]:
        """Return the rows that the plan made and whose events may all be in the archive, with what each takes."""
        view, lookback_us = self._plan.view, self._plan.lookback_us
        numbers = _hashes_of(view, [_entity(view, row) for row in rows])
        expired_us = max((ledger.expired.get(stream, 0) for stream in view.sources), default=0)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            until_us = instant_us(row[EVENT_TIME])
            since_us = None if lookback_us is None else until_us - lookback_us
            may_lack = bool(expired_us) and (since_us is None or since_us <= expired_us)
            if may_lack and self._plan.reach_us is not None:
                continue
            if until_us < ledger.taken_over.get(view.name, NEVER_US):
                continue
            parts = {
                stream: index.of(view, number, ledger.epoch, since_us, until_us)
                for stream, index in self._indexes.items()
            }
            yield _Need(row, number, parts, may_lack)

    def _cost(self, need: _Need, others: Sequence[_Need] = ()) -> int:
        """Return how many events it takes to recompute a row beside others, whose parts are read anyway."""
        cost = 0
        for stream, found in need.parts.items():
            opened = found.keys() - {part for other in others for part in other.parts[stream]}
            cost += sum(found.values()) + len(opened) * _PART_EVENTS
            cost += self._indexes[stream].events_count(opened) // _READ_EVENTS
        return cost

    def _choose(self, needs: Sequence[_Need]) -> list[_Need]:
        """Return the rows that this round has events for.

        Half of them are for rows that take little, half are saved for one that takes more than that: the one whose
        entity's turn was longest ago. It is waited for, so that others that take less are not always before it.
        """
        budget, chosen = self._budget, list[_Need]()
        left_count = budget.events_count // 2
        self._saved_count = min(self._saved_count + budget.events_count - left_count, budget.saved_count)
        costs = [self._cost(need) for need in needs]
        large = {index: cost for index, cost in enumerate(costs) if left_count < cost <= budget.saved_count}
        if large:
            turns = {number: turn for turn, number in enumerate(self._turns, 1)}
            numbers = {index: needs[index].number for index in large}
            place = min(large, key=lambda index: (numbers[index] != self._awaited, turns.get(numbers[index], 0)))
            self._awaited = numbers[place]
            if large[place] <= self._saved_count:
                self._saved_count -= large[place]
                self._had_its_turn(numbers[place])
                chosen.append(needs[place])
        for index, need in enumerate(needs):
            cost = self._cost(need, chosen)
            if index not in large and cost <= left_count and len(chosen) < budget.rows_count:
                left_count -= cost
                chosen.append(need)
        return chosen

    def _had_its_turn(self, number: int) -> None:
        self._awaited = None
        self._turns.pop(number, None)
        self._turns[number] = None
        if len(self._turns) > _TURNS_MAX:
            del self._turns[next(iter(self._turns))]

    def _events(self, stream: str, needs: Sequence[_Need]) -> pa.Table:
        """Return the events that some rows need; of each part those of the entities for which it is read."""
        name, view, schema = archive_name(stream), self._plan.view, self._indexes[stream].schema
        columns = [column for column in schema.names if self._plan.oracle.mentions(column)]
        wanted = dict[str, list[int]]()
        for need in needs:
            for part in need.parts[stream]:
                wanted.setdefault(part, []).append(need.number)
        tables = [schema.empty_table().select(columns)]
        for part in sorted(wanted):
            table = known(self._archive.read_parts(name, [part], columns), view)
            tables.append(table.filter(pa.array(np.isin(hashes(table, view), wanted[part]))))
        return pa.concat_tables(tables)


def _entity(view: View, row: Mapping[str, Any]) -> Entity:
    return tuple(row[name] for name in view.entity_names)


def _hashes_of(view: View, entities: Sequence[Entity]) -> Hashes:
    lines = [dict(zip(view.entity_names, entity, strict=True)) for entity in entities]
    return hashes(pa.Table.from_pylist(lines, pa.schema(view.entity)), view)
