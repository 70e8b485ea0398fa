"""What was served, as parquet, for whoever trains on what was really seen.

In `<offlineStore>/_served/<view>/part-….parquet` a row is one entity's row of a view in one answer:

| column | type | meaning |
| --- | --- | --- |
| the entity's columns, `event_timestamp`, the features | as in the view | what was stored; all null where nothing was |
| `_version` | int64 | the row's version: with entity and event_timestamp it finds the offline row |
| `asked` | list of string | the features that were asked for; others are null here |
| `status` | string | of the row as a whole: PRESENT, OUTSIDE_MAX_AGE or NOT_FOUND |
| `served_at` | timestamp[us, UTC] | when it was answered |

Only entities of a sample are kept, the same ones in every process. It is a log, not a ledger: what is not on disk yet
when a process is killed is lost, and so is what comes faster than the disk takes it, which is said.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mmh3
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.edges.parquet import OfflineStore
from freshet.schemas.dtypes import INSTANT
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.serving import ServedRow
from freshet.schemas.view import VERSION, View

LOG = logging.getLogger("freshet")

FOLDER = "_served"
_EVERY_S, _ROWS_MAX = 10.0, 200_000
_HASHES = 1 << 32


class ServedLog:
    """Keeps the rows of a share of all entities, 0 to 1. Raises `Refused` if the folder cannot be written."""

    def __init__(self, offline_root: Path, views: Sequence[View], share: float) -> None:
        self._views: Mapping[str, View] = {view.name: view for view in views}
        self._store = OfflineStore(offline_root / FOLDER)
        self._bound = int(share * _HASHES)
        self._rows: list[tuple[ServedRow, int]] = []
        self._lost_count = 0
        self._lock, self._ends = threading.Lock(), threading.Event()
        try:
            for view in views:
                (self._store.root / view.name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fact, hint = f"cannot be written: {error.strerror}", "name a folder that this user may write"
            raise Refused([Problem("offline store", str(self._store.root), fact, hint=hint)]) from error
        self._thread = threading.Thread(target=self._run, name="served", daemon=True)
        self._thread.start()

    def is_chosen(self, key: bytes) -> bool:
        """Say whether an entity, given by its key in the online store, is one of the sample."""
        return bool(mmh3.hash(key, signed=False) < self._bound)

    def keep(self, rows: Sequence[ServedRow], served_at_us: int) -> None:
        """Keep rows that were served at an instant; they are on disk a few seconds later."""
        with self._lock:
            room = _ROWS_MAX - len(self._rows)
            self._rows += [(row, served_at_us) for row in rows[:room]]
            self._lost_count += max(0, len(rows) - room)

    def close(self) -> None:
        """Write what there is."""
        self._ends.set()
        self._thread.join()
        self.write()

    def write(self) -> None:
        """Write what there is now; an outage of the disk is said, and what it befell is lost."""
        with self._lock:
            rows, self._rows = self._rows, []
            lost, self._lost_count = self._lost_count, 0
        if lost:
            LOG.warning("%d served rows were not logged: the disk did not take them in time", lost)
        for name, view in self._views.items():
            own = [(row, at) for row, at in rows if row.view == name]
            try:
                self._store.append(name, _table(view, own))
            except Unavailable as error:
                LOG.warning("%d served rows were not logged: %s", len(own), error)

    def _run(self) -> None:
        while not self._ends.wait(_EVERY_S):
            self.write()


class ServedFiles:
    """What was logged, by any process, to remove rows of it."""

    def __init__(self, offline_root: Path) -> None:
        self._store = OfflineStore(offline_root / FOLDER)

    def forget(self, view: View, is_of: Callable[[pa.Table], pa.Array]) -> int:
        """Remove some rows of a view, part by part; return how many. Raises `Unavailable`.

        Between a part and what is left of it a reader sees neither: it is a log.
        """
        count = 0
        for part in self._store.visible_parts(view.name):
            rows = self._store.read_parts(view.name, [part])
            mine = is_of(rows)
            removed = pc.sum(mine).as_py() or 0
            if removed:
                left = self._store.stage(view.name, rows.filter(pc.invert(mine)))
                self._store.delete(view.name, [part])
                self._store.publish({view.name: [left] if left else []})
                count += removed
        return count


def _table(view: View, rows: Sequence[tuple[ServedRow, int]]) -> pa.Table:
    columns = [
        *(pa.array([row.entity[at] for row, _ in rows], one.type) for at, one in enumerate(view.entity)),
        pa.array([row.event_timestamp_us for row, _ in rows], INSTANT),
        *(pa.array([row.values.get(one.name) for row, _ in rows], one.dtype.arrow) for one in view.features),
        pa.array([row.version for row, _ in rows], pa.int64()),
        pa.array([list(row.values) for row, _ in rows], pa.list_(pa.string())),
        pa.array([row.status.value for row, _ in rows], pa.string()),
        pa.array([at for _, at in rows], INSTANT),
    ]
    names = [
        *view.entity_names,
        EVENT_TIME,
        *(one.name for one in view.features),
        VERSION,
        "asked",
        "status",
        "served_at",
    ]
    return pa.Table.from_arrays(columns, names=names)
