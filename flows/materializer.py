"""The materializer: Kafka events in, feature rows out, to the online store, the offline store and the event archive.

::

    poll ─ read ─ take ─┬─ route ─ fold ─ finish ─┬─ online
                        ├─ archive                └─ offline
                        └─ rejects

What a step costs by itself it costs once for all that waits: polls are read together, whatever their partitions, and
rows of a view go online together, whatever their shards. `build` joins steps and edges; nothing is decided here. Step
names are stored data: a recovery store knows them.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import Dataflow

from freshet.flows.edges.bytewax import BatchLogic, Failure, KeyedSink, PollSource, Reader, Stop
from freshet.flows.edges.metrics import Metrics
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.intake import Intake, Read, Taken
from freshet.flows.steps.shards import split
from freshet.flows.steps.sql import Finisher
from freshet.flows.steps.windows.shard import WindowedRows
from freshet.flows.write_behind import Submit, WriteBehind, at_once
from freshet.schemas.errors import RejectLimit
from freshet.schemas.event import Contract, archive_name
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
    stop: Stop = field(default_factory=Stop)
    failure: Failure = field(default_factory=Failure)


def build(pipeline: Pipeline, contracts: Mapping[str, Contract], edges: Edges, shards_count: int) -> Dataflow:
    """Return the dataflow that materializes a pipeline."""
    stages, failure = _Stages(pipeline, contracts, edges, shards_count), edges.failure
    views = [view.name for view in pipeline.views]

    def one(_: str) -> int:
        return 0

    flow = Dataflow("freshet_materializer")
    polls = op.input("poll", flow, PollSource(edges.keys, edges.open_reader, edges.stop, failure, edges.idle))
    read = op.flat_map_batch("read", polls, failure.noting(stages.read))
    taken = op.stateful_batch("take", read, stages.take)
    routed = op.flat_map_batch("route", taken, failure.noting(stages.route))
    folded = op.stateful_batch("fold", routed, stages.fold)
    rows = op.flat_map_batch("finish", folded, failure.noting(stages.finish))
    op.output("online", rows, KeyedSink(shards_count, _shard_of, lambda _: _OnlineWriter(pipeline, edges), failure))
    by_view = KeyedSink(len(views), lambda key: views.index(_view_of(key)), lambda _: _OfflineWriter(edges), failure)
    op.output("offline", rows, by_view)
    op.output("archive", taken, KeyedSink(1, one, lambda _: _ArchiveWriter(edges), failure))
    op.output("rejects", taken, KeyedSink(1, one, lambda _: _RejectWriter(edges), failure))
    return flow


def _shard_of(key: str) -> int:
    return int(key.rpartition("/")[2])


def _view_of(key: str) -> str:
    return key.rpartition("/")[0]


class _Engines:
    """What one worker thread computes with: a DuckDB serves one thread."""

    def __init__(self, pipeline: Pipeline, contracts: Mapping[str, Contract]) -> None:
        self.intakes = {made.stream.topic: Intake(made, pipeline.of_source(name)) for name, made in contracts.items()}
        self.finishers = {plan.view.name: Finisher(plan) for plan in pipeline.plans}
        self.keys: dict[str, str] = {}
        """By view, under which shard's key its rows go to the stores."""


class _Stages:
    """The steps of the flow. Bytewax makes one logic a key, and does not say which: the first item does."""

    def __init__(self, pipeline: Pipeline, contracts: Mapping[str, Contract], edges: Edges, shards_count: int) -> None:
        self._pipeline, self._contracts, self._edges, self._shards_count = pipeline, contracts, edges, shards_count
        self._of_threads: dict[int, _Engines] = {}
        self._folds: dict[str, dict[int, ShardFold]] = {view.name: {} for view in pipeline.views}

    @property
    def _engines(self) -> _Engines:
        """This thread's. Not a `threading.local`: Bytewax's threads lose theirs whenever they leave Python."""
        thread = threading.get_ident()
        if thread not in self._of_threads:
            self._of_threads[thread] = _Engines(self._pipeline, self._contracts)
        return self._of_threads[thread]

    def read(self, items: list[tuple[str, Poll]]) -> Iterator[tuple[str, Read]]:
        """Decode what waits of each stream, and compute its row-level parts."""
        by_topic: dict[str, list[tuple[str, Poll]]] = {}
        for key, poll in items:
            by_topic.setdefault(poll.topic, []).append((key, poll))
        for topic, mine in by_topic.items():
            found = self._engines.intakes[topic].read([poll for _, poll in mine])
            yield from zip((key for key, _ in mine), found, strict=True)

    def take(self, _resume: None) -> BatchLogic[Read, Taken]:
        """Judge; the state is one partition's clock."""
        judges: dict[tuple[str, int], PartitionJudge] = {}  # a file has the events of several partitions
        newest: dict[tuple[str, int], Taken] = {}
        journal = self._edges.journal

        def step(reads: list[Read]) -> list[Taken]:
            taken: list[Taken] = []
            for read in reads:
                intake = self._engines.intakes[read.poll.topic]
                place = (intake.contract.name, read.poll.partition)
                if place not in judges:
                    judges[place] = journal.judge(*place)
                newest[place] = intake.judge(judges[place], read)
                taken.append(newest[place])
                self._count(taken[-1])
            return taken

        def close_epoch() -> None:
            for place, last in newest.items():
                journal.judged(source_key(*place), judges[place], last.partitions_count, last.epoch)
            newest.clear()

        return BatchLogic(step, close_epoch, self._edges.failure)

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
                parts = split(inputs, self._pipeline.plan(name).view, self._shards_count)
                counted = sum(part.num_rows for part in parts.values())
                self._edges.metrics.entityless.labels(name).inc(inputs.num_rows - counted)
                for shard in range(self._shards_count):
                    clock = (taken.partition, taken.partitions_count, taken.newest_us, taken.caught_up_us)
                    given = ShardInput(name, shard, taken.epoch, taken.stream, *clock, parts.get(shard))
                    yield f"{name}/{shard}", given

    def fold(self, _resume: None) -> BatchLogic[ShardInput, WindowedRows]:
        """Fold windows; the state is one shard's events."""
        newest: list[ShardInput] = []

        def step(items: list[ShardInput]) -> list[WindowedRows]:
            newest[:] = items[-1:]
            view, shard = items[-1].view, items[-1].shard
            of_view = self._folds[view]
            if shard not in of_view:
                of_view[shard] = self._edges.journal.fold(view, shard)
            rows = list(of_view[shard].fold(items, self._edges.now_us()))
            shards = [fold.shard for fold in list(of_view.values())]  # other threads add theirs
            metrics = self._edges.metrics
            metrics.entities.labels(view).set(sum(shard.entities_count for shard in shards))
            metrics.clock.labels(view).set(min(shard.clock_us for shard in shards) / 1e6)
            return rows

        def close_epoch() -> None:
            last = newest[0]
            self._edges.journal.folded(f"{last.view}/{last.shard}", self._folds[last.view][last.shard], last.epoch)

        return BatchLogic(step, close_epoch, self._edges.failure)

    def finish(self, items: list[tuple[str, WindowedRows]]) -> Iterator[tuple[str, RowBatch]]:
        """Compute the features of all rows of a view that wait, whatever their shards, at once."""
        by_view: dict[str, list[tuple[str, WindowedRows]]] = {}
        for key, rows in items:
            by_view.setdefault(_view_of(key), []).append((key, rows))
        for view, parts in by_view.items():
            table = pa.concat_tables([rows.table for _, rows in parts], promote_options="permissive")
            finished = self._engines.finishers[view].finish(table)
            columns = ([getattr(rows, name) for _, rows in parts] for name in ("available_at", "kinds", "newest"))
            key = self._engines.keys.setdefault(view, parts[0][0])  # always the same: its writer sees them in order
            yield key, RowBatch(view, finished, *map(pa.concat_arrays, columns))


class _OnlineWriter:
    """Writes each batch as it comes, while the next is computed: rows are readable before the epoch closes."""

    def __init__(self, pipeline: Pipeline, edges: Edges) -> None:
        self._views = {view.name: view for view in pipeline.views}
        self._edges = edges
        self._writes = WriteBehind(edges.submit)

    def write(self, batches: list[RowBatch]) -> None:
        """Have the newest row of each entity of each batch written, once those before are."""
        self._writes.begin(lambda: self._write(batches))

    def _write(self, batches: list[RowBatch]) -> None:
        """Write rows, and measure how fresh they are now that they can be read."""
        by_view: dict[str, list[RowBatch]] = {}
        for batch in batches:
            by_view.setdefault(batch.view, []).append(batch)
        metrics = self._edges.metrics
        for name, mine in by_view.items():
            rows = pa.concat_tables([batch.rows.filter(batch.newest) for batch in mine])
            metrics.rows.labels(name, "online").inc(self._edges.online.write(self._views[name], rows))
            now_us = self._edges.now_us()
            for batch in mine:
                told = _plain(batch.newest)
                age_s = np.maximum(now_us - _plain(batch.available_at), 0) / 1e6
                for kind in Kind:
                    metrics.freshness.observe(age_s[told & (_plain(batch.kinds) == kind)], name, kind.name.lower())

    def flush(self) -> None:
        """Wait until all is written."""
        self._writes.end()
        self._edges.journal.tell(Update(online_writes_count=self._edges.online.writes_count))


class _OfflineWriter:
    """Gathers an epoch's rows into one parquet part a view."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._waiting: dict[str, list[pa.Table]] = {}

    def write(self, batches: list[RowBatch]) -> None:
        """Keep rows until the epoch closes."""
        for batch in batches:
            self._waiting.setdefault(batch.view, []).append(batch.rows)

    def flush(self) -> None:
        """Stage the parts."""
        for view, tables in self._waiting.items():
            table = pa.concat_tables(tables)
            _stage(self._edges, view, table)
            self._edges.metrics.rows.labels(view, "offline").inc(table.num_rows)
        self._waiting = {}


class _ArchiveWriter:
    """Keeps accepted events, for recovery, backfill, explanation and recomputation."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._waiting: dict[str, list[pa.Table]] = {}
        self._epoch = 0

    def write(self, items: list[Taken]) -> None:
        """Keep events until the epoch closes."""
        for taken in items:
            self._epoch = taken.epoch
            if taken.events.num_rows:
                self._waiting.setdefault(taken.stream, []).append(taken.events)

    def flush(self) -> None:
        """Stage the parts; each is named by its epoch, since recovery goes on from one."""
        for stream, tables in self._waiting.items():
            _stage(self._edges, archive_name(stream), pa.concat_tables(tables), self._epoch)
        self._waiting = {}


def _stage(edges: Edges, name: str, table: pa.Table, epoch: int = 0) -> None:
    part = edges.offline.stage(name, table, epoch)
    if part is not None:
        edges.journal.tell(Update(parts={name: {part: table.num_rows}}))


_OUT_OF_TIME = (Reason.LATE, Reason.FUTURE)


class _RejectWriter:
    """Sends what was not accepted to the dead letters, and stops the flow when nothing else comes.

    How many came in a row outlives a crash: a flow that is started again and again must not empty a topic.
    """

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._in_a_row: dict[str, int] = {}

    def write(self, items: list[Taken]) -> None:
        """Send on the rejects of each poll; raises `RejectLimit`."""
        for taken in items:
            if taken.stream not in self._in_a_row:
                self._in_a_row[taken.stream] = self._edges.journal.rejected_in_a_row(taken.stream)
            if taken.events.num_rows > taken.canaries_count:  # a canary says nothing of what producers send
                self._in_a_row[taken.stream] = 0
            in_a_row = self._edges.metrics.rejects_in_a_row.labels(taken.stream)
            in_a_row.set(self._in_a_row[taken.stream])
            if not taken.rejects:
                continue
            self._edges.on_rejects(taken.stream, taken.rejects)
            self._edges.dead_letters.put(taken.rejects)
            wrong = [reject for reject in taken.rejects if reject.reason not in _OUT_OF_TIME]
            self._in_a_row[taken.stream] += len(wrong)
            in_a_row.set(self._in_a_row[taken.stream])
            if wrong and self._in_a_row[taken.stream] > self._edges.reject_limit:
                last, count = wrong[-1], self._in_a_row[taken.stream]
                place = f"{last.topic}/{last.partition}@{last.offset}"
                raise RejectLimit(
                    f'stream "{taken.stream}" gave {count} events in a row that cannot be used, the last at {place} as'
                    f" {last.reason}: {last.detail}. Hint: deploy the contract that its producers use, and start again"
                )

    def flush(self) -> None:
        """Wait until all have arrived: only then may the offsets move on."""
        self._edges.dead_letters.flush()
        self._edges.journal.tell(Update(rejected_in_a_row=dict(self._in_a_row)))


def _plain(column: pa.Array) -> Any:
    return column.to_numpy(zero_copy_only=False)
