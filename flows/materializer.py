"""The materializer: Kafka events in, feature rows out, to the online store, the offline store and the event archive.

::

    poll ─ take ─┬─ route ─ rows (fold, finish, online, offline)
                 ├─ archive
                 └─ rejects

What a step costs by itself it costs once for all that waits: polls are read together, whatever their partitions, and
rows of a view go online together, whatever their shards. A worker keeps what it has: it judges and archives what it
polled, and writes the rows of its own shards. Between workers go only what a shard needs of an event, and what was
rejected. `build` joins steps and edges; nothing is decided here.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import Dataflow

from freshet.flows.edges.bytewax import Failure, Place, PollSource, Reader, SingleSink, Stop, Workers, WorkerSink
from freshet.flows.edges.metrics import Metrics
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.engines import Engines
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.intake import Taken
from freshet.flows.steps.shards import split
from freshet.flows.steps.windows.shard import WindowedRows
from freshet.flows.write_behind import Submit, WriteBehind, at_once
from freshet.schemas.errors import RejectLimit
from freshet.schemas.event import OFFSET, Contract, archive_name
from freshet.schemas.ledger import Update, source_key
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reason, Reject
from freshet.schemas.view import Kind, RowBatch, View


class Online(Protocol):
    """What rows are served from."""

    @property
    def writes_count(self) -> int:
        """How many writes the store itself has counted, so that lost ones are noticed; 0 where it does not count."""

    def write(self, view: View, rows: pa.Table) -> int:
        """Write rows; return how many replaced what was there."""


class Offline(Protocol):
    """What keeps rows, or events, for ever."""

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None:
        """Make a table's rows durable, to be seen when their epoch is; return the part that they are in."""


class DeadLetters(Protocol):
    """What keeps events that were not accepted."""

    def put(self, rejects: Sequence[Reject]) -> None:
        """Send rejects on their way."""

    def flush(self) -> None:
        """Wait until all of them have arrived."""


class Journal(Protocol):
    """What state is taken from, and told to at the end of an epoch, as `journal.Journal` does."""

    def judge(self, stream: str, partition: int) -> PartitionJudge:
        """Return a partition's judge where it is to go on."""

    def fold(self, view: str, shard: int) -> ShardFold:
        """Return a shard's fold where it is to go on."""

    def rejected_in_a_row(self, stream: str) -> int:
        """Return how many events of a stream were rejected with none accepted since."""

    def judged(self, key: str, judge: PartitionJudge, partitions_count: int, epoch: int) -> None:
        """Tell how far a partition's judge is."""

    def folded(self, key: str, fold: ShardFold, epoch: int) -> None:
        """Tell how far a shard's rows go."""

    def tell(self, update: Update) -> None:
        """Tell what else was done."""


@dataclass(frozen=True)
class Edges:
    """Everything outside that the flow touches. `now_us` is the clock, µs since the epoch.

    `on_rejects` is told of every event that was not accepted, a poll's at a time. After `reject_limit` of them with no
    event accepted between, late and future ones apart, the flow stops: that is a bad deploy, not bad data. A source
    that brought nothing is asked again after `idle`. `submit` has rows written online, beside the flow where it likes.
    `place` says which workers are this process's.
    """

    keys: Sequence[str]
    open_reader: Callable[[str], Reader[Poll]]
    online: Online
    offline: Offline
    dead_letters: DeadLetters
    journal: Journal
    now_us: Callable[[], int]
    metrics: Metrics
    on_rejects: Callable[[str, Sequence[Reject]], None] = lambda _, __: None
    reject_limit: int = 10_000
    idle: timedelta = timedelta(milliseconds=2)
    submit: Submit = at_once
    place: Place = field(default_factory=Place)
    stop: Stop = field(default_factory=Stop)
    failure: Failure = field(default_factory=Failure)


def build(pipeline: Pipeline, contracts: Mapping[str, Contract], edges: Edges, shards_count: int) -> Dataflow:
    """Return the dataflow that materializes a pipeline."""
    failure, workers = edges.failure, Workers(edges.place)
    stages = _Stages(pipeline, contracts, edges, shards_count, workers)
    flow = Dataflow("freshet_materializer")
    polls = op.input("poll", flow, PollSource(edges.keys, edges.open_reader, edges.stop, failure, edges.idle))
    taken = op.flat_map_batch("take", polls, failure.noting(stages.take))
    routed = op.flat_map_batch("route", taken, failure.noting(stages.route))
    outcomes = op.flat_map_batch("outcomes", taken, failure.noting(_outcomes))
    op.output("rows", routed, WorkerSink(workers, lambda: _RowsWriter(stages, edges), failure))
    op.output("archive", taken, WorkerSink(workers, lambda: _ArchiveWriter(stages, edges), failure))
    op.output("rejects", outcomes, SingleSink(lambda: _RejectWriter(edges), failure))
    return flow


class _Stages:
    """The steps of the flow, and the state of those partitions and shards that this process's workers have."""

    def __init__(
        self,
        pipeline: Pipeline,
        contracts: Mapping[str, Contract],
        edges: Edges,
        shards_count: int,
        workers: Workers,
    ) -> None:
        self._pipeline, self._contracts, self._edges = pipeline, contracts, edges
        self._shards_count, self._workers = shards_count, workers
        self._of_workers: dict[int, Engines] = {}
        self._places = {view.name: number for number, view in enumerate(pipeline.views)}
        self.judges: dict[tuple[str, int], PartitionJudge] = {}
        self.folds: dict[str, dict[int, ShardFold]] = {view.name: {} for view in pipeline.views}

    @property
    def _engines(self) -> Engines:
        worker = self._workers.own()
        if worker not in self._of_workers:
            self._of_workers[worker] = Engines(self._pipeline, self._contracts)
        return self._of_workers[worker]

    def view(self, name: str) -> View:
        """Return a view by its name."""
        return self._pipeline.plan(name).view

    def take(self, items: list[tuple[str, Poll]]) -> Iterator[tuple[str, Taken]]:
        """Decode what waits of each stream, compute its row-level parts, and judge it by what came before."""
        by_topic: dict[str, list[Poll]] = {}
        for _, poll in items:
            by_topic.setdefault(poll.topic, []).append(poll)
        own = self._workers.key(self._workers.own())
        for topic, polls in by_topic.items():
            intake = self._engines.intakes[topic]
            for read in intake.read(polls):
                place = (intake.contract.name, read.poll.partition)  # a file has the events of several
                if place not in self.judges:
                    self.judges[place] = self._edges.journal.judge(*place)
                taken = intake.judge(self.judges[place], read)
                self._count(taken)
                yield own, taken

    def _count(self, taken: Taken) -> None:
        metrics = self._edges.metrics
        for outcome, count in (
            ("accepted", taken.events.num_rows),
            ("rejected", len(taken.rejects)),
            ("duplicate", taken.duplicates_count),
        ):
            metrics.events.labels(taken.stream, outcome).inc(count)
        for reject in taken.rejects:
            metrics.rejects.labels(taken.stream, reject.reason.value).inc()

    def route(self, items: list[tuple[str, Taken]]) -> Iterator[tuple[str, ShardInput]]:
        """Send each event to the shard of its entity, and each clock to all shards of its stream's views."""
        for _, taken in items:
            for name, inputs in taken.inputs.items():
                parts = split(inputs, self.view(name), self._shards_count)
                counted = sum(part.num_rows for part in parts.values())
                self._edges.metrics.entityless.labels(name).inc(inputs.num_rows - counted)
                for shard in range(self._shards_count):
                    clock = (taken.partition, taken.partitions_count, taken.newest_us, taken.caught_up_us)
                    given = ShardInput(name, shard, taken.epoch, taken.stream, *clock, parts.get(shard))
                    yield self._worker_of(name, shard), given

    def _worker_of(self, view: str, shard: int) -> str:
        """Return whose a shard is: the shards of a view are dealt out, and the first ones of all views."""
        return self._workers.key((self._places[view] + shard) % self._workers.count)

    def fold(self, view: str, shard: int, items: list[ShardInput]) -> list[WindowedRows]:
        """Fold windows; the state is one shard's events."""
        of_view = self.folds[view]
        if shard not in of_view:
            of_view[shard] = self._edges.journal.fold(view, shard)
        rows = list(of_view[shard].fold(items, self._edges.now_us()))
        shards = [fold.shard for fold in list(of_view.values())]  # other threads add theirs
        metrics = self._edges.metrics
        metrics.entities.labels(view).set(sum(shard.entities_count for shard in shards))
        metrics.clock.labels(view).set(min(shard.clock_us for shard in shards) / 1e6)
        return rows

    def finish(self, view: str, parts: list[WindowedRows]) -> RowBatch:
        """Compute the features of all rows of a view that wait, whatever their shards, at once."""
        table = pa.concat_tables([rows.table for rows in parts], promote_options="permissive")
        finished = self._engines.finishers[view].finish(table)
        columns = ([getattr(rows, name) for rows in parts] for name in ("available_at", "kinds", "newest"))
        return RowBatch(view, finished, *map(pa.concat_arrays, columns))


class _RowsWriter:
    """Folds what comes for one worker's shards, and writes the rows: online at once, offline when the epoch closes."""

    def __init__(self, stages: _Stages, edges: Edges) -> None:
        self._stages, self._edges = stages, edges
        self._online, self._offline = _OnlineWriter(stages, edges), _OfflineWriter(edges)
        self._newest: dict[tuple[str, int], int] = {}

    def write(self, items: list[ShardInput]) -> None:
        """Fold all that waits of each shard, and have the rows of each view written."""
        by_shard: dict[tuple[str, int], list[ShardInput]] = {}
        for item in items:
            by_shard.setdefault((item.view, item.shard), []).append(item)
        by_view: dict[str, list[WindowedRows]] = {}
        for (view, shard), mine in by_shard.items():
            self._newest[view, shard] = mine[-1].epoch
            by_view.setdefault(view, []).extend(self._stages.fold(view, shard, mine))
        batches = [self._stages.finish(view, parts) for view, parts in by_view.items() if parts]
        if batches:
            self._online.write(batches)
            self._offline.write(batches)

    def flush(self) -> None:
        """Tell how far the shards are, and wait until all rows are written."""
        for (view, shard), epoch in self._newest.items():
            self._edges.journal.folded(f"{view}/{shard}", self._stages.folds[view][shard], epoch)
        epoch = next(iter(self._newest.values()))  # one and the same for all
        self._newest = {}
        self._online.flush()
        self._offline.flush(epoch)


class _OnlineWriter:
    """Writes rows as they come, while the next are computed: they are readable before the epoch closes."""

    def __init__(self, stages: _Stages, edges: Edges) -> None:
        self._stages, self._edges = stages, edges
        self._writes = WriteBehind(edges.submit)

    def write(self, batches: list[RowBatch]) -> None:
        """Have the newest row of each entity of each batch written, once those before are."""
        self._writes.begin(lambda: self._write(batches))

    def _write(self, batches: list[RowBatch]) -> None:
        """Write rows, and measure how fresh they are now that they can be read."""
        metrics = self._edges.metrics
        for batch in batches:
            rows = batch.rows.filter(batch.newest)
            count = self._edges.online.write(self._stages.view(batch.view), rows)
            metrics.rows.labels(batch.view, "online").inc(count)
            now_us = self._edges.now_us()
            told = _plain(batch.newest)
            age_s = np.maximum(now_us - _plain(batch.available_at), 0) / 1e6
            for kind in Kind:
                metrics.freshness.observe(age_s[told & (_plain(batch.kinds) == kind)], batch.view, kind.name.lower())

    def flush(self) -> None:
        """Wait until all is written."""
        self._writes.end()
        self._edges.journal.tell(Update(online_writes_count=self._edges.online.writes_count))


class _OfflineWriter:
    """Gathers a worker's rows of an epoch into one parquet part a view."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._waiting: dict[str, list[pa.Table]] = {}

    def write(self, batches: list[RowBatch]) -> None:
        """Keep rows until the epoch closes."""
        for batch in batches:
            self._waiting.setdefault(batch.view, []).append(batch.rows)

    def flush(self, epoch: int) -> None:
        """Stage the parts, each named by its epoch."""
        for view, tables in self._waiting.items():
            table = pa.concat_tables(tables)
            _stage(self._edges, view, table, epoch)
            self._edges.metrics.rows.labels(view, "offline").inc(table.num_rows)
        self._waiting = {}


class _ArchiveWriter:
    """Keeps the events that a worker accepted, for recovery, backfill, explanation and recomputation."""

    def __init__(self, stages: _Stages, edges: Edges) -> None:
        self._stages, self._edges = stages, edges
        self._waiting: dict[str, list[pa.Table]] = {}
        self._newest: dict[tuple[str, int], Taken] = {}

    def write(self, items: list[Taken]) -> None:
        """Keep events until the epoch closes."""
        for taken in items:
            self._newest[taken.stream, taken.partition] = taken
            if taken.events.num_rows:
                self._waiting.setdefault(taken.stream, []).append(taken.events)

    def flush(self) -> None:
        """Tell how far the partitions are, and stage a part a stream.

        It is named by its epoch, since recovery goes on from one.
        """
        for place, taken in self._newest.items():
            judge = self._stages.judges[place]
            self._edges.journal.judged(source_key(*place), judge, taken.partitions_count, taken.epoch)
        epoch = next(iter(self._newest.values())).epoch  # one and the same for all
        for stream, tables in self._waiting.items():
            _stage(self._edges, archive_name(stream), pa.concat_tables(tables), epoch)
        self._newest, self._waiting = {}, {}


def _stage(edges: Edges, name: str, table: pa.Table, epoch: int) -> None:
    part = edges.offline.stage(name, table, epoch)
    if part is not None:
        edges.journal.tell(Update(parts={name: {part: table.num_rows}}))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one poll, as far as rejects go.

    `accepted_count` of its events were accepted, so many as `passed` says before each of the rejects, which stand in
    order; without the validator's canaries, which say nothing of what producers send.
    """

    stream: str
    accepted_count: int
    rejects: tuple[Reject, ...]
    passed: tuple[int, ...] = ()


def _outcomes(items: list[tuple[str, Taken]]) -> Iterator[tuple[str, _Outcome]]:
    """Give what became of each poll to one worker: rejects in a row are counted across all partitions."""
    for key, taken in items:
        accepted_count = taken.events.num_rows - len(taken.canary_offsets)
        rejects = sorted(taken.rejects, key=lambda reject: reject.offset)
        passed: list[int] = []
        if rejects:
            accepted = sorted({*taken.events.column(OFFSET).to_pylist()} - taken.canary_offsets)
            passed = [bisect_left(accepted, reject.offset) for reject in rejects]
        yield key, _Outcome(taken.stream, accepted_count, tuple(rejects), tuple(passed))


_OUT_OF_TIME = (Reason.LATE, Reason.FUTURE)


class _RejectWriter:
    """Sends what was not accepted to the dead letters, and stops the flow when nothing else comes.

    How many came in a row outlives a crash: a flow that is started again and again must not empty a topic.
    """

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._in_a_row: dict[str, int] = {}

    def write(self, items: list[_Outcome]) -> None:
        """Send on the rejects of each poll; raises `RejectLimit`."""
        for poll in items:
            if poll.stream not in self._in_a_row:
                self._in_a_row[poll.stream] = self._edges.journal.rejected_in_a_row(poll.stream)
            if poll.rejects:
                self._edges.on_rejects(poll.stream, poll.rejects)
                self._edges.dead_letters.put(poll.rejects)
            count, last = self._count(poll)
            self._edges.metrics.rejects_in_a_row.labels(poll.stream).set(self._in_a_row[poll.stream])
            if last is not None and count > self._edges.reject_limit:
                place = f"{last.topic}/{last.partition}@{last.offset}"
                raise RejectLimit(
                    f'stream "{poll.stream}" gave {count} events in a row that cannot be used, the last at {place} as'
                    f" {last.reason}: {last.detail}. Hint: deploy the contract that its producers use, and start again"
                )

    def _count(self, poll: _Outcome) -> tuple[int, Reject | None]:
        """Count on; return how many came in a row at most, of which the poll has some, and the last of them."""
        in_a_row, before = self._in_a_row[poll.stream], 0
        most: tuple[int, Reject | None] = (0, None)
        for reject, passed in zip(poll.rejects, poll.passed, strict=True):
            if reject.reason not in _OUT_OF_TIME:
                in_a_row, before = (in_a_row if passed == before else 0) + 1, passed
                most = (in_a_row, reject) if in_a_row > most[0] else most
        self._in_a_row[poll.stream] = in_a_row if poll.accepted_count == before else 0
        return most

    def flush(self) -> None:
        """Wait until all have arrived: only then may the offsets move on."""
        self._edges.dead_letters.flush()
        self._edges.journal.tell(Update(rejected_in_a_row=dict(self._in_a_row)))


def _plain(column: pa.Array) -> Any:
    return column.to_numpy(zero_copy_only=False)
