"""The online store filled from the offline store: after it lost rows, and after rows were made anew."""

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from freshet.schemas.event import EVENT_TIME, NEVER_US
from freshet.schemas.ledger import Ledger
from freshet.schemas.units import count_us
from freshet.schemas.view import StoredRow, View

_ROWS_AT_ONCE = 50_000


class Online(Protocol):
    """The online store, as `edges.redis` does."""

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        """Write rows; return how many replaced what was there."""

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""


class Offline(Protocol):
    """The offline store, as `edges.parquet` does."""

    def newest(self, view: View) -> pa.Table:
        """Return each entity's newest final row."""


def refill(
    online: Online,
    offline: Offline,
    views: Sequence[View],
    ledger: Ledger | None,
    now_us: int,
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write each entity's newest offline row online, where it is not older than what is there, or in any case.

    Returns how many rows were written, by view.

    One that has outlived its view's ttl by the stream's own clock, which the ledger has, is not brought back; where it
    is there still it is written, too, and so expires.
    """
    counts: dict[str, int] = {}
    for view in views:
        counts[view.name] = 0
        newest = offline.newest(view)
        outlived = pc.less(newest[EVENT_TIME].cast(pa.int64()), _oldest_us(view, ledger, now_us))
        for start in range(0, newest.num_rows, _ROWS_AT_ONCE):
            rows, old = (column.slice(start, _ROWS_AT_ONCE) for column in (newest, outlived))
            gone = rows.filter(old)
            entities = list(zip(*(gone[name].to_pylist() for name in view.entity_names), strict=True))
            there = pa.array([row is not None for row in online.read(view, entities)], pa.bool_())
            rows = pa.concat_tables([rows.filter(pc.invert(old)), gone.filter(there)])
            online.write(view, rows, overwrite=overwrite)
            counts[view.name] += rows.num_rows
    return counts


def _oldest_us(view: View, ledger: Ledger | None, now_us: int) -> int:
    """Return before which time a row has outlived its ttl; the stream's clock may be behind ours, or ahead."""
    marks = {} if ledger is None else ledger.shards
    clocks_us = [mark.clock_us for key, mark in marks.items() if key.rpartition("/")[0] == view.name]
    return max(NEVER_US, min(*clocks_us, now_us) - count_us(view.ttl)) if view.ttl and clocks_us else NEVER_US
