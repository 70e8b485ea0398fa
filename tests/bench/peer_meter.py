"""What all peers share: what they are told, what they tell, and how a row comes into Feast's online store.

A peer is a process that imports nothing of Freshet: it may run in an environment of its own. It is told a `Task` in its
command, reads all events of a topic, writes rows, and prints one line of JSON.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import prometheus_client  # noqa: F401  # before Feast, which switches a later import to multiprocess mode
from feast import FeatureStore
from feast.data_source import PushMode
from pipeline_work import ENTITY, FEATURES, SECTIONS, VIEW

LENGTHS_MS = {"10m": 600_000, "1h": 3_600_000}
HOPS = 10
"""Windows that hop do so in so many steps of their length."""
NAMES = {short: [one.name for one in FEATURES if one.name.endswith(f"_{short}")] for short in LENGTHS_MS}
"""The features of each window, in the order of the declaration."""
COUNTED_SECTION = SECTIONS[0]


@dataclass(frozen=True)
class Task:
    """What a peer is told: where events are and how many, where Feast's repository is, and its own setting."""

    brokers: str
    topic: str
    group: str
    events_count: int
    repo: str
    folder: str
    batch: int
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def told(cls) -> "Task":
        return cls(**json.loads(sys.argv[1]))


@dataclass
class Meter:
    """Counts what a peer does between its first message and its last write."""

    rows_count: int = 0
    offline_count: int = 0
    _begun: tuple[float, float] | None = None
    _ended: tuple[float, float] = (math.nan, math.nan)

    def begin(self) -> None:
        """Note that a message came; only the first counts."""
        if self._begun is None:
            self._begun = time.monotonic(), _cpu_s()

    def wrote(self, online: int = 0, offline: int = 0) -> None:
        """Note rows that were written just now."""
        self.rows_count += online
        self.offline_count += offline
        self._ended = time.monotonic(), _cpu_s()

    def tell(self, events_count: int, **more: Any) -> None:
        """Print what there is to tell."""
        assert self._begun is not None, "no message came"
        found = {
            "events_count": events_count,
            "seconds": self._ended[0] - self._begun[0],
            "cpu_s": self._ended[1] - self._begun[1],
            "start_cpu_s": self._begun[1],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "rows_count": self.rows_count,
            "offline_count": self.offline_count,
        }
        print(json.dumps({**found, **more}), flush=True)


def _cpu_s() -> float:
    """CPU seconds of this process, all its threads, and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return math.fsum(one.ru_utime + one.ru_stime for one in spent)


Row = tuple[int, Sequence[Any]]
"""The time of a row, in ms since the epoch, and its features in the order of a view's names."""


def frame(rows: Mapping[str, Row], names: Sequence[str]) -> pd.DataFrame:
    """Return rows, by user, as Feast takes them; a value that is null is not a number."""
    columns = zip(*(values for _, values in rows.values()), strict=True)
    return pd.DataFrame(
        {
            ENTITY: list(rows),
            "event_timestamp": pd.to_datetime([at_ms for at_ms, _ in rows.values()], unit="ms", utc=True),
            "created": datetime.now(UTC),
            **dict(zip(names, columns, strict=True)),
        }
    )


class Online:
    """A view in Feast's online store; `write` is its quicker way, `push` the one that its documents name."""

    def __init__(self, task: Task, meter: Meter, short: str | None = None) -> None:
        self._store, self._meter = FeatureStore(repo_path=Path(task.repo)), meter
        self.view = VIEW if short is None else f"{VIEW}_{short}"
        self.names = [name for which, names in NAMES.items() for name in names if short in (None, which)]

    def write(self, rows: Mapping[str, Row]) -> None:
        """Write one row each of some users."""
        if rows:
            self._store.write_to_online_store(self.view, frame(rows, self.names))
            self._meter.wrote(online=len(rows))

    def push(self, made: pd.DataFrame) -> None:
        """Push rows."""
        self._store.push(f"{self.view}_push_source", made, to=PushMode.ONLINE)
        self._meter.wrote(online=len(made))
