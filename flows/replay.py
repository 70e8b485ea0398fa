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
from freshet.flows.materializer import Edges, build
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.fold import ShardFold
from freshet.schemas.event import ARCHIVE, Contract
from freshet.schemas.ledger import Update, source_key
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reject
from freshet.schemas.view import View


@dataclass(slots=True)
class FileReader:
    """Reads a file as one source partition, whatever partitions its events name; then lets time pass, if asked to."""

    waiting: Iterator[Poll]
    done: bool = False

    @classmethod
    def open(
        cls, path: str, contract: Contract, until_us: int | None = None, version: int | None = None
    ) -> "FileReader":
        """Open a file as a stream's topic; with a version its events are said to be of that."""
        topic = contract.stream.topic

        def polls() -> Iterator[Poll]:
            count = 1
            for poll in event_file.polls(path, topic, version=version, form=contract.schema):
                count = max(count, poll.partitions_count)
                yield poll
            for partition in range(count if until_us is not None else 0):
                assert until_us is not None
                yield Poll.of_nothing(topic, partition, count, 0, until_us)

        return cls(polls())

    def poll(self) -> Poll | None:
        """Return the file's next batch."""
        poll = next(self.waiting, None)
        self.done = poll is None
        return poll

    def finished(self) -> bool:
        """Say whether the file is read."""
        return self.done

    def close_epoch(self) -> None:
        """A replay is not gone on with."""

    def epoch_durable(self) -> None:
        """Nor committed."""

    def close(self) -> None:
        """The file closes with its iterator."""


class _NoOnlineStore:
    """Replay serves nobody."""

    writes_count = 0

    def write(self, view: View, rows: pa.Table) -> int:
        """Write nothing."""
        del view, rows
        return 0


@dataclass
class Replayed:
    """What a replay did: its counts, its rejects, and the accepted events of each stream, if they were to be kept."""

    metrics: Metrics
    rejects: list[Reject] = field(default_factory=list)
    events: dict[str, list[pa.Table]] = field(default_factory=dict)

    def put(self, rejects: Sequence[Reject]) -> None:
        """Keep rejects."""
        self.rejects.extend(rejects)

    def flush(self) -> None:
        """They are kept."""


@dataclass(frozen=True)
class Afresh:
    """The journal of a run that begins with nothing, and leaves nothing to go on from."""

    pipeline: Pipeline
    contracts: Mapping[str, Contract]

    def judge(self, stream: str, partition: int) -> PartitionJudge:
        """Return the judge of a partition that has shown nothing."""
        del partition
        return PartitionJudge(self.contracts[stream].stream)

    def fold(self, view: str, shard: int) -> ShardFold:
        """Return the fold of a shard that has seen nothing."""
        del shard
        return ShardFold.of(self.pipeline.plan(view), self.contracts)

    def rejected_in_a_row(self, stream: str) -> int:
        """Return that none was rejected yet."""
        del stream
        return 0

    def judged(self, key: str, judge: PartitionJudge, partitions_count: int, epoch: int) -> None:
        """Keep nothing."""

    def folded(self, key: str, fold: ShardFold, epoch: int) -> None:
        """Keep nothing."""

    def tell(self, update: Update) -> None:
        """Keep nothing."""


def replay(
    pipeline: Pipeline,
    contracts: Mapping[str, Contract],
    files: Mapping[str, str],
    out: Path,
    *,
    shards_count: int = 1,
    now_us: Callable[[], int],
    until_us: int | None = None,
    version: int | None = None,
    keep_events: bool = False,
) -> Replayed:
    """Run the dataflow over one file a stream; rows are written as parquet to `out`, a folder a view.

    Time passes with the events, and after the last of them to `until_us` (µs since the epoch), if that is later.
    With a `version` the events follow that version of their contract, whatever an unsigned message is said to.
    """
    for stream, path in files.items():
        if path != "-":
            form = contracts[stream].schema
            next(
                event_file.polls(path, "", version=version, form=form), None
            )  # what cannot be read is refused before anything is made
    offline = OfflineStore(out)
    for view in pipeline.views:
        offline.prepare(view.name, view.row_schema)
    done = Replayed(Metrics(list(contracts), [view.name for view in pipeline.views]))
    topics = {source_key(stream, 0): (path, contracts[stream]) for stream, path in files.items()}
    edges = Edges(
        keys=list(topics),
        open_reader=lambda key: FileReader.open(*topics[key], until_us, version),
        online=_NoOnlineStore(),
        offline=_RowsOnly(offline, done.events if keep_events else None),
        dead_letters=done,
        journal=Afresh(pipeline, contracts),
        now_us=now_us,
        metrics=done.metrics,
    )
    bytewax.run(build(pipeline, contracts, edges, shards_count), edges.failure, epoch=timedelta(seconds=1))
    return done


@dataclass(frozen=True, slots=True)
class _RowsOnly:
    """Writes rows only: a replayed file is its own archive. Events are gathered if there is a place for them."""

    store: OfflineStore
    events: dict[str, list[pa.Table]] | None

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None:
        """Write rows, to be seen at once; gather events, or let go of them."""
        del epoch
        stream = name.removeprefix(ARCHIVE)
        if stream == name:
            self.store.append(name, table)
            return None
        if self.events is not None:
            self.events.setdefault(stream, []).append(table)
        return None
