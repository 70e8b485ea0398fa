"""A world in memory for the whole flow: one seed decides clock, order, batching, faults and crashes.

Every call to the outside is a touch, numbered from 1. At a touch the call may fail, or the process may die before or
after it; then another process goes on with what is left. What must hold at every moment is checked at every touch.
"""

import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, TypeVar

from pydantic import AwareDatetime

from freshet.flows.change import Asked, Done, Places, change
from freshet.flows.edges.applied import MemoryApplied
from freshet.flows.edges.bytewax import Place, Stop
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.metrics import Metrics
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.recovery import MemoryLedger, MemoryRecovery
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.live import Live, Outside, Run, assemble
from freshet.flows.steps.oracle import compare
from freshet.flows.testing import Given
from freshet.schemas.applied import Declared, DeclaredView
from freshet.schemas.errors import Unavailable
from freshet.schemas.event import EVENT_TIME, NEVER_US, Event, Stream, archive_name
from freshet.schemas.progress import Progress

T = TypeVar("T")
SOAK = int(os.environ.get("FRESHET_SOAK") or 1)
START = datetime(2026, 3, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 10**6
STREAM = "clicks"
SIGHTS = 6
"""How often each partition is found idle before a run is asked to end."""


class Click(Event):
    stream = Stream("clicks", "user", "at", "id", lateness=timedelta(seconds=20), max_future=timedelta(days=1))

    at: AwareDatetime
    user: str
    id: str
    cost: str


WINDOW = "(PARTITION BY user ORDER BY event_timestamp RANGE BETWEEN INTERVAL '{}' PRECEDING AND CURRENT ROW)"
DECLARED = {
    "project": "simulated",
    "featureDefinitions": [
        {
            "name": name,
            "dtype": dtype,
            "source": STREAM,
            "transformation": transformation,
        }
        for name, dtype, transformation in (
            ("clicks_1m", "int64", f"count(*) OVER {WINDOW.format('1 minute')}"),
            ("cost_10s", "int64", f"sum(CAST(cost AS BIGINT)) OVER {WINDOW.format('10 seconds')}"),
            ("first_cost", "string", "first_value(cost) OVER (PARTITION BY user ORDER BY event_timestamp)"),
        )
    ],
    "servingRequirements": {"freshnessTarget": "p99 < 2s"},
}
GIVEN = Given.declared(json.dumps(DECLARED), {STREAM: Click})


def declared_by(given: Given, text: str) -> Declared:
    """Return a declaration as `freshet apply` keeps it."""
    views = {plan.view.name: DeclaredView.of(plan) for plan in given.pipeline.plans}
    return Declared(place="features.yaml", text=text, views=views)


class Crash(BaseException):
    """The process died. Nothing may catch it."""


def touches(fate: str, one_in: int = 1) -> Iterator[int]:
    """Give the touches that a fate is to befall, each in a run of its own, without end; with FRESHET_SOAK all of them.

    Else deaths skip every second one: to die after a touch is to die before the next. Of runs with many touches one
    moment in so many is taken.
    """
    return count(1, 1 if SOAK > 1 else one_in if fate == "fails" else 2 * one_in)


@dataclass
class Fates:
    """What befalls at which touch: "fails", "dies before" or "dies after". A process that ended touches nothing.

    Threads touch one after the other; those of a process may outlive what ended it. Before each touch something else may
    happen outside, `meanwhile`.
    """

    at: dict[int, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None
    meanwhile: Callable[[], None] = lambda: None
    alive: int | None = None
    turn: threading.RLock = field(default_factory=threading.RLock)

    def touch(self, process: int, name: str, call: Callable[[], T]) -> T:
        with self.turn:
            return self._touch(process, name, call)

    def _touch(self, process: int, name: str, call: Callable[[], T]) -> T:
        if process != self.alive:
            raise Crash(name)
        self.names.append(name)
        self.meanwhile()
        fate = self.at.get(len(self.names))
        if fate == "fails":
            raise Unavailable(f"{name} does not answer, at touch {len(self.names)}")
        if fate == "dies before":
            self.alive = None
            raise Crash(name)
        answer = call()
        self.watch()
        if fate == "dies after":
            self.alive = None
            raise Crash(name)
        return answer


Touch = Callable[[str, Callable[[], Any]], Any]


class Touched:
    """A part of the outside, each call to which is a touch."""

    def __init__(self, name: str, part: Any, touch: Touch) -> None:
        self._name, self._part, self._touch = name, part, touch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if not callable(found) or name in {"close", "unlock"}:
            return found
        return lambda *words, **named: self._touch(f"{self._name}.{name}", lambda: found(*words, **named))


class Partition(Touched):
    """A partition that gives as many messages as chance will have it, now and then none, and counts when it is idle."""

    def __init__(self, world: "World", part: Any, touch: Touch) -> None:
        super().__init__("partition", part, touch)
        self._world = world

    def poll(self, _count: int, _wait_s: float = 0.0) -> Any:
        count = self._world.chance.choice([0, 1, 2, 5, 30])
        found = self._touch("partition.poll", lambda: self._part.poll(count) if count else None)
        idle = self._world.idle_counts
        idle[self._part.partition] = idle[self._part.partition] + 1 if found is None and self._part.at_end else 0
        if min(idle) > SIGHTS and not self._world.coming:
            self._world.stop.request()
        return found


@dataclass
class World:
    """All outside systems, kept from one process to the next."""

    seed: int
    events_count: int = 40
    partitions_count: int = 2
    shards_count: int = 2
    is_live: bool = True
    workers_counts: tuple[int, ...] = (1,)
    at_first: float = 1.0
    """Which share of the events is there before the first run, if they do not come while it lasts."""
    fates: Fates = field(default_factory=Fates)
    given: Given = GIVEN
    pauses: tuple[timedelta, ...] = ()
    """How long no event happens, each time that another such share of them is there; the clock goes on at one stroke."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.log = MemoryLog(lambda: self.now_us // 1000)
        self.log.create_topics({STREAM: self.partitions_count, f"{STREAM}.dlq": self.partitions_count})
        self.offline, self.ledger, self.states = MemoryOfflineStore(), MemoryLedger(), MemoryRecovery()
        self.applied, self.declared_given, self.givens = MemoryApplied(), self.given, dict[str, Given]()
        self.online = MemoryOnlineStore("simulated", self.given.pipeline.views)
        self.letters: list[tuple[int, int, str]] = []
        self.sent: list[tuple[int, int, str]] = []
        self.stop, self.runs_count = Stop(), 0
        self.now_us = START_US + 120 * 10**6
        self.epoch = self.chance.choice([timedelta(0), timedelta(0), timedelta(days=1)])
        self.good: dict[tuple[int, int], bool] = {}
        self.repeated: set[tuple[int, int]] = set()
        self.appended_us: dict[tuple[int, int], int] = {}
        self.coming = self._made()
        self.arrivals = random.Random(self.seed)
        self.left = dict(self._pauses())
        at_first = int(self.events_count * self.at_first)
        self._append(min([self.events_count // 2, *self.left]) if self.is_live else at_first)
        self.seen: dict[str, int] = {}
        self.told: dict[str, Progress] = {}
        self._looked_at: dict[str, list[str]] = {}
        self._archived = frozenset[tuple[int, int]]()
        self.fates.watch, self.fates.meanwhile = self.check_always, self.arrive

    def _made(self) -> list[tuple[int, bytes, str]]:
        """Make events, garbage and repeated ones among them: for each its partition, its bytes and its kind."""
        told: list[tuple[int, bytes, str]] = []
        for number in range(self.events_count):
            part = self.chance.randrange(self.partitions_count)
            at = START + timedelta(seconds=number * 2 - self.chance.choice([0, 0, 0, 3, 15]))
            at += sum((length for place, length in self._pauses() if place <= number), timedelta(0))
            event = {"at": at.isoformat(), "user": self.chance.choice("abc"), "id": str(number), "cost": str(number)}
            kind = self.chance.choice(["good"] * 8 + ["garbage", "contract", "transform", "repeated"])
            if kind == "contract":
                event.pop("cost")
            if kind == "transform":
                event["cost"] = "much"
            value = b"\xff garbage" if kind == "garbage" else json.dumps(event).encode()
            if kind == "repeated" and told:
                part, value, _ = self.chance.choice([one for one in told if one[2] != "again"][-8:])
                kind = "again"
            told.append((part, value, kind))
        return told

    def _pauses(self) -> list[tuple[int, timedelta]]:
        """Return how many events come before each pause, and how long it is."""
        shares = len(self.pauses) + 1
        return [(self.events_count * (index + 1) // shares, length) for index, length in enumerate(self.pauses)]

    def arrive(self) -> None:
        """Now and then one or some of the messages that are still to come arrive, all at one instant; or a pause ends."""
        if self.coming and self.arrivals.random() < 0.1:
            self.now_us += 1  # nothing else happens at that instant
            come = self.events_count - len(self.coming)
            if come in self.left:
                self.now_us += int(self.left.pop(come).total_seconds() * 1e6)
                return
            until = min((place for place in self.left if place > come), default=self.events_count)
            self._append(min(self.arrivals.randint(1, 4), until - come))

    def _append(self, count: int) -> None:
        for part, value, kind in self.coming[:count]:
            made_us = self.now_us - self.arrivals.choice([0, 0, 500_000])  # producers give the time, and some tarry
            place = part, self.log.append(STREAM, part, value, timestamp_ms=made_us // 1000)
            self.appended_us[place] = self.now_us
            if kind == "again":
                self.repeated.add(place)
            else:
                self.good[place] = kind in {"good", "repeated"}
        del self.coming[:count]

    def clock(self) -> int:
        with self.fates.turn:
            return self._clock()

    def _clock(self) -> int:
        self.arrive()
        self.now_us += self.chance.choice([0, 1000, 400_000])
        return self.now_us

    # What processes do

    def put(self, rejects: Any) -> None:
        self.sent += [(reject.partition, reject.offset, reject.reason.value) for reject in rejects]

    def flush(self) -> None:
        self.letters += self.sent
        self.sent = []

    def outside(self) -> Outside:
        touch = partial(self.fates.touch, self.runs_count)

        def touched(name: str, part: Any) -> Any:
            return Touched(name, part, touch)

        return Outside(
            partitions_count=lambda topic: touch("partitions", lambda: self.log.partitions_count(topic)),
            open_partition=lambda topic, part, _, start: touch(
                "open", lambda: Partition(self, self.log.reader(topic, part, start), touch)
            ),
            offsets=touched("offsets", self.log.offsets("g")),
            dead_letters=touched("letters", self),
            online=touched("online", self.online),
            offline=touched("offline", self.offline),
            ledger=touched("ledger", self.ledger),
            states=touched("states", self.states),
            applied=touched("applied", self.applied),
            now_us=self.clock,
        )

    def in_force(self) -> Given:
        """What a process that starts now runs: what is pending, else what was applied."""
        ledger, applied = self.ledger.read(), self.applied.read()
        if ledger is not None and ledger.pending is not None:
            return self.givens[ledger.pending.declaration]
        return self.declared_given if applied is None else self.givens[applied.declared.id]

    def change(self, given: Given, **asked: Any) -> Done | None:
        """Put another declaration in force, in a process of its own."""
        declared = declared_by(given, str(given.pipeline))
        self.givens[declared.id] = given
        self.runs_count += 1
        self.fates.alive, self.online = self.runs_count, self.online.reopened(given.pipeline.views)
        touch = partial(self.fates.touch, self.runs_count)
        self.given = self.in_force()
        places = Places(
            Touched("ledger", self.ledger, touch),
            Touched("states", self.states, touch),
            Touched("offline", self.offline, touch),
            lambda: Touched("online", self.online, touch),
            Touched("applied", self.applied, touch),
            lambda one: self.givens[one.id].pipeline,
            self.clock,
        )
        wanted = Asked(given.pipeline, given.contracts, declared, **{"carried": {}, **asked})
        done = change(places, wanted, patience=timedelta(0))
        self.given = given
        return done

    def assemble(self, **changes: Any) -> Live:
        self.given = self.in_force()
        self.online = self.online.reopened(self.given.pipeline.views)
        self.runs_count += 1
        self.fates.alive, self.stop, self.sent = self.runs_count, Stop(), []
        self.idle_counts = [0] * self.partitions_count
        self.online.writes_count = 0  # what a new process knows
        self.through_us: dict[str, int] = {}
        place = Place(workers_count=self.workers_counts[self.runs_count % len(self.workers_counts)])
        settings = Run(self.shards_count, self.epoch, place=place, until_end=not self.is_live, **changes)
        metrics = Metrics([STREAM], [view.name for view in self.given.pipeline.views])
        return assemble(
            self.given.pipeline,
            self.given.contracts,
            self.outside(),
            settings,
            metrics,
            stop=self.stop,
            beside=False,
            snapshot_events=self.chance.choice([3, 200]),
        )

    def run(self, **changes: Any) -> None:
        """Run one process to its end; raises what ended it."""
        self.assemble(**changes).run()

    def run_until_done(self, limit: int = 50) -> None:
        """Run processes, one after the other, until one ends well."""
        for _ in range(limit):
            try:
                self.run()
            except (Crash, Unavailable):
                continue
            return
        raise AssertionError(f"{limit} processes did not do it; seed {self.seed}")

    # What must hold

    def check_always(self) -> None:
        """No row is visible twice, none is taken back, no committed offset passes what is durable, no progress what is online."""
        for view in self.given.pipeline.views:
            if not (parts := self._news(view.name)):
                continue
            rows = self.offline.read(view.name).select([*view.entity_names, "event_timestamp", "_version"])
            assert rows.num_rows == rows.group_by(rows.column_names).aggregate([]).num_rows, "a row is visible twice"
            folder = self.offline.folder(view.name)
            assert rows.num_rows >= self.seen.get(folder, 0), "a row was taken back"
            self.seen[folder] = rows.num_rows
            self._looked_at[view.name] = parts
        archived = self.archived()
        kept = archived | self.repeated | {(part, offset) for part, offset, _ in self.letters}
        for part, committed in self.committed().items():
            lost = [offset for offset in range(committed) if (part, offset) not in kept]
            assert not lost, f"offset {committed} of partition {part} is committed, and {lost} is not durable"
        progress = self.online.read_progress()
        if progress != self.told:
            self._check_progress(progress, kept)
            self.told = progress

    def _check_progress(self, progress: Mapping[str, Progress], kept: frozenset[tuple[int, int]]) -> None:
        """What Kafka had by then is judged, and online rows count all of it that was accepted: no view forgets an event."""
        through_us = {int(key.rpartition("/")[2]): one.through_us for key, one in progress.items()}
        for key, one in progress.items():
            assert one.through_us <= one.written_us <= self.now_us
            if one != self.told.get(key):  # this process told it
                assert one.through_us >= self.through_us.get(key, NEVER_US), f"{key} goes back"
                self.through_us[key] = one.through_us
        whole = {place for place, at_us in self.appended_us.items() if at_us <= through_us.get(place[0], NEVER_US)}
        assert whole <= kept, f"progress is {through_us}, and {whole - kept} is not durable"
        if archive_name(STREAM) not in self.offline.names:
            return
        events = self.offline.read(archive_name(STREAM)).select(["_partition", "_offset", "user", EVENT_TIME])
        times: dict[str, list[datetime]] = {}
        for part, offset, user, at in zip(*(column.to_pylist() for column in events.columns), strict=True):
            if (part, offset) in whole:
                times.setdefault(user, []).append(at)
        for plan in self.given.pipeline.plans:
            for (user, needed), row in zip(
                times.items(), self.online.read(plan.view, [(user,) for user in times]), strict=True
            ):
                assert row is not None, f"progress is {through_us}, and {user} is not online"
                assert row.event_timestamp >= max(needed), f"progress is {through_us}, and {user} is older"
                lacks = plan.whole_history and row.version < len(needed)  # else events leave its reach as time passes
                assert not lacks, f"progress is {through_us}, and {user} lacks an event"

    def committed(self) -> dict[int, int]:
        found = self.log.offsets("g").committed(STREAM, self.partitions_count)
        return {part: offset for part, offset in found.items() if offset is not None}

    def archived(self) -> frozenset[tuple[int, int]]:
        name = archive_name(STREAM)
        if parts := self._news(name):
            self._archived = frozenset(self._read_archived())
            self._looked_at[name] = parts
        return self._archived

    def _news(self, name: str) -> list[str]:
        """Return which parts a folder has, if not those that were looked at last: a flow changes none, nor does a purge."""
        folder = self.offline.folder(name)
        parts = [folder, *self.offline.visible_parts(name)] if folder in self.offline.names else []
        return [] if parts == self._looked_at.get(name) else parts

    def _read_archived(self) -> set[tuple[int, int]]:
        events = self.offline.read(archive_name(STREAM))
        places = list(zip(events["_partition"].to_pylist(), events["_offset"].to_pylist(), strict=True))
        assert len(places) == len(set(places)), "an event is archived twice"
        ids = list(zip(events["_partition"].to_pylist(), events["id"].to_pylist(), strict=True))
        assert len(ids) == len(set(ids)), "a repeated event is archived"
        return set(places)

    def check_done(self) -> None:
        """All rows are what DuckDB says, the online store holds the newest, and each event is in one place."""
        letters = {(part, offset): reason for part, offset, reason in self.letters}
        archived = self.archived()
        assert archived.isdisjoint(letters)
        assert self.good.keys() <= archived | letters.keys() <= self.good.keys() | self.repeated, "an event is lost"
        assert all(reason == "late" for place, reason in letters.items() if self.good.get(place))
        assert all(self.good[place] for place in archived - self.repeated)
        self.check_rows()
        ends = self.log.offsets("g").end_offsets(STREAM, self.partitions_count)
        committed = self.committed()
        assert {part: committed.get(part, 0) for part in ends} == ends  # of an empty one the offset is none, or 0

    def check_rows(self) -> None:
        """All rows are what DuckDB says of the archived events, and the online store holds the newest."""
        events = self.offline.read(archive_name(STREAM))
        ledger = self.ledger.read()
        assert ledger is not None
        for plan in self.given.pipeline.plans:
            clocks = {mark.clock_us for key, mark in ledger.shards.items() if key.startswith(f"{plan.view.name}/")}
            assert len(clocks) == 1
            answer = compare(plan, events, self.offline.final(plan.view), clocks.pop())
            assert answer.differing == (), answer.differing[:3]
            newest = self.offline.newest(plan.view).to_pylist()
            entities = [tuple(row[name] for name in plan.view.entity_names) for row in newest]
            for row, stored in zip(newest, self.online.read(plan.view, entities), strict=True):
                assert stored is not None
                assert (row["event_timestamp"], row["_version"]) == (stored.event_timestamp, stored.version)
                assert {feature.name: row[feature.name] for feature in plan.view.features} == dict(stored.features)
