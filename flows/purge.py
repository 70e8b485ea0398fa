"""Purging an entity: its rows in both stores, its events in the archive, its part of the state, the log of what it got.

No flow runs meanwhile: the purge holds its lock, and events wait in Kafka. First it looks everywhere, and removes what
is online and what was logged, which can be done again and again. Then it prepares, unseen, what is to stand in place of
the rest: next generations of the folders (schemas/generations.py), and snapshots of all state, as of the last commit,
without the entity, so that nobody needs its archived events. That all is ready it notes as one file, `Decided`. From
then on it only puts in place what that says; the same purge, run again, does so to the end, and no flow begins before.

Where other views are made of the same events, by other entities, their rows and their state stay as they are. But they
cannot be made anew from an archive that lacks these events: the ledger says so as it does of events that were dropped
for their age (`Ledger.expired`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.journal import Journal, LedgerStore, Parts, Places, States
from freshet.flows.steps.intake import Intake
from freshet.flows.steps.purge import Key, is_of, letters_of, of_key, shard_without
from freshet.flows.steps.shards import split
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import EVENT_TIME, PARTITION, Contract, archive_name
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.schemas.generations import Generations
from freshet.schemas.ledger import Ledger, SnapshotMark, source_key
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.purge import Decided, Kept, LetterPlace, Receipt, Removed, digest_of
from freshet.schemas.rejects import dead_letter_topic
from freshet.schemas.units import instant_at, instant_us
from freshet.schemas.view import View


class Store(Protocol):
    """The folders' generations, as `edges.compaction` does."""

    def lock(self, *, purges: bool = False) -> None:
        """Be the only one who makes generations."""

    def unlock(self) -> None:
        """Let another process do it."""

    def generations(self) -> Generations:
        """Return which generations there are."""

    def write(self, generations: Generations) -> None:
        """Replace what says which there are."""

    def found(self, name: str) -> set[int]:
        """Return of which generations there is a folder."""

    def rewrite(
        self, name: str, source: int, target: int, schema: pa.Schema, is_of: Callable[[pa.Table], pa.Array]
    ) -> int:
        """Make a generation of another without some rows; return how many."""

    def remove(self, name: str, generation: int) -> None:
        """Remove a generation's folder."""

    def decided(self) -> Decided | None:
        """Return what is decided and not yet done."""

    def decide(self, decided: Decided | None) -> None:
        """Note what is decided, or that it is done."""


class Offline(Parts, Protocol):
    """What keeps rows and events."""

    def matching(
        self, name: str, schema: pa.Schema, values: Mapping[str, Any], since: datetime | None = None
    ) -> pa.Table:
        """Return the rows whose columns have these values, in every version."""


class Served(Protocol):
    """What was logged of what was served."""

    def forget(self, view: View, is_of: Callable[[pa.Table], pa.Array]) -> int:
        """Remove some rows; return how many."""


class Online(Protocol):
    """What rows are served from."""

    def delete(self, view: View, entities: Sequence[tuple[Any, ...]]) -> int:
        """Delete the view's rows of some entities; return how many there were."""


class Log(Protocol):
    """Kafka, as far as it is read."""

    def bounds(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """Return each partition's first offset and the one after its last."""

    def span(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Poll]:
        """Give what a partition still has from an offset up to another, or a bit more."""


@dataclass(frozen=True)
class Outside:
    """All that is outside. `point` has Feast's registry say where views are; `retention_s` how long a topic is kept.

    `keep` keeps the receipt: a purge that died before is not done.
    """

    store: Store
    offline: Offline
    ledger: LedgerStore
    states: States
    online: Online
    served: Served
    log: Log
    retention_s: Callable[[str], float | None]
    point: Callable[[Sequence[View]], set[str]]
    keep: Callable[[Receipt], None]
    now: Callable[[], datetime]


@dataclass
class Purger:
    """Purges entities of a project."""

    pipeline: Pipeline
    contracts: Mapping[str, Contract]
    outside: Outside

    def run(self, key: Key, *, hashed: bool = False) -> Receipt:
        """Remove all that is kept of a key's entities, and say what remains; raises `Refused` and `Unavailable`.

        Refused are a key of no view, one of which nothing is found, and a flow that runs.
        """
        views, digest, outside = self._views(key), digest_of(self.pipeline.project, key), self.outside
        outside.store.lock(purges=True)
        try:
            decided = outside.store.decided()
            if decided is not None and decided.digest != digest:
                fact, hint = "of another entity is not done", "run that one again first"
                raise Refused([Problem("purge", decided.digest[:12], fact, hint=hint)])
            letters = self._letters(key)
            kept = [*self._kept()]
            removed = self._finish(decided, views) if decided else self._purge(key, views, digest, letters)
            notes = (*self._notes(key), "a process that serves may hold what it reads for an instant still")
            spelled = digest if hashed else ",".join(f"{name}={value}" for name, value in key.items())
            told = Receipt(
                key=spelled, at=_iso(outside.now()), removed=removed, dead_letters=tuple(letters),
                kept=tuple(kept), notes=notes,
            )  # fmt: skip
            outside.keep(told)
            outside.store.decide(None)
            return told
        finally:
            outside.store.unlock()

    # Looking

    def _views(self, key: Key) -> list[View]:
        views = [view for view in self.pipeline.views if is_of(view, key)]
        if not key or not views:
            names = sorted({name for view in self.pipeline.views for name in view.entity_names})
            got, hint = ", ".join(key) or "nothing", f"write NAME=VALUE, of {', '.join(names)}"
            raise Refused([Problem("argument", "KEY", "names no join key of a feature view", got, hint)])
        hidden = [view.name for view in views for one in view.sources if not self._tells(one, key)]
        if hidden:
            fact, hint = "has entities that SQL computes: archived events do not tell them", "purge by another key"
            raise Refused([Problem("feature view", name, fact, hint=hint) for name in dict.fromkeys(hidden)])
        return views

    def _tells(self, stream: str, key: Key) -> bool:
        return {*self.contracts[stream].schema.names} >= key.keys()

    @property
    def _streams(self) -> list[str]:
        return sorted(self.contracts)

    def _letters(self, key: Key) -> list[LetterPlace]:
        found, log = list[LetterPlace](), self.outside.log
        for stream in self._streams:
            contract = self.contracts[stream]
            topic, own = dead_letter_topic(contract.stream.topic), contract.stream.key
            message_key = str(key[own]).encode() if [*key] == [own] else None
            retention_s = self.outside.retention_s(topic)
            for partition, (low, end) in log.bounds(topic).items():
                polls = log.span(topic, partition, low, end) if end > low else ()
                for _, offset, at_ms in letters_of(contract.stream.topic, polls, key, message_key):
                    at = instant_at(at_ms * 1000)
                    found.append(
                        LetterPlace(topic=topic, partition=partition, offset=offset, until=_until(at, retention_s))
                    )
        return found

    def _kept(self) -> Iterator[Kept]:
        """Give the topics from which nothing can be deleted."""
        topics = [self.contracts[stream].stream.topic for stream in self._streams]
        for topic in [*topics, *map(dead_letter_topic, topics), FINDINGS_TOPIC]:
            yield Kept(topic=topic, until=_until(self.outside.now(), self.outside.retention_s(topic)))

    def _notes(self, key: Key) -> Iterator[str]:
        others = [stream for stream in self._streams if self._tells(stream, key) and self._has_others(stream, key)]
        for stream in others:
            yield (
                f"rows of other entities that events of {stream} were part of stay as they were; they cannot be made"
                " anew from the archive (--rebuild), nor recomputed by the validator, as far back as that"
            )

    def _has_others(self, stream: str, key: Key) -> bool:
        return any(not is_of(plan.view, key) for plan in self.pipeline.of_source(stream))

    # Doing

    def _purge(self, key: Key, views: Sequence[View], digest: str, letters: Sequence[LetterPlace]) -> Removed:
        outside = self.outside
        before = outside.ledger.read()
        if before is None:
            hint = "there is nothing to purge before `freshet run materializer` has run"
            raise Refused([Problem("offline store", self.pipeline.project, "has nothing that is durable", hint=hint)])
        places = Places(outside.ledger, outside.states, outside.offline)
        journal = Journal(places, self.pipeline, self.contracts, before.shards_count)  # holds the flow's lock
        try:
            entities = {view.name: self._entities(view, key) for view in views}
            online = {view.name: outside.online.delete(view, entities[view.name]) for view in views}
            served = {view.name: outside.served.forget(view, lambda rows: of_key(rows, key)) for view in views}
            events = {stream: self._events(stream, key) for stream in self._streams if self._tells(stream, key)}
            folders = {view.name: view.row_schema for view in views}
            folders |= {archive_name(stream): self.contracts[stream].schema for stream in events}
            generations, rows = outside.store.generations(), dict[str, int]()
            for name, schema in folders.items():
                self._clean(name, generations)
                folder = generations.of(name)
                target = max(folder.alive) + 1
                rows[name] = outside.store.rewrite(
                    name, folder.current, target, schema, lambda found: of_key(found, key)
                )
            removed = Removed(
                online_rows=online, served_rows=served,
                rows={view.name: rows[view.name] for view in views},
                events={stream: rows[archive_name(stream)] for stream in events},
            )  # fmt: skip
            if not removed.count and not letters:
                name = ",".join(f"{name}={value}" for name, value in key.items())
                hint = (
                    "check how it is spelled; nothing of it is in either store, the event archive or the dead letters"
                )
                for folder_ in folders:
                    self._clean(folder_, generations)
                raise Refused([Problem("entity", name, "is not known", hint=hint)])
            dropped = {name: 0 if name not in removed.rows else rows[name] for name in folders}
            after = generations.rewritten(dropped)
            ledger = self._ledger(journal, key, events, rows, after.number)
            decided = Decided(digest=digest, removed=removed, generations=after, ledger=ledger)
            outside.store.decide(decided)
            return self._put(decided, views)
        finally:
            journal.close()

    def _entities(self, view: View, key: Key) -> list[tuple[Any, ...]]:
        """Return the view's entities of a key: it, or all that have rows and begin with it."""
        if key.keys() == {*view.entity_names}:
            return [tuple(key[name] for name in view.entity_names)]
        rows = self.outside.offline.matching(view.name, view.row_schema, key)
        return list(dict.fromkeys(zip(*(rows.column(name).to_pylist() for name in view.entity_names), strict=True)))

    def _events(self, stream: str, key: Key) -> pa.Table:
        return self.outside.offline.matching(archive_name(stream), self.contracts[stream].schema, key)

    def _clean(self, name: str, generations: Generations) -> None:
        for number in sorted(self.outside.store.found(name) - generations.of(name).alive.keys()):
            self.outside.store.remove(name, number)

    def _ledger(
        self, journal: Journal, key: Key, events: Mapping[str, pa.Table], rows: Mapping[str, int], generations: int
    ) -> Ledger:
        """Write all state without the entity, and return the ledger that goes with it."""
        ledger, states = journal.ledger, self.outside.states
        partitions, shards = dict(ledger.partitions), dict(ledger.shards)
        snapshots = dict[str, SnapshotMark]()
        for stream, contract in self.contracts.items():
            mine = events.get(stream)
            for number, mark in ledger.partitions_of(stream).items():
                judge, name = journal.judge(stream, number), source_key(stream, number)
                own = None if mine is None else mine.filter(pc.equal(mine.column(PARTITION), number))
                count = 0 if own is None else own.num_rows
                ids = {*own.column(contract.stream.event_id).to_pylist()} if own and contract.stream.event_id else set()
                seen = {event_id: time for event_id, time in judge.seen.items() if event_id not in ids}
                judged = (seen, judge.accepted_count - count, judge.failed_count)
                snapshots[name] = SnapshotMark(file=states.write(name, ledger.epoch, judged), epoch=ledger.epoch)
                partitions[name] = mark.model_copy(update={"accepted_count": mark.accepted_count - count})
        for plan in self.pipeline.plans:
            view = plan.view
            counts = self._counts(view, events, ledger.shards_count) if is_of(view, key) else Counter()
            for shard in range(ledger.shards_count):
                name, state = f"{view.name}/{shard}", journal.fold(view.name, shard).state()
                if is_of(view, key):
                    state = shard_without(state, view, key, counts[shard])
                snapshots[name] = SnapshotMark(file=states.write(name, ledger.epoch, state), epoch=ledger.epoch)
                if (known := shards.get(name)) is not None:
                    shards[name] = known.model_copy(update={"events_count": known.events_count - counts[shard]})
        archived = {
            name: ledger.rows_counts[name] - rows[name]
            for name in map(archive_name, events)
            if name in ledger.rows_counts
        }
        expired = dict(ledger.expired)
        for stream, mine in events.items():
            if mine.num_rows and self._has_others(stream, key):
                newest = instant_us(pc.max(mine.column(EVENT_TIME)).as_py())
                expired[stream] = max(expired.get(stream, newest), newest)
        return ledger.model_copy(
            update={
                "partitions": partitions, "shards": shards, "snapshots": snapshots, "parts": {},
                "rows_counts": {**ledger.rows_counts, **archived}, "expired": expired, "generations": generations,
            }
        )  # fmt: skip

    def _counts(self, view: View, events: Mapping[str, pa.Table], shards_count: int) -> Counter[int]:
        """Return how many events each shard of a view was given of the entity, as far as the archive has them."""
        found = Counter[int]()
        for stream in view.sources:
            mine = events[stream]
            if mine.num_rows:
                inputs = Intake(self.contracts[stream], [self.pipeline.plan(view.name)]).inputs_of(mine)[view.name]
                found.update({shard: part.num_rows for shard, part in split(inputs, view, shards_count).items()})
        return found

    def _finish(self, decided: Decided, views: Sequence[View]) -> Removed:
        self.outside.ledger.lock()
        try:
            return self._put(decided, views)
        finally:
            self.outside.ledger.unlock()

    def _put(self, decided: Decided, views: Sequence[View]) -> Removed:
        """Put in place what was decided; doing it again changes nothing."""
        outside = self.outside
        outside.store.write(decided.generations)
        outside.ledger.write(decided.ledger)
        outside.states.keep(mark.file for mark in decided.ledger.snapshots.values())
        outside.point(views)
        for name in (*decided.removed.rows, *map(archive_name, decided.removed.events)):
            self._clean(name, decided.generations)
        return decided.removed


def _until(at: datetime, retention_s: float | None) -> str | None:
    return None if retention_s is None else _iso(at + timedelta(seconds=retention_s))


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def lines_of(receipt: Receipt) -> Iterable[str]:
    """Say a receipt for people."""
    removed = receipt.removed
    yield f"purged {receipt.key} at {receipt.at}"
    for what, counts in (
        ("rows online", removed.online_rows),
        ("rows offline", removed.rows),
        ("archived events", removed.events),
        ("rows of the log of what was served", removed.served_rows),
    ):
        for name, count in counts.items():
            yield f"  {count:,} {what} of {name}"
    yield "what remains: Kafka deletes no single messages"
    for letter in receipt.dead_letters:
        place, until = f"{letter.topic}/{letter.partition}@{letter.offset}", letter.until or "it is deleted by hand"
        yield f"  dead letter {place}, until {until}"
    for kept in receipt.kept:
        yield f"  topic {kept.topic}: its messages of before now, until {kept.until or 'they are deleted by hand'}"
    for note in receipt.notes:
        yield f"  {note}"
