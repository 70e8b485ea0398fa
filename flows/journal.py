"""The journal: what a run of the materializer goes on from, and what it writes down so that the next one can.

A commit makes one epoch durable, all of it or nothing: the ledger is replaced. Before it, every part of the flow has
made its own work durable unseen, and told of it; after it, what was staged becomes visible, and offsets go to Kafka.

The event archive is the log of all state. A snapshot of a shard, or of a partition's judge, only shortens the way:
state is a snapshot, if there is one, and the archived events of the epochs after it. So a commit writes in proportion
to what changed. A snapshot is taken when reading the archive from the last one on would cost about as much.
"""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.reread import Reread, archived
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.fold import ShardFold
from freshet.flows.write_behind import Submit, at_once
from freshet.schemas.errors import Problem, Refused, listed
from freshet.schemas.event import EVENT_TIME, NEVER_US, PARTITION, Contract, archive_name
from freshet.schemas.ledger import Ledger, PartitionMark, ShardMark, SnapshotMark, Update, merged, source_key
from freshet.schemas.plan import Pipeline, ViewPlan
from freshet.schemas.units import count_us, instant_us

_REBUILD = "rebuild all state from the event archive with `freshet run materializer --rebuild`"
_EVENTS_AT_ONCE = 100_000


class LedgerStore(Protocol):
    """Where the ledger is kept, as `edges.recovery` does."""

    def lock(self) -> None:
        """Be the only one who writes."""

    def unlock(self) -> None:
        """Let another process write."""

    def read(self) -> Ledger | None:
        """Return what was written last."""

    def write(self, ledger: Ledger) -> int:
        """Replace it; return how many bytes."""


class States(Protocol):
    """Where snapshots are kept, as `edges.recovery` does."""

    def begin(self) -> None:
        """Begin a run: other processes tell it anew."""

    def identity(self) -> str | None:
        """Return the id of the ledger that they belong to."""

    def identify(self, ledger_id: str) -> None:
        """Say which ledger they belong to."""

    def write(self, key: str, epoch: int, state: Any) -> str:
        """Make a state durable; return its file."""

    def read(self, name: str) -> Any:
        """Return a state, None if it is gone."""

    def keep(self, names: Iterable[str]) -> None:
        """Delete all but some."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete some."""


class Parts(Protocol):
    """The offline store, as `edges.parquet` does."""

    def generations_number(self) -> int:
        """Return which generations there are, by number: what is published from now on goes by it, or by a later."""

    def publish(self, parts: Mapping[str, Iterable[str]]) -> None:
        """Make staged parts visible."""

    def discard_staged(self, name: str) -> int:
        """Delete what was staged and never published."""

    def parts_after(self, name: str, epoch: int) -> list[tuple[int, str]]:
        """Return the parts made after an epoch, each with its epoch."""

    def read_parts(self, name: str, parts: Iterable[str]) -> pa.Table:
        """Return the rows of some parts."""

    def expirable(self, name: str, column: str, older_than: datetime, epoch: int) -> dict[str, int]:
        """Return the old parts made up to an epoch."""

    def delete(self, name: str, parts: Iterable[str]) -> None:
        """Delete parts."""


class Mailbox(Protocol):
    """What the other processes of a cluster tell the first one."""

    def tell(self, update: Update) -> None:
        """Add an update."""

    def read(self) -> Iterator[Update]:
        """Give what was told since the last time."""


@dataclass(frozen=True)
class Committed:
    """What a commit did."""

    ledger: Ledger
    written_bytes: int


@dataclass(frozen=True)
class Places:
    """Where a journal keeps things."""

    ledger: LedgerStore
    states: States
    parts: Parts


@dataclass
class _Since:
    """A key's last snapshot."""

    epoch: int = 0
    events_count: int = 0
    failed_count: int = 0


@dataclass
class Journal:
    """One process's journal; the first process of a cluster leads: it alone commits.

    `others` are the mailboxes of a leader's other processes, `leader` the mailbox of another process to its leader.
    `rebuild` allows snapshots to be missing. `submit` may run what it is given later, elsewhere, but in order.
    `on_commit` is told of each commit once it is durable. `on_through` is told of every epoch that is done with, once,
    after its commit if it has one: at which instant (µs), by source partition, all that Kafka had then is durable.

    Costs are counted in events read again from the archive: a snapshot costs `snapshot_events` however small it is,
    opening a part `part_events`, and each of `workers_count` may write one in each epoch.
    """

    places: Places
    pipeline: Pipeline
    contracts: Mapping[str, Contract]
    shards_count: int
    rebuild: bool = False
    leader: Mailbox | None = None
    others: Sequence[Mailbox] = ()
    submit: Submit = at_once
    snapshot_events: int = 50_000
    part_events: int = 200
    workers_count: int = 1
    on_commit: Callable[[Committed], None] = lambda _: None
    on_through: Callable[[Mapping[str, int]], None] = lambda _: None
    _told: list[Update] = field(default_factory=list)
    _offsets: dict[str, dict[int, int]] = field(default_factory=dict)
    _through: dict[str, dict[int, int]] = field(default_factory=dict)
    _since: dict[str, _Since] = field(default_factory=dict)
    _restored: dict[str, dict[Any, Any]] = field(default_factory=dict)
    _failed: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock, self._restoring = threading.RLock(), threading.Lock()
        self._ledger = self._open() if self.leader is None else None

    # Beginning

    @property
    def ledger(self) -> Ledger:
        """What is durable; of another process than the leader, what was durable when it was first asked.

        That must be once all processes are connected: until then the leader of an earlier run may still have committed.
        """
        with self._lock:
            if self._ledger is None:
                self._ledger = self.places.ledger.read()
                assert self._ledger is not None, "the leader has begun one"
                if self._ledger.shards_count != self.shards_count:
                    hint = "set the same FRESHET_SHARDS for all processes of a flow"
                    raise Refused([self._other_shards(self._ledger, hint)])
            return self._ledger

    def _open(self) -> Ledger:
        places = self.places
        places.ledger.lock()
        try:
            places.states.begin()
            ledger = places.ledger.read()
            ledger = self._begin() if ledger is None else self._resume(ledger)
            places.parts.publish(ledger.parts)
            for name, dropped in ledger.dropped.items():
                places.parts.delete(name, dropped)
            ledger = ledger.model_copy(update={"dropped": {}})
            for name in self._folders():
                places.parts.discard_staged(name)
            if ledger.shards_count != self.shards_count:  # which only a rebuild may
                ledger = self._resharded(ledger)
                places.ledger.write(ledger)
            places.states.keep(mark.file for mark in ledger.snapshots.values())
        except BaseException:  # whatever it is, the lock must not outlive it
            places.ledger.unlock()
            raise
        return ledger

    def _begin(self) -> Ledger:
        """Start a new ledger; refuses where rows stand that none speaks for."""
        for name in self._folders():
            if self.places.parts.parts_after(name, -1):
                hint = "move them away, or name another folder: which events they came from is not known"
                raise Refused([Problem("offline store", name, "has rows, but there is no ledger of them", hint=hint)])
        other = self.places.states.identity()
        if other is not None:
            hint = "bring the offline store back, or empty the recovery folder to begin anew"
            fact = "belongs to another offline store than this one, which is new"
            raise Refused([Problem("recovery folder", other, fact, hint=hint)])
        ledger = Ledger(id=uuid.uuid4().hex, shards_count=self.shards_count, views=self._digests())
        self.places.ledger.write(ledger)
        self.places.states.identify(ledger.id)
        return ledger

    def _resume(self, ledger: Ledger) -> Ledger:
        """Refuse what cannot go on from a ledger."""
        problems = []
        if ledger.shards_count != self.shards_count and not self.rebuild:
            hint = f"set FRESHET_SHARDS={ledger.shards_count} or nothing, or {_REBUILD}, once"
            problems.append(self._other_shards(ledger, hint))
        digests = self._digests()
        for view, digest in ledger.views.items():
            if digests.get(view, digest) != digest:
                hint = "run `freshet apply`, which makes its rows anew and hands them over"
                problems.append(Problem("feature view", view, "computes something else than its state", hint=hint))
        identity = self.places.states.identity()
        if identity != ledger.id and ledger.epoch and not self.rebuild:
            fact = "is lost" if identity is None else "belongs to another offline store"
            hint = f"mount the right one (FRESHET_RECOVERY), or {_REBUILD}"
            problems.append(Problem("recovery folder", f"of epoch {ledger.epoch}", fact, identity or "none", hint))
        if problems:
            raise Refused(problems)
        if identity != ledger.id:
            for plan in self.pipeline.plans:
                self._check_reach(plan, ledger)
            ledger = ledger.model_copy(update={"snapshots": {}})
        generations = self.places.parts.generations_number()
        ledger = ledger.model_copy(update={"views": {**ledger.views, **digests}, "generations": generations})
        self.places.ledger.write(ledger)
        if identity != ledger.id:
            self.places.states.identify(ledger.id)
        return ledger

    def _resharded(self, ledger: Ledger) -> Ledger:
        """Keep the state of all views in another number of shards; it is to be made anew from the archive.

        Each view's rows go equally far in all of its shards, so they do in the new ones. Refuses an archive that has
        fewer events than those shards were given.
        """
        others = {key.rpartition("/")[0] for key in ledger.shards} - {view.name for view in self.pipeline.views}
        if others:
            hint = "run `freshet apply`, after which the ledger speaks for what is declared alone"
            fact = "are kept of views that are not declared"
            raise Refused([Problem("shards", f"of {listed(sorted(others))}", fact, hint=hint)])
        marks = dict[str, ShardMark]()
        for plan in self.pipeline.plans:
            view = plan.view.name
            before = [mark for key, mark in ledger.shards.items() if key.rpartition("/")[0] == view]
            if not before:
                continue
            if len({mark.clock_us for mark in before}) > 1:
                fact, hint = "stand at different times", f"run it once with FRESHET_SHARDS={ledger.shards_count}"
                raise Refused([Problem("shards", f"of {view}", fact, hint=hint)])
            self._check_reach(plan, ledger)
            counts, reread = Counter[int](), Reread(plan, self.contracts, self.shards_count)
            for epoch, stream, events in archived(self.places.parts, plan.view.sources, [0], ledger.epoch):
                for shard, items in reread.inputs(ledger, epoch, stream, events).items():
                    counts[shard] += sum(item.inputs.num_rows for item in items if item.inputs is not None)
            if not ledger.expired.keys() & {*plan.view.sources}:
                self._check(f"{view}, all shards", counts.total(), sum(mark.events_count for mark in before))
            clock_us, created_us = before[0].clock_us, max(mark.created_us for mark in before)
            marks |= {
                f"{view}/{shard}": ShardMark(clock_us=clock_us, created_us=created_us, events_count=counts[shard])
                for shard in range(self.shards_count)
            }
        snapshots = {key: mark for key, mark in ledger.snapshots.items() if key not in ledger.shards}
        return ledger.model_copy(update={"shards_count": self.shards_count, "shards": marks, "snapshots": snapshots})

    def _other_shards(self, ledger: Ledger, hint: str) -> Problem:
        return Problem("shards", str(self.shards_count), "differ", str(ledger.shards_count), hint)

    def _digests(self) -> dict[str, str]:
        """Say what each view computes: of equal digests, equal rows."""
        return {plan.view.name: plan.digest for plan in self.pipeline.plans}

    def _folders(self) -> list[str]:
        return [*(view.name for view in self.pipeline.views), *map(archive_name, self.contracts)]

    # Going on

    def offset(self, key: str) -> int | None:
        """Return where a source partition is to be read on, None for its beginning."""
        return self.ledger.offsets.get(key)

    def rejected_in_a_row(self, stream: str) -> int:
        """Return how many events of a stream were rejected with none accepted since."""
        return self.ledger.rejected_in_a_row.get(stream, 0)

    def judge(self, stream: str, partition: int) -> PartitionJudge:
        """Return a partition's judge as it was at the end of the last commit."""
        with self._restoring:
            if stream not in self._restored:
                self._restored[stream] = self._judges(stream)
            return self._restored[stream].pop(partition, None) or PartitionJudge(self.contracts[stream].stream)

    def fold(self, view: str, shard: int) -> ShardFold:
        """Return a shard's fold as it was at the end of the last commit."""
        with self._restoring:
            if view not in self._restored:
                self._restored[view] = self._folds(self.pipeline.plan(view))
            return self._restored[view].pop(shard)  # type: ignore[no-any-return]  # a view's are folds

    def _judges(self, stream: str) -> dict[int, PartitionJudge]:
        ledger = self.ledger
        judges: dict[int, PartitionJudge] = {}
        since: dict[int, int] = {}
        marks = ledger.partitions_of(stream)
        for partition, mark in marks.items():
            key = source_key(stream, partition)
            state, since[partition] = self._snapshot(key)
            judge = judges[partition] = PartitionJudge(self.contracts[stream].stream)
            if state is not None:
                judge.seen, judge.accepted_count, judge.failed_count = state
            judge.newest_us, judge.accepted_us = mark.newest_us, mark.accepted_us
            self._since[key] = _Since(since[partition], judge.accepted_count, judge.failed_count)
        for epoch, _, events in self._archived([stream], since.values()):
            for partition, judge in judges.items():
                if epoch > since[partition]:
                    judge.absorb(events.filter(pc.equal(events.column(PARTITION), partition)))
        for partition, judge in judges.items():
            if stream not in ledger.expired or since[partition]:
                told = marks[partition].accepted_count
                self._check(f"{archive_name(stream)}, partition {partition}", judge.accepted_count, told)
            judge.accepted_count = marks[partition].accepted_count
        return judges

    def _folds(self, plan: ViewPlan) -> dict[int, ShardFold]:
        ledger, view = self.ledger, plan.view
        reread = Reread(plan, self.contracts, self.shards_count)
        folds = reread.new_folds()
        if not ledger.epoch:
            return folds
        since: dict[int, int] = {}
        for shard, fold in folds.items():
            state, since[shard] = self._snapshot(f"{view.name}/{shard}")
            if state is not None:
                fold.restore(state)
            self._since[f"{view.name}/{shard}"] = _Since(since[shard], fold.events_count)
        for epoch, stream, events in self._archived(view.sources, since.values()):
            for shard, items in reread.inputs(ledger, epoch, stream, events).items():
                if epoch > since[shard]:
                    folds[shard].absorb(items)
        partitions = {
            (stream, number): (mark.accepted_us, mark.partitions_count)
            for stream in view.sources
            for number, mark in ledger.partitions_of(stream).items()
        }
        seen_us = max((newest_us for newest_us, _ in partitions.values()), default=NEVER_US)
        for shard, fold in folds.items():
            mark = ledger.shards.get(f"{view.name}/{shard}")
            self._check_whole(plan, shard, fold, since[shard], mark)
            mark = mark or ShardMark(clock_us=seen_us, events_count=fold.events_count)
            fold.events_count = mark.events_count
            fold.resume(mark.clock_us, mark.created_us, partitions)
        return folds

    def _check_whole(self, plan: ViewPlan, shard: int, fold: ShardFold, since: int, mark: ShardMark | None) -> None:
        """Refuse a shard's state that lacks events which its rows may need."""
        if not since and any(stream in self.ledger.expired for stream in plan.view.sources):
            self._check_reach(plan, self.ledger)
        elif mark is not None:
            self._check(f"{plan.view.name}, shard {shard}", fold.events_count, mark.events_count)

    def _snapshot(self, key: str) -> tuple[Any, int]:
        """Return a key's snapshot and its epoch; None and 0 if there is none."""
        mark = self.ledger.snapshots.get(key)
        if mark is None:
            return None, 0
        state = self.places.states.read(mark.file)
        if state is None and not self.rebuild:
            hint = f"bring it back, or {_REBUILD}"
            raise Refused([Problem("state", key, "is gone from the recovery folder", mark.file, hint)])
        return (None, 0) if state is None else (state, mark.epoch)

    def _archived(self, streams: Sequence[str], since: Iterable[int]) -> Iterator[tuple[int, str, pa.Table]]:
        """Give the archived events of durable epochs."""
        return archived(self.places.parts, streams, since, self.ledger.epoch)

    def _check(self, what: str, found: int, told: int) -> None:
        """Refuse a state that has other events than the ledger says."""
        if found != told:
            hint = "bring the missing parts of the event archive back, or start anew in another folder"
            fact = f"has {told} events in the ledger, and {found} in snapshot and archive"
            raise Refused([Problem("event archive", what, fact, hint=hint)])

    def _check_reach(self, plan: ViewPlan, ledger: Ledger) -> None:
        """Refuse to rebuild a view from an archive that has dropped events which the view still needs."""
        for stream in set(plan.view.sources) & ledger.expired.keys():
            lateness_us = count_us(self.contracts[stream].stream.lateness)
            newest = [mark.accepted_us for mark in ledger.partitions_of(stream).values()]
            expired_us, lookback_us = ledger.expired[stream], plan.lookback_us
            if lookback_us is None or expired_us >= min(newest, default=NEVER_US) - lateness_us - lookback_us:
                fact = "cannot be rebuilt: its rows depend on events that the archive has dropped"
                hint = "bring the recovery folder back, or start the view anew under another name"
                raise Refused([Problem("feature view", plan.view.name, fact, archive_name(stream), hint)])

    # Telling

    def tell(self, update: Update) -> None:
        """Tell of the open epoch."""
        if self.leader is not None:
            self.leader.tell(update)
            return
        with self._lock:
            self._told.append(update)

    def judged(self, key: str, judge: PartitionJudge, partitions_count: int, epoch: int) -> None:
        """Tell how far a partition's judge is at the end of an epoch."""
        since = self._since.setdefault(key, _Since())
        snapshots = {}
        lost = judge.failed_count > since.failed_count  # ids that no archive has
        if lost or self._is_due(since, len(judge.seen), judge.accepted_count, epoch):
            self._since[key] = _Since(epoch, judge.accepted_count, judge.failed_count)
            state = (judge.seen, judge.accepted_count, judge.failed_count)
            snapshots[key] = SnapshotMark(file=self.places.states.write(key, epoch, state), epoch=epoch)
        mark = PartitionMark(
            newest_us=judge.newest_us, accepted_us=judge.accepted_us,
            accepted_count=judge.accepted_count, partitions_count=partitions_count,
        )  # fmt: skip
        self.tell(Update(partitions={key: mark}, snapshots=snapshots))

    def folded(self, key: str, fold: ShardFold, epoch: int) -> None:
        """Tell how far a shard's rows go at the end of an epoch."""
        shard, since = fold.shard, self._since.setdefault(key, _Since())
        self._restored.pop(key.rpartition("/")[0], None)  # shards that are another process's
        mark = ShardMark(clock_us=shard.clock_us, created_us=shard.created_us, events_count=fold.events_count)
        self.tell(Update(shards={key: mark}))
        if self._is_due(since, shard.events_count, fold.events_count, epoch):
            self._since[key] = _Since(epoch, fold.events_count)
            state = fold.state()
            self.submit(lambda: self._take(key, epoch, state))

    def _is_due(self, since: _Since, kept_count: int, events_count: int, epoch: int) -> bool:
        """Say whether reading the archive since the last snapshot would cost as much as a snapshot."""
        parts_count = self.workers_count * (epoch - since.epoch)
        again = events_count - since.events_count + self.part_events * parts_count
        return again >= kept_count + self.snapshot_events

    def _take(self, key: str, epoch: int, state: Any) -> None:
        try:
            name = self.places.states.write(key, epoch, state)
            self.tell(Update(snapshots={key: SnapshotMark(file=name, epoch=epoch)}))
        except Exception as error:  # noqa: BLE001  # raised again at the next commit, in the flow's own thread
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Have an error that befell another thread raised at the next commit."""
        self._failed.append(error)

    def raise_failed(self) -> None:
        """Raise what went wrong elsewhere."""
        if self._failed:
            raise self._failed[0]

    # Committing

    def commit(self, epoch: int | None = None) -> None:
        """Commit all that was told up to an epoch, of which every part of the flow has told; None for all.

        Called by the leader, as soon as an epoch is done with. One without news is left to the next commit.
        """
        self.raise_failed()
        if self.leader is not None:
            return
        with self._lock:
            if epoch is not None and epoch <= self.ledger.epoch:
                return
            self._gather()
            last = max((label for known in self._offsets.values() for label in known), default=self.ledger.epoch)
            number = last if epoch is None else epoch
            committed = self._replace(number, is_last=epoch is None)
            through = _by_key(self._through, number)
            _forget(self._through, number + 1)
        if committed is not None:
            self.on_commit(committed)
        if through:
            self.on_through(through)

    def _gather(self) -> None:
        """Take in what all processes told since the last time."""
        told = merged([*self._told, *(update for box in self.others for update in box.read())])
        for known, by_epoch in ((self._offsets, told.offsets), (self._through, told.through)):
            for label, values in by_epoch.items():
                for key, value in values.items():
                    known.setdefault(key, {})[label] = value
        self._told = [told.model_copy(update={"offsets": {}, "through": {}})]

    def _replace(self, number: int, *, is_last: bool) -> Committed | None:
        """Replace the ledger, and make visible what it speaks for; None if there are no news."""
        told, offsets = self._told[0], _by_key(self._offsets, number)
        generations = self.places.parts.generations_number()  # in the ledger first, then published by it or by a later
        is_new = generations != self.ledger.generations  # compaction waits for our word
        news = is_new or told.parts or told.snapshots or offsets.items() - self.ledger.offsets.items()
        if not news and not (is_last and told.shards):
            return None
        before, ledger = self.ledger, self.ledger.after(number, offsets, self._told, generations)
        written_bytes = self.places.ledger.write(ledger)
        self._ledger, self._told = ledger, []
        _forget(self._offsets, number)
        self.places.parts.publish(ledger.parts)
        old = {mark.file for mark in before.snapshots.values()}
        self.places.states.delete(old - {mark.file for mark in ledger.snapshots.values()})
        return Committed(ledger, written_bytes)

    def expire(self, stream: str, older_than: datetime) -> int:
        """Drop archived events of a stream that are too old and in every snapshot; return how many parts."""
        with self._lock:
            ledger = self.ledger
        keys = {*ledger.partitions, *ledger.shards}
        covered = min((ledger.snapshots[key].epoch if key in ledger.snapshots else 0 for key in keys), default=0)
        found = self.places.parts.expirable(
            archive_name(stream), EVENT_TIME, older_than, min(covered, ledger.epoch - 1)
        )
        if found:
            name = archive_name(stream)
            with self._lock:
                ledger = self.ledger
                changes = {
                    "expired": {**ledger.expired, stream: instant_us(older_than)},
                    "rows_counts": {**ledger.rows_counts, name: ledger.rows_counts[name] - sum(found.values())},
                    "dropped": {name: tuple(found)},
                }
                self._ledger = ledger.model_copy(update=changes)
                self.places.ledger.write(self._ledger)
            self.places.parts.delete(name, found)
            with self._lock:  # the next commit says so
                self._ledger = self.ledger.model_copy(update={"dropped": {}})
        return len(found)

    def close(self) -> None:
        """Let another process lead."""
        if self.leader is None:
            self.places.ledger.unlock()


def _by_key(known: Mapping[str, Mapping[int, int]], epoch: int) -> dict[str, int]:
    """Return what each partition told last at the end of an epoch: that of its last own epoch until then."""
    own = {key: max((label for label in told if label <= epoch), default=None) for key, told in known.items()}
    return {key: known[key][label] for key, label in own.items() if label is not None}


def _forget(known: Mapping[str, dict[int, int]], before: int) -> None:
    """Drop what was told of epochs before one."""
    for told in known.values():
        for label in [label for label in told if label < before]:
            del told[label]
