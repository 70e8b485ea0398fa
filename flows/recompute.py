"""The declared SQL once more, over the archived events, for a few rows of a view in each round.

The only leg that sees what both stores have wrong in the same way. At the end of an epoch the offline rows are what
the accepted events of all epochs until then make, so rows and events are taken up to one and the same epoch, of the
parts that have events of the rows' entities.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from freshet.flows.archives import Archive, ArchiveIndex, Budget, Hashes, is_able, known
from freshet.flows.materializer import archive_name
from freshet.flows.steps import frames
from freshet.flows.steps.oracle import answers, union_of
from freshet.flows.steps.shards import hashes
from freshet.flows.steps.watch import Entity
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.ledger import Ledger
from freshet.schemas.plan import ViewPlan
from freshet.schemas.units import instant_us
from freshet.schemas.view import View


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
        if not is_able(self._plan):
            return None
        if not all(index.is_whole(ledger) for index in self._indexes.values()):
            return None
        chosen, parts = self._choose(ledger, rows)
        if not chosen:
            return None
        wanted = _hashes_of(view, [_entity(view, row) for row in chosen])
        events = union_of([self._events(stream, parts[stream], wanted) for stream in view.sources])
        until_us = max(instant_us(row[EVENT_TIME]) for row in chosen)
        given = pa.Table.from_pylist([dict(row) for row in chosen], view.row_schema)
        return frames.recomputed(view, chosen, answers(self._plan, events, given, until_us))

    def _choose(
        self, ledger: Ledger, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], dict[str, set[str]]]:
        """Return the rows that can be recomputed, as many as the budget has, and the archive parts they need."""
        view, lookback_us = self._plan.view, self._plan.lookback_us
        chosen, parts = list[Mapping[str, Any]](), {stream: set[str]() for stream in view.sources}
        numbers = _hashes_of(view, [_entity(view, row) for row in rows])
        expired_us = max((ledger.expired.get(stream, 0) for stream in view.sources), default=0)
        for row, number in zip(rows, numbers, strict=True):
            until_us = instant_us(row[EVENT_TIME])
            since_us = None if lookback_us is None else until_us - lookback_us
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
        table = known(self._archive.read_parts(name, sorted(parts)), view)
        return table.filter(pa.array(np.isin(hashes(table, view), wanted)))


def _entity(view: View, row: Mapping[str, Any]) -> Entity:
    return tuple(row[name] for name in view.entity_names)


def _hashes_of(view: View, entities: Sequence[Entity]) -> Hashes:
    lines = [dict(zip(view.entity_names, entity, strict=True)) for entity in entities]
    return hashes(pa.Table.from_pylist(lines, pa.schema(view.entity)), view)
