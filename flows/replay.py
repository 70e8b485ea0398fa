"""Replay: the materializer's own dataflow over a file of events, with no broker and no store.

For unit tests of features, for backfill, and to look into a wrong value.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from freshet.flows.edges import bytewax, event_file
from freshet.flows.edges.metrics import Metrics
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.materializer import Edges, build, source_key
from freshet.schemas.event import Contract
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reject
from freshet.schemas.view import View


@dataclass(slots=True)
class FileReader:
    """Reads a file as one source partition, whatever partitions its events name."""

    waiting: Iterator[Poll]
    done: bool = False
    read_count: int = 0

    def poll(self) -> Poll | None:
        """Return the file's next batch."""
        poll = next(self.waiting, None)
        self.done = poll is None
        self.read_count += 0 if poll is None else len(poll.values)
        return poll

    def finished(self) -> bool:
        """Say whether the file is read."""
        return self.done

    def position(self) -> int:
        """Return how many events were read."""
        return self.read_count

    def durable(self, position: int) -> None:
        """A file needs no telling."""

    def close(self) -> None:
        """The file closes with its iterator."""


class _NoOnlineStore:
    """Replay serves nobody."""

    def write(self, view: View, rows: pa.Table) -> int:
        """Write nothing."""
        del view, rows
        return 0


@dataclass
class Replayed:
    """What a replay did: events and rows, and the first rejects of each reason."""

    metrics: Metrics
    rejects: list[Reject] = field(default_factory=list)

    def on_rejects(self, _stream: str, rejects: Sequence[Reject]) -> None:
        """Keep rejects."""
        self.rejects.extend(rejects)


def replay(
    pipeline: Pipeline,
    contracts: Mapping[str, Contract],
    files: Mapping[str, str],
    out: Path,
    *,
    shards_count: int = 1,
    now_us: Callable[[], int],
) -> Replayed:
    """Run the dataflow over one file a stream; rows are written as parquet to `out`, a folder a view."""
    for path in files.values():
        if path != "-":
            next(event_file.polls(path, ""), None)  # what cannot be read is refused before anything is made
    offline = OfflineStore(out)
    for view in pipeline.views:
        offline.prepare(view.name, view.row_schema)
    done = Replayed(Metrics(list(contracts), [view.name for view in pipeline.views]))
    topics = {source_key(stream, 0): (path, contracts[stream].stream.topic) for stream, path in files.items()}
    edges = Edges(
        keys=list(topics),
        open_reader=lambda key, _: FileReader(event_file.polls(*topics[key])),
        online=_NoOnlineStore(),
        offline=_WithoutArchive(offline),
        now_us=now_us,
        metrics=done.metrics,
        on_rejects=done.on_rejects,
    )
    bytewax.run(build(pipeline, contracts, edges, shards_count), epoch=timedelta(seconds=1))
    return done


@dataclass(frozen=True, slots=True)
class _WithoutArchive:
    """A replayed file is its own archive."""

    store: OfflineStore

    def append(self, name: str, table: pa.Table) -> object:
        """Keep rows, not events."""
        return None if name.startswith("_events/") else self.store.append(name, table)
