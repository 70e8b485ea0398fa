"""The materializer: Kafka events in, feature rows out, to the online store, the offline store and the event archive.

::

    poll ─ take ─┬─ route ─ fold ─ finish ─┬─ online
                 ├─ archive                └─ offline
                 └─ rejects

`build` joins steps and edges; nothing is decided here. Step names are stored data: a recovery store knows them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import bytewax.operators as op
import numpy as np
import pyarrow as pa
from bytewax.dataflow import Dataflow

from freshet.flows.edges.bytewax import BatchLogic, KeyedSink, PollSource, Reader, Stop
from freshet.flows.edges.metrics import Metrics
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.intake import Intake, Taken
from freshet.flows.steps.shards import split
from freshet.flows.steps.sql import Finisher
from freshet.flows.steps.windows.shard import WindowedRows
from freshet.schemas.errors import RejectLimit
from freshet.schemas.event import OFFSET, PARTITION, Contract
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reason, Reject
from freshet.schemas.units import count_us
from freshet.schemas.view import Kind, RowBatch, View


class Online(Protocol):
    """What rows are served from."""

    def write(self, view: View, rows: pa.Table) -> int:
        """Write rows; return how many replaced what was there."""


class Offline(Protocol):
    """What keeps rows, or events, for ever."""

    def append(self, name: str, table: pa.Table) -> object:
        """Make a table's rows durable and visible, all at once."""


@dataclass(frozen=True)
class Edges:
    """Everything outside that the flow touches. `now_us` is the clock, µs since the epoch.

    `on_rejects` is told of every event that was not accepted, a poll's at a time. After `reject_limit` of them with no
    event accepted between, late and future ones apart, the flow stops: that is a bad deploy, not bad data. Rows of
    offsets that earlier runs served, up to `served_before` of (stream, partition), tell nothing of freshness.
    """

    keys: Sequence[str]
    open_reader: Callable[[str, int | None], Reader[Poll]]
    online: Online
    offline: Offline
    now_us: Callable[[], int]
    metrics: Metrics
    on_rejects: Callable[[str, Sequence[Reject]], None]
    reject_limit: int = 10_000
    served_before: Mapping[tuple[str, int], int] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)


ARCHIVE = "_events/"


def archive_name(stream: str) -> str:
    """Return where, below the offline store, a stream's accepted events are kept."""
    return f"{ARCHIVE}{stream}"


def source_key(stream: str, partition: int) -> str:
    """Name a source partition, such that names sort like numbers."""
    return f"{stream}/{partition:06d}"


def build(pipeline: Pipeline, contracts: Mapping[str, Contract], edges: Edges, shards_count: int) -> Dataflow:
    """Return the dataflow that materializes a pipeline."""
    stages = _Stages(pipeline, contracts, edges, shards_count)
    flow = Dataflow("freshet_materializer")
    polls = op.input("poll", flow, PollSource(edges.keys, edges.open_reader, edges.stop))
    taken = op.stateful_batch("take", polls, stages.take)
    routed = op.flat_map_batch("route", taken, stages.route)
    folded = op.stateful_batch("fold", routed, stages.fold)
    rows = op.flat_map_batch("finish", folded, stages.finish)
    op.output("online", rows, KeyedSink(shards_count, _shard_of, lambda _: _OnlineWriter(pipeline, edges)))
    op.output("offline", rows, KeyedSink(shards_count, _shard_of, lambda _: _OfflineWriter(edges)))
    op.output("archive", taken, KeyedSink(1, lambda _: 0, lambda _: _ArchiveWriter(edges)))
    op.output("rejects", taken, KeyedSink(1, lambda _: 0, lambda _: _RejectWriter(edges)))
    return flow


def _shard_of(key: str) -> int:
    return int(key.rpartition("/")[2])


class _Stages:
    """The steps of the flow, for one worker: a DuckDB serves one thread.

    Bytewax makes one logic a key, and does not say which: the first item does.
    """

    def __init__(self, pipeline: Pipeline, contracts: Mapping[str, Contract], edges: Edges, shards_count: int) -> None:
        self._pipeline, self._contracts, self._edges, self._shards_count = pipeline, contracts, edges, shards_count
        self._intakes = {made.stream.topic: Intake(made, pipeline.of_source(name)) for name, made in contracts.items()}
        self._finishers = {plan.view.name: Finisher(plan) for plan in pipeline.plans}
        self._shards: dict[str, list[ShardFold]] = {name: [] for name in self._finishers}

    def take(self, _resume: None) -> BatchLogic[Poll, Taken]:
        """Decode and judge; the state is one partition's clock."""
        judges: dict[tuple[str, int], PartitionJudge] = {}  # a file has the events of several partitions

        def step(polls: list[Poll]) -> list[Taken]:
            taken: list[Taken] = []
            for poll in polls:
                intake = self._intakes[poll.topic]
                judge = judges.setdefault((poll.topic, poll.partition), PartitionJudge(intake.contract.stream))
                taken.append(intake.take(judge, poll))
                self._count(taken[-1])
            return taken

        return BatchLogic(step)

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
                    yield f"{name}/{shard}", ShardInput(name, taken.stream, *clock, parts.get(shard))

    def fold(self, _resume: None) -> BatchLogic[ShardInput, WindowedRows]:
        """Fold windows; the state is one shard's events."""
        folds: list[ShardFold] = []

        def step(items: list[ShardInput]) -> list[WindowedRows]:
            plan = self._pipeline.plan(items[0].view)
            if not folds:
                streams = {name: self._contracts[name].stream for name in plan.view.sources}
                lateness = {name: count_us(made.lateness) for name, made in streams.items()}
                folds.append(ShardFold(plan, lateness))
                self._shards[plan.view.name] += folds
            rows = list(folds[0].fold(items, self._edges.now_us()))
            shards = [fold.shard for fold in self._shards[plan.view.name]]
            metrics = self._edges.metrics
            metrics.entities.labels(plan.view.name).set(sum(shard.entities_count for shard in shards))
            metrics.clock.labels(plan.view.name).set(min(shard.clock_us for shard in shards) / 1e6)
            return rows

        return BatchLogic(step)

    def finish(self, items: list[tuple[str, WindowedRows]]) -> Iterator[tuple[str, RowBatch]]:
        """Compute the features of all rows of a view that wait, whatever their shards, at once."""
        by_view: dict[str, list[tuple[str, WindowedRows]]] = {}
        for key, rows in items:
            by_view.setdefault(key.rpartition("/")[0], []).append((key, rows))
        for view, parts in by_view.items():
            table = pa.concat_tables([rows.table for _, rows in parts], promote_options="permissive")
            finished = self._finishers[view].finish(table)
            start = 0
            for key, rows in parts:
                own = finished.slice(start, rows.table.num_rows)
                start += rows.table.num_rows
                yield key, RowBatch(view, _shard_of(key), own, rows.available_at, rows.kinds, rows.newest)


class _OnlineWriter:
    """Writes each batch as it comes: rows are readable before the epoch closes."""

    def __init__(self, pipeline: Pipeline, edges: Edges) -> None:
        self._views = {view.name: view for view in pipeline.views}
        self._edges = edges

    def write(self, batches: list[RowBatch]) -> None:
        """Write the newest row of each entity of each batch, and measure how fresh it is now that it can be read."""
        by_view: dict[str, list[RowBatch]] = {}
        for batch in batches:
            by_view.setdefault(batch.view, []).append(batch)
        metrics = self._edges.metrics
        for name, mine in by_view.items():
            rows = pa.concat_tables([batch.rows.filter(batch.newest) for batch in mine])
            metrics.rows.labels(name, "online").inc(self._edges.online.write(self._views[name], rows))
            now_us = self._edges.now_us()
            for batch in mine:
                told = _plain(batch.newest) & ~self._served(batch)
                age_s = np.maximum(now_us - _plain(batch.available_at), 0) / 1e6
                for kind in Kind:
                    metrics.freshness.observe(age_s[told & (_plain(batch.kinds) == kind)], name, kind.name.lower())

    def _served(self, batch: RowBatch) -> Any:
        """Say which rows an earlier run has served."""
        sources, before = self._views[batch.view].sources, self._edges.served_before
        if len(sources) > 1:  # a row does not say which of them its partition is of
            return np.zeros(batch.rows.num_rows, np.bool_)
        limits = {partition: offset for (stream, partition), offset in before.items() if stream == sources[0]}
        known = np.full(max(limits, default=0) + 1, 0)
        known[list(limits)] = list(limits.values())
        partitions = np.minimum(batch.rows.column(PARTITION).to_numpy(), len(known) - 1)
        return batch.rows.column(OFFSET).to_numpy() < known[partitions]

    def flush(self) -> None:
        """All is written already."""


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
        """Write the parts."""
        for view, tables in self._waiting.items():
            table = pa.concat_tables(tables)
            self._edges.offline.append(view, table)
            self._edges.metrics.rows.labels(view, "offline").inc(table.num_rows)
        self._waiting = {}


class _ArchiveWriter:
    """Keeps accepted events, for backfill, explanation and recomputation."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._waiting: dict[str, list[pa.Table]] = {}

    def write(self, items: list[Taken]) -> None:
        """Keep events until the epoch closes."""
        for taken in items:
            if taken.events.num_rows:
                self._waiting.setdefault(taken.stream, []).append(taken.events)

    def flush(self) -> None:
        """Write the parts."""
        for stream, tables in self._waiting.items():
            self._edges.offline.append(archive_name(stream), pa.concat_tables(tables))
        self._waiting = {}


_OUT_OF_TIME = (Reason.LATE, Reason.FUTURE)


class _RejectWriter:
    """Tells of what was not accepted, and stops the flow when nothing else comes."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._in_a_row: dict[str, int] = {}

    def write(self, items: list[Taken]) -> None:
        """Tell of the rejects of each poll; raises `RejectLimit`."""
        for taken in items:
            if not taken.rejects:
                continue
            self._edges.on_rejects(taken.stream, taken.rejects)
            wrong = [reject for reject in taken.rejects if reject.reason not in _OUT_OF_TIME]
            before = 0 if taken.events.num_rows else self._in_a_row.get(taken.stream, 0)
            self._in_a_row[taken.stream] = before + len(wrong)
            if self._in_a_row[taken.stream] > self._edges.reject_limit:
                last, count = wrong[-1], self._in_a_row[taken.stream]
                place = f"{last.topic}/{last.partition}@{last.offset}"
                raise RejectLimit(
                    f'stream "{taken.stream}" gave {count} events in a row that cannot be used, the last at {place} as'
                    f" {last.reason}: {last.detail}. Hint: deploy the contract that its producers use, and start again"
                )

    def flush(self) -> None:
        """All is told already."""


def _plain(column: pa.Array) -> Any:
    return column.to_numpy(zero_copy_only=False)
