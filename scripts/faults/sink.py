"""What goes wrong on the way to the offline store: a store and a ledger that stand before the materializer's own.

The store drops or doubles rows of a part before they are staged. The ledger then speaks of the rows that the part has,
as if the flow had never known others.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from freshet.flows.journal import LedgerStore
from freshet.flows.live import OfflineParts
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.finding import Cause
from freshet.schemas.ledger import Ledger
from freshet.schemas.view import VERSION, View
from freshet.scripts.faults.deeds import Choice, Deed, Deeds

CAUSES = (Cause.LOST_OFFLINE_WRITE, Cause.DUPLICATE_OFFLINE)


@dataclass
class Sink:
    """What the store and the ledger know of each other: deeds that wait for their commit, and rows counted too many."""

    cause: Cause
    choice: Choice
    deeds: Deeds
    views: Mapping[str, View]
    begun: bool = False
    waiting: dict[str, list[Deed]] = field(default_factory=dict)
    more: dict[tuple[str, str], int] = field(default_factory=dict)

    def struck(self, name: str, table: pa.Table) -> tuple[pa.Table, list[Deed]]:
        """Return a view's rows as they are staged, and what was done to them."""
        view = self.views.get(name)
        if view is None or not self.begun:
            return table, []
        keys = table.select([*view.entity_names, EVENT_TIME, VERSION]).to_pylist()
        entities = [" / ".join(str(key[column]) for column in view.entity_names) for key in keys]
        things = [repr(tuple(key.values())).encode() for key in keys]
        taken = np.array([*map(self.choice.takes, things, entities)], bool)
        kind = "doubled" if self.cause is Cause.DUPLICATE_OFFLINE else "dropped"
        deeds = [
            Deed(0.0, name, entity, f"{kind} {key[EVENT_TIME]}")
            for key, entity, is_taken in zip(keys, entities, taken, strict=True)
            if is_taken
        ]
        rows = table.filter(pa.array(taken))
        return (pa.concat_tables([table, rows]) if kind == "doubled" else table.filter(pa.array(~taken))), deeds


class FaultyOffline:
    """An offline store that stages other rows than it is given."""

    def __init__(self, own: OfflineParts, sink: Sink) -> None:
        self._own, self._sink = own, sink

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None:
        """Stage what is left of a table."""
        rows, deeds = self._sink.struck(name, table)
        part = self._own.stage(name, rows, epoch)
        if deeds:
            self._sink.waiting.setdefault(part or "", []).extend(deeds)
        if part is not None and rows.num_rows != table.num_rows:
            self._sink.more[name, part] = rows.num_rows - table.num_rows
        return part


class FaultyLedger:
    """A ledger that counts the rows that were staged, and notes deeds once they are durable."""

    def __init__(self, own: LedgerStore, sink: Sink) -> None:
        self._own, self._sink = own, sink
        self._total: dict[str, int] = {}
        self._counted: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def write(self, ledger: Ledger) -> int:
        """Replace it; return how many bytes."""
        sink, told = self._sink, [part for parts in ledger.parts.values() for part in parts]
        parts = {name: dict(counts) for name, counts in ledger.parts.items()}
        for (name, part), more in sink.more.items():
            if part in told:
                parts[name][part] += more
                self._total[name] = self._total.get(name, 0) + (0 if part in self._counted else more)
                self._counted.add(part)
        counts = {name: count + self._total.get(name, 0) for name, count in ledger.rows_counts.items()}
        written = self._own.write(ledger.model_copy(update={"parts": parts, "rows_counts": counts}))
        self._note([*told, ""])
        return written

    def _note(self, parts: Iterable[str]) -> None:
        now = time.time()
        for part in parts:
            done = self._sink.waiting.pop(part, ())
            self._sink.deeds.did(Deed(now, one.view, one.entity, one.what) for one in done)
