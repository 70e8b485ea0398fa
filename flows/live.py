"""The materializer as it runs: Kafka, the online store, the offline store, and metrics.

Also a plain Bytewax flow: `python -m bytewax.run "freshet.flows.live:flow()"` takes its settings from the environment.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import pyarrow as pa
from bytewax.dataflow import Dataflow

from freshet.flows import change, materializer
from freshet.flows import settings as settings_
from freshet.flows.committer import OffsetCommitter, Offsets
from freshet.flows.edges import bytewax, kafka, log, switching
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.collector import undisturbed
from freshet.flows.edges.dead_letters import DeadLetters
from freshet.flows.edges.metrics import Metrics, Server
from freshet.flows.edges.partitions import Partitions
from freshet.flows.edges.recovery import LedgerFile, RecoveryFolder
from freshet.flows.journal import Committed, Journal, LedgerStore, Mailbox, Parts, Places, States
from freshet.flows.lag import LagExporter
from freshet.flows.live_reader import Alignment, LiveReader, Partition
from freshet.flows.materializer import Edges, Offline, build
from freshet.flows.refill import refill
from freshet.flows.settings import SHARDS_MAX
from freshet.flows.steps.windows.frames import next_tick_us, tick_rules
from freshet.flows.workspace import OnlineFilled, Workspace
from freshet.flows.write_behind import at_once
from freshet.schemas.errors import FreshetError, Refused, StoreLost, Unavailable
from freshet.schemas.event import Contract, archive_name
from freshet.schemas.ledger import Ledger, Update, source_key
from freshet.schemas.plan import Pipeline
from freshet.schemas.progress import Progress
from freshet.schemas.rejects import Reject, dead_letter_topic
from freshet.schemas.units import count_us
from freshet.schemas.view import View

LOG = logging.getLogger("freshet")

_EXPIRY, _WATCH = timedelta(minutes=10), timedelta(seconds=1)


class OfflineParts(Offline, Parts, change.Offline, Protocol):
    """An offline store with all that a run needs of it."""

    def prepare(self, name: str, schema: pa.Schema) -> None:
        """Make a folder."""

    def bytes_counts(self, parts: Mapping[str, Iterable[str]]) -> dict[str, int]:
        """Return how large those of some parts, by folder, are that are visible."""


@dataclass(frozen=True)
class Outside:
    """All that is outside of one materializer's process: the real parts, or their twins."""

    partitions_count: Callable[[str], int]
    open_partition: Callable[[str, int, int, int | None], Partition]
    offsets: Offsets
    dead_letters: materializer.DeadLetters
    online: OnlineFilled
    offline: OfflineParts
    ledger: LedgerStore
    states: States
    applied: change.InForce
    now_us: Callable[[], int]


@dataclass(frozen=True)
class Run:
    """How one process is to run: as which one of its flow, until when, and what it may do to begin."""

    shards_count: int = 1
    epoch: timedelta = timedelta(seconds=1)
    reject_limit: int = 10_000
    patience_s: float = 60.0
    target: timedelta = timedelta(seconds=1)
    place: bytewax.Place = field(default_factory=bytewax.Place)
    until_end: bool = False
    rebuild: bool = False
    accept_gap: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process commits, for all of its flow."""
        return self.place.process == 0


@dataclass
class Live:
    """A materializer, ready to run: the dataflow, and what ends and watches it."""

    dataflow: Dataflow
    edges: Edges
    journal: Journal
    outside: Outside
    settings: Run
    readers: list[LiveReader]
    snapshots: ThreadPoolExecutor
    writes: ThreadPoolExecutor
    partitions_counts: Mapping[str, int]
    """By topic, of how many partitions the flow was made."""
    committer: OffsetCommitter | None = None

    @property
    def stop(self) -> bytewax.Stop:
        """What ends it."""
        return self.edges.stop

    def trouble(self) -> str:
        """Return what is being waited out; nothing if all is well."""
        unwell = [reader.partition.trouble for reader in self.readers if not reader.partition.well]
        return "; ".join(filter(None, [self.outside.online.trouble, *unwell[:1]]))

    def grown(self) -> dict[str, int]:
        """Return the topics that have more partitions by now, with how many; nothing of what cannot be asked now."""
        found: dict[str, int] = {}
        for topic, before in self.partitions_counts.items():
            with contextlib.suppress(
                Unavailable, Refused
            ):  # an outage is the readers' to tell, as is a topic that is gone
                count = self.outside.partitions_count(topic)
                found |= {topic: count} if count > before else {}
        return found

    def health(self) -> str:
        """Return why this process should not be counted on; nothing if it may be."""
        return "stopping" if self.stop else self.trouble()

    def unready(self) -> str:
        """Return why this process is not counted on yet: it must have kept up with the freshness target, once."""
        behind = [reader.key for reader in self.readers if not reader.caught_up]
        if self.settings.leads and not self.readers:
            return "no partition is read yet"
        return self.health() or (f"not within the freshness target yet: {', '.join(behind)}" if behind else "")

    def run(self) -> None:
        """Run until stopped, or until the end that was asked for. Raises what went wrong first."""
        try:
            with self.stop.on_signals():
                bytewax.run(self.dataflow, self.edges.failure, epoch=self.settings.epoch, place=self.settings.place)
            self.finish()
        finally:
            self.close()

    def finish(self) -> None:
        """Commit what closed last: Bytewax has ended, and asks no source for more."""
        self.snapshots.shutdown()
        self.check_online()
        self.journal.commit()
        if self.committer is not None:
            self.committer.close()
        self.journal.raise_failed()

    def check_online(self) -> None:
        """Raise `StoreLost` if the online store has lost what was written to it."""
        self.outside.online.expect(self.outside.online.writes_count)

    def close(self) -> None:
        """Let go of everything."""
        self.edges.stop.end()
        if self.edges.failure.first is not None:
            LOG.info("waiting for the rows that are on their way to the online store")
        self.writes.shutdown()
        self.snapshots.shutdown()
        self.journal.close()


def prepare(offline: OfflineParts, pipeline: Pipeline, contracts: Mapping[str, Contract]) -> None:
    """Make the folders of all views and archives; raises `Refused` if they cannot be written."""
    for view in pipeline.views:
        offline.prepare(view.name, view.row_schema)
    for stream, contract in contracts.items():
        offline.prepare(archive_name(stream), contract.schema)


def assemble(
    pipeline: Pipeline,
    contracts: Mapping[str, Contract],
    outside: Outside,
    settings: Run,
    metrics: Metrics,
    *,
    stop: bytewax.Stop | None = None,
    leader: Mailbox | None = None,
    others: Sequence[Mailbox] = (),
    beside: bool = True,
    snapshot_events: int = 50_000,
) -> Live:
    """Make a materializer of what is outside, to go on where the last one ended.

    An online store that lost rows is filled again first.

    With `beside` snapshots, online writes and commits to Kafka are made in threads of their own, and sources that are
    idle are left alone for a moment; without, nothing depends on wall time. Raises `Refused` and `Unavailable`.
    """
    counts = {name: outside.partitions_count(made.stream.topic) for name, made in contracts.items()}
    parts = {source_key(name, part): (name, part) for name, count in counts.items() for part in range(count)}
    places = {key: (contracts[name].stream.topic, part) for key, (name, part) in parts.items()}
    for contract in contracts.values():  # else the first reject would end it
        outside.partitions_count(dead_letter_topic(contract.stream.topic))
    if settings.leads:
        _complete(outside, pipeline)
        prepare(outside.offline, pipeline, contracts)
    snapshots, writes = ThreadPoolExecutor(1, "snapshots"), ThreadPoolExecutor(settings.place.workers_count, "online")
    journal = Journal(
        Places(outside.ledger, outside.states, outside.offline),
        pipeline,
        contracts,
        settings.shards_count,
        rebuild=settings.rebuild,
        leader=leader,
        others=others,
        snapshot_events=snapshot_events,
        workers_count=settings.place.workers_in_all,
        submit=snapshots.submit if beside else at_once,
    )
    try:
        if settings.leads:
            _fill_if_lost(outside, pipeline, journal)
        committer = (
            OffsetCommitter(outside.offsets, places, settings.patience_s, journal.fail)
            if beside and settings.leads
            else None
        )
        ends = (
            {name: outside.offsets.end_offsets(contracts[name].stream.topic, count) for name, count in counts.items()}
            if settings.until_end or settings.leads
            else {}
        )
        if settings.leads:
            journal.on_commit = _on_commit(outside, pipeline.views, places, committer, metrics)
            held = {source_key(name, part): end for name, own in ends.items() for part, end in own.items()}
            journal.on_through = _on_through(outside, settings.epoch, journal, held)
            journal.on_commit(Committed(journal.ledger, 0))  # a crash may have kept Kafka from hearing of it
    except BaseException:  # whatever it is, the lock must not outlive it
        journal.close()
        raise
    alignment, readers = Alignment(), list[LiveReader]()

    def open_reader(key: str) -> LiveReader:
        stream, part = parts[key]
        start = journal.offset(key)
        partition = outside.open_partition(contracts[stream].stream.topic, part, counts[stream], start)
        if start is not None and partition.position != start:
            LOG.warning("%s: a gap is accepted: offsets from %d up to %d are lost", key, start, partition.position)
        until = ends[stream][part] if settings.until_end else None
        epoch = journal.ledger.epoch + 1
        on_durable = metrics.epoch.set_to_current_time
        limit = settings.target + settings.epoch  # rows are online before their epoch ends
        rules = {rule for plan in pipeline.of_source(stream) for rule in tick_rules(plan)}
        opened = LiveReader(
            key, partition, journal, alignment, on_durable, until, outside.now_us, limit, partial(next_tick_us, rules),
            epoch=epoch,
        )  # fmt: skip
        readers.append(opened)
        return opened

    metrics.rejects_limit.set(settings.reject_limit)
    edges = Edges(
        keys=list(parts),
        open_reader=open_reader,
        online=outside.online,
        offline=outside.offline,
        dead_letters=outside.dead_letters,
        journal=journal,
        now_us=outside.now_us,
        metrics=metrics,
        on_rejects=_log_rejects,
        reject_limit=settings.reject_limit,
        idle=timedelta(milliseconds=2 if beside else 0),
        submit=writes.submit if beside else at_once,
        place=settings.place,
        stop=bytewax.Stop() if stop is None else stop,
    )
    dataflow = build(pipeline, contracts, edges, settings.shards_count)
    topics = {contracts[name].stream.topic: count for name, count in counts.items()}
    return Live(dataflow, edges, journal, outside, settings, readers, snapshots, writes, topics, committer)


def _complete(outside: Outside, pipeline: Pipeline) -> None:
    """Complete a change of the declaration that was decided, and whose maker ended before all knew of it."""
    ledger = outside.ledger.read()
    if ledger is None or ledger.pending is None:
        return
    outside.ledger.lock()
    try:
        places = change.Places(
            outside.ledger, outside.states, outside.offline, lambda: outside.online, outside.applied,
            lambda _: pipeline, outside.now_us,
        )  # fmt: skip
        LOG.warning("completing a change of the declaration that its `freshet apply` did not complete")
        change.complete(places, ledger)
    finally:
        outside.ledger.unlock()


def _fill_if_lost(outside: Outside, pipeline: Pipeline, journal: Journal) -> None:
    """Fill an online store that came back empty or old."""
    try:
        outside.online.expect(journal.ledger.online_writes_count)
    except StoreLost as error:
        LOG.warning("%s", error)
        counts = refill(outside.online, outside.offline, pipeline.views, journal.ledger, outside.now_us())
        LOG.warning("filled again from the newest offline rows: %s", counts)
        outside.online.catch_up(journal.ledger.online_writes_count)
        journal.tell(Update(online_writes_count=outside.online.writes_count))


def _on_commit(
    outside: Outside,
    views: Sequence[View],
    places: Mapping[str, tuple[str, int]],
    committer: OffsetCommitter | None,
    metrics: Metrics,
) -> Callable[[Committed], None]:
    def on_commit(committed: Committed) -> None:
        metrics.ledger_bytes.set(committed.written_bytes)
        if committed.written_bytes:  # else it is the last run's commit, told once more
            parts = {view.name: committed.ledger.parts.get(view.name, {}) for view in views}
            for view_name, count in outside.offline.bytes_counts(parts).items():
                metrics.offline_bytes.labels(view_name).inc(count)
        offsets = {key: offset for key, offset in committed.ledger.offsets.items() if key in places}
        if committer is not None:
            committer.durable(offsets)
        elif offsets:
            outside.offsets.commit({places[key]: offset for key, offset in offsets.items()})

    return on_commit


def _on_through(
    outside: Outside, epoch: timedelta, journal: Journal, held: Mapping[str, int]
) -> Callable[[Mapping[str, int]], None]:
    """Write progress, but not before all that Kafka held at the start is durable.

    A run that was killed may have left rows online that are newer than all that this one has read yet, and lack events
    that it has: of those it cannot say that they are online.
    """
    left = dict(held)

    def on_through(through_us: Mapping[str, int]) -> None:
        offsets = journal.ledger.offsets
        for key in [key for key, end in left.items() if offsets.get(key, 0) >= end]:
            del left[key]
        if left:
            return
        now_us, every_us = outside.now_us(), count_us(epoch)
        outside.online.write_progress({key: Progress(us, now_us, every_us) for key, us in through_us.items()})

    return on_through


def connect(workspace: Workspace, run: Run, states: States) -> Outside:
    """Reach all real parts; raises `Refused` and `Unavailable`."""
    cluster = workspace.kafka

    offline = workspace.offline()
    return Outside(
        partitions_count=kafka.PartitionCounts(cluster).of,
        open_partition=partial(Partitions(cluster).open, accept_gap=run.accept_gap),
        offsets=kafka.GroupOffsets(cluster, workspace.group),
        dead_letters=DeadLetters(cluster, workspace.group),
        online=workspace.online(run.patience_s),
        offline=offline,
        ledger=LedgerFile(offline.root),
        states=states,
        applied=AppliedFile(offline.root),
        now_us=_now_us,
    )


@dataclass
class Materializer:
    """A materializer of a project, with what watches it: metrics, health, the archive's retention."""

    live: Live
    metrics: Metrics
    workspace: Workspace
    lag: LagExporter | None = None
    begins_again: bool = False
    """Whether it ended to begin again: `freshet apply` needs the ledger, or topics have more partitions."""
    can_begin_again: bool = False
    """Whether whoever runs it has it begin again; Bytewax's own command does not."""

    _told_of: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Run until stopped, or until the end that was asked for. Raises what went wrong first."""
        self.can_begin_again = True
        server = self.serve()
        try:
            with undisturbed(), switching.soon():
                self.live.run()
        finally:
            server.close()
            if self.lag is not None:
                self.lag.end()
        if self.live.settings.leads:
            LOG.info("stopped; every row taken is in both stores")

    def serve(self) -> Server:
        """Answer Prometheus and health checks, and watch, beside the flow."""
        settings, place = self.workspace.settings, self.live.settings.place
        if self.live.settings.leads:
            LOG.info("%s", self.workspace.status())
        address = settings.metrics_address or settings_.MATERIALIZER_ADDRESS
        server = Server(
            settings_.place_of(address, place.process), self.metrics.registry, self.live.health, self.live.unready
        )
        LOG.info("materializing %s; metrics at http://%s/metrics", self.workspace.pipeline.project, server.address)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        if self.lag is not None:
            self.lag.start()
        return server

    def _watch(self) -> None:
        """Log what is waited out, end what must begin again or lost its rows, and drop events that are too old."""
        told, expire_at = "", 0.0
        while not self.live.stop.wait(_WATCH):
            trouble = self.live.trouble()
            if trouble != told:
                LOG.warning("waiting: %s", trouble) if trouble else LOG.info("all is well again")
                told = trouble
            try:
                self.live.check_online()
                if self.live.settings.leads and AppliedFile(self.workspace.offline_root).is_ledger_asked_for():
                    LOG.info("letting go of the ledger: another declaration is being applied")
                    self._begin_again()
                if self._follows_topics and not trouble:
                    self._follow_topics()
                if self.live.settings.leads and time.monotonic() >= expire_at:
                    expire_at = time.monotonic() + _EXPIRY.total_seconds()
                    self._expire()
            except FreshetError as error:
                self.live.journal.fail(error)
                return

    @property
    def _follows_topics(self) -> bool:
        return self.live.settings.leads and not self.live.settings.until_end

    def _follow_topics(self) -> None:
        """Begin again with all partitions of topics that have grown; where nobody does that, say so."""
        for topic, count in self.live.grown().items():
            if self.can_begin_again:
                LOG.info("beginning again: topic %s has %d partitions by now", topic, count)
                self._begin_again()
            elif topic not in self._told_of:
                self._told_of.add(topic)
                LOG.error(
                    "topic %s has %d partitions by now, of which some are not read. Hint: start it again", topic, count
                )

    def _begin_again(self) -> None:
        self.begins_again = True
        self.live.stop.request()

    def _expire(self) -> None:
        oldest = datetime.now(UTC) - self.workspace.settings.archive_retention
        for stream in self.workspace.contracts:
            self.live.journal.expire(stream, oldest)


def open_live(
    workspace: Workspace,
    run: Run | None = None,
    *,
    reach: Callable[[Workspace, Run, States], Outside] = connect,
) -> Materializer:
    """Connect a project's materializer to what `reach` gives. Raises `Refused` and `Unavailable`."""
    settings = workspace.settings
    run = replace(
        run or Run(),
        epoch=settings.epoch,
        reject_limit=settings.reject_limit,
        patience_s=settings.patience.total_seconds(),
        target=workspace.source.declaration.servingRequirements.freshnessTarget.bound,
    )
    contracts, pipeline = workspace.contracts, workspace.pipeline
    metrics = Metrics(list(contracts), [view.name for view in pipeline.views])
    recovery = RecoveryFolder(workspace.recovery_root)
    outside = reach(workspace, run, recovery)
    run = replace(run, shards_count=_shards_count(settings.shards, outside.ledger.read(), run))
    others = [recovery.told(process) for process in range(1, len(run.place.addresses))] if run.leads else []
    leader = None if run.leads else recovery.told(run.place.process)
    stop = bytewax.Stop(recovery.stop_file if run.place.addresses else None)
    live = assemble(pipeline, contracts, outside, run, metrics, stop=stop, leader=leader, others=others)
    lag = workspace.lag_exporter("materializer") if run.leads else None
    if lag is not None:
        metrics.registry.register(lag)
    return Materializer(live, metrics, workspace, lag)


def _shards_count(asked_count: int | None, ledger: Ledger | None, run: Run) -> int:
    """Return in how many shards state is kept: what is asked for, or as it is, or at first one for each worker.

    More would cost as much as so many views do; with fewer, some workers fold nothing of a view.
    """
    workers_count = run.place.workers_in_all
    if asked_count is not None:
        return asked_count
    if ledger is None:
        return min(workers_count, SHARDS_MAX)
    if ledger.shards_count < workers_count and run.leads:
        LOG.warning(
            "only %d of %d workers fold the windows of a view, since its state has no more shards. Hint: set"
            " FRESHET_SHARDS=%d, and start once with --rebuild",
            ledger.shards_count, workers_count, min(workers_count, SHARDS_MAX),
        )  # fmt: skip
    return ledger.shards_count


def _now_us() -> int:
    return time.time_ns() // 1000


def _log_rejects(stream: str, rejects: Sequence[Reject]) -> None:
    """Log one line a reason, with the first event it befell: garbage must not flood the log."""
    for reason, count in Counter(reject.reason for reject in rejects).items():
        first = next(reject for reject in rejects if reject.reason is reason)
        place = f"{first.topic}/{first.partition}@{first.offset}"
        told = {"stream": stream, "reason": reason.value, "rejects_count": count}
        LOG.warning(
            "rejected %d of %s as %s, the first at %s: %s", count, stream, reason, place, first.detail, extra=told
        )


def flow() -> Dataflow:
    """Return the dataflow that the environment describes, for Bytewax's own command, alone or one of a cluster."""
    run = Run(place=bytewax.place(sys.argv[1:], os.environ))
    settings = settings_.read(os.environ)
    log.begin(settings.log, "materializer")
    held = contextlib.ExitStack()
    held.enter_context(log.strays())
    atexit.register(held.close)
    opened = open_live(Workspace.applied(settings), run)
    live = opened.live
    with contextlib.suppress(ValueError):  # signals belong to the main thread; Bytewax's command imports in it
        live.stop.listen()
    opened.serve()
    atexit.register(_finish, live)
    return live.dataflow


def _finish(live: Live) -> None:
    """Commit what closed last, once Bytewax's command is done; not if it ended by an exception, here or elsewhere."""
    try:
        if not hasattr(sys, "last_value"):
            live.finish()
    finally:
        live.close()
