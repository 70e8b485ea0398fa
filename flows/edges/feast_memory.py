"""The twin of `feast.FeastClient`, without Feast: what its clients get of stores that may be in memory.

One contract suite (tests/edges/test_feast_client.py) holds the twin and Feast itself to the same behaviour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import pyarrow as pa

from freshet.schemas.event import EVENT_TIME
from freshet.schemas.registration import Entry
from freshet.schemas.view import CREATED, StoredRow, View


class Online(Protocol):
    """What rows are served from."""

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""


class Offline(Protocol):
    """What keeps rows for ever."""

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some."""


class MemoryFeastClient:
    """Serves `views` as they are registered, which need not be as they are declared."""

    def __init__(self, online: Online, offline: Offline, views: Iterable[View]) -> None:
        self._online, self._offline = online, offline
        self._views = {view.name: view for view in views}

    def registration(self, view: View) -> list[Entry]:
        """Return every entry of a view as it is declared and as it is registered; a view may be not there at all."""
        declared = _entries(view)
        registered = _entries(self._views[view.name]) if view.name in self._views else {}
        return [Entry(name, declared.get(name), registered.get(name)) for name in {**declared, **registered}]

    def online(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is served for each entity, in order, None where there is no row; of no version."""
        return [row and replace(row, version=0) for row in self._online.read(self._views[view.name], entities)]

    def history(
        self, view: View, entities: Sequence[tuple[Any, ...]], at: datetime, parts: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        """Return the features of some parts for each entity as of a time, in order; all None where there is no row."""
        registered = self._views[view.name]
        names = [feature.name for feature in view.features]
        newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for row in self._offline.read_parts(view.name, parts).to_pylist():
            entity = tuple(row[name] for name in registered.entity_names)
            known = newest.get(entity)
            if not timedelta(0) <= at - row[EVENT_TIME] <= (registered.ttl or timedelta.max):
                continue
            if known is None or (known[EVENT_TIME], known[CREATED]) <= (row[EVENT_TIME], row[CREATED]):
                newest[entity] = row
        return [{name: newest.get(entity, {}).get(name) for name in names} for entity in entities]


def _entries(view: View) -> dict[str, str]:
    return {
        "ttl": str(view.ttl),
        **{f"entity {column.name}": str(column.type) for column in view.entity},
        **{f"feature {feature.name}": feature.dtype.feast for feature in view.features},
    }
