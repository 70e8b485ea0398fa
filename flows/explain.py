"""What is known of one entity, from both stores, the event archive and Kafka, to explain a value of it.

Everything is only read, and each system is asked by itself: the materializer, the validator, Redis and Kafka may be
away. The stores are read between two readings of one and the same ledger, so that rows and events are of one commit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.flows.left_out import LeftOut, Log
from freshet.flows.steps.explain import AFTER_MAX, NEAREST, Gathered, Later, Left, Why, instant, spell
from freshet.flows.steps.oracle import Answer, explained, union_of
from freshet.flows.steps.shards import hashes
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME, NEVER_US, OFFSET, PARTITION, Contract, archive_name
from freshet.schemas.ledger import Ledger
from freshet.schemas.plan import Range, ViewPlan
from freshet.schemas.rejects import Origin
from freshet.schemas.units import instant_us
from freshet.schemas.view import CREATED, VERSION, StoredRow, View

_ATTEMPTS, _PAUSE_S = 5, 0.1
_LOOKBACK = timedelta(hours=1)
"""How far back rows are looked for first: of an older entity everything is read."""
T = TypeVar("T")


class Online(Protocol):
    """What rows are served from."""

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""


class Offline(Protocol):
    """What keeps rows and events for ever."""

    def matching(
        self, name: str, schema: pa.Schema, values: Mapping[str, Any], since: datetime | None = None
    ) -> pa.Table:
        """Return the rows whose columns have these values, in every version, from a time on."""

    def is_staged(self, name: str, part: str) -> bool:
        """Say whether a part still waits to be published."""


class LedgerStore(Protocol):
    """What says what is durable."""

    def read(self) -> Ledger | None:
        """Return the ledger, None before the first commit."""


@dataclass(frozen=True)
class Outside:
    """All that is asked; whoever `online` and `log` open is `Unavailable` then, not before."""

    online: Callable[[], Online]
    offline: Offline
    ledger: LedgerStore
    log: Callable[[], Log]
    now: Callable[[], datetime]


@dataclass
class Explainer:
    """Gathers what is known of an entity of one view."""

    project: str
    plan: ViewPlan
    contracts: Mapping[str, Contract]
    outside: Outside
    sleep: Callable[[float], object] = time.sleep
    _troubles: dict[str, str] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _gaps: list[str] = field(default_factory=list)

    @property
    def view(self) -> View:
        """The view."""
        return self.plan.view

    def gather(self, feature: str, entity: tuple[Any, ...], asked: datetime | None) -> Gathered:
        """Return all that is known of a feature at a time, or now: what could not be asked is said in it.

        Raises `Refused` for an entity that is nowhere, and a time before its first row; `Unavailable` where the offline
        store cannot be read, for nothing can be said then.
        """
        self._troubles, self._notes, self._gaps = {}, [], []
        stores = self._stores(entity, asked)
        online = self._asked("online store", lambda: self.outside.online().read(self.view, [entity])[0])
        answer = self._answer(stores, feature)
        letters, others = self._left_out(entity, stores)
        if answer.at_us is None:
            answer = Answer(self._at_us_of_none(entity, asked, stores, online, [*letters, *others]), None)
        assert answer.at_us is not None
        passed = [one for one in others if one.why != Why.WAITING]
        return Gathered(
            self.project,
            self.plan,
            feature,
            entity,
            self._topics,
            self.outside.now(),
            asked,
            stores.told(answer.at_us),
            answer,
            stores.later(self._topics, answer.at_us),
            online,
            self._of_the_frame(feature, answer.at_us, letters),
            self._of_the_frame(feature, answer.at_us, passed),
            tuple(one for one in others if one.why == Why.WAITING),
            dict(self._troubles),
            tuple(self._gaps),
            tuple(self._notes),
            stores.moving,
        )

    @property
    def _topics(self) -> tuple[str, ...]:
        return tuple(self.contracts[stream].stream.topic for stream in self.view.sources)

    def _asked(self, system: str, ask: Callable[[], T]) -> T | None:
        """Ask a system; note why it does not answer."""
        try:
            return ask()
        except (Refused, Unavailable) as error:
            self._troubles[system] = str(error).splitlines()[0]
            return None

    def _left_out(self, entity: tuple[Any, ...], stores: "_Stores") -> tuple[list[Left], list[Left]]:
        """Ask Kafka for the entity's dead letters, and for its events that are neither there nor archived."""

        def ask() -> tuple[list[Left], list[Left]]:
            looker = LeftOut(self.view, self.contracts, entity, self.outside.log(), self._notes)
            letters = looker.letters()
            durable = {} if stores.ledger is None else stores.ledger.offsets
            known = [one.origin for one in letters]
            return letters, looker.others(known, stores.offsets(self.view.sources), durable)

        return self._asked("kafka", ask) or ([], [])

    def _of_the_frame(self, feature: str, at_us: int, left: Sequence[Left]) -> tuple[Left, ...]:
        """Return those events that would be in a frame of the feature, or whose time is not known."""
        frames = [one.frame for one in self.plan.oracle.traces[feature].windows]
        spans = [one.span_us if isinstance(one, Range) else None for one in frames]
        begin_us = NEVER_US if None in spans or not spans else at_us - max(span for span in spans if span is not None)
        return tuple(one for one in left if one.at is None or begin_us <= instant_us(one.at) <= at_us)

    # Both stores

    def _stores(self, entity: tuple[Any, ...], asked: datetime | None) -> "_Stores":
        """Read rows and events of one commit; of a flow that commits faster than that, what is there."""
        for attempt in range(_ATTEMPTS):
            ledger = self.outside.ledger.read()
            if ledger is None:
                self._gaps.append("nothing is durable yet; run `freshet run materializer`")
                nothing = [self._empty(stream) for stream in self.view.sources]
                return _Stores(None, NEVER_US, self.view.row_schema.empty_table(), nothing, moving=False)
            is_last = attempt == _ATTEMPTS - 1
            if self._is_published(ledger) or is_last:
                clock_us = self._clock_us(ledger, entity)
                until_us = clock_us if asked is None else min(clock_us, instant_us(asked))
                rows = self._rows(entity, until_us)
                events = self._events(entity, rows, until_us)
                moving = self.outside.ledger.read() != ledger
                if not moving or is_last:
                    return _Stores(ledger, until_us, rows, events, moving=moving)
            else:
                self.sleep(_PAUSE_S)
        raise AssertionError("the last attempt returns")

    def _is_published(self, ledger: Ledger) -> bool:
        """Say whether all parts that the last commit names can be seen."""
        names = [self.view.name, *map(archive_name, self.view.sources)]
        told = [(name, part) for name in names for part in ledger.parts.get(name, ())]
        return not any(self.outside.offline.is_staged(name, part) for name, part in told)

    def _clock_us(self, ledger: Ledger, entity: tuple[Any, ...]) -> int:
        """Return up to when the entity's rows are made."""
        line = pa.Table.from_pylist(
            [dict(zip(self.view.entity_names, entity, strict=True))], pa.schema(self.view.entity)
        )
        shard = int(hashes(line, self.view)[0]) % ledger.shards_count
        mark = ledger.shards.get(f"{self.view.name}/{shard}")
        return NEVER_US if mark is None else mark.clock_us

    def _rows(self, entity: tuple[Any, ...], until_us: int) -> pa.Table:
        """Return the entity's rows in every version, from the one on that holds at an instant, if there is one."""
        reach, until = timedelta(microseconds=self.plan.reach_us or 0), instant(until_us)
        for length in (_LOOKBACK + reach, None):
            since = None if length is None or until - _CALENDAR_BEGIN <= length else until - length
            rows = self._matching(self.view.name, self.view.row_schema, entity, since)
            times_us = _times_us(rows)
            before_us = times_us[times_us <= until_us]
            if len(before_us):
                return rows.filter(pa.array(times_us >= before_us.max()))
            if since is None:
                return rows
        raise AssertionError("the last time everything is read")

    def _events(self, entity: tuple[Any, ...], rows: pa.Table, until_us: int) -> list[pa.Table]:
        """Return the entity's archived events, by stream, from so long before the row that none is missed."""
        times_us = _times_us(rows)
        before_us = times_us[times_us <= until_us]
        since = instant(self._begin_us(int(before_us.max()))) if len(before_us) else None
        if since is not None and since > _CALENDAR_BEGIN:
            self._notes[:] = [f"events were looked for from {spell(since)} on"]
        schemas = [self.contracts[stream].schema for stream in self.view.sources]
        each = zip(self.view.sources, schemas, strict=True)
        return [self._matching(archive_name(stream), schema, entity, since) for stream, schema in each]

    def _begin_us(self, at_us: int) -> int:
        """Return from when on events may matter to a row, or be near its frame; the calendar's begin for all."""
        lookback_us = self.plan.lookback_us
        return NEVER_US if lookback_us is None else at_us - 2 * lookback_us - 1

    def _matching(self, name: str, schema: pa.Schema, entity: tuple[Any, ...], since: datetime | None) -> pa.Table:
        values = dict(zip(self.view.entity_names, entity, strict=True))
        begin = None if since is None or since <= _CALENDAR_BEGIN else since
        return self.outside.offline.matching(name, schema, values, begin)

    def _empty(self, stream: str) -> pa.Table:
        return self.contracts[stream].schema.empty_table()

    # DuckDB

    def _answer(self, stores: "_Stores", feature: str) -> Answer:
        """Have DuckDB answer; what the archive no longer has, or DuckDB cannot compute, is a gap."""
        events = union_of([_until(table, stores.until_us) for table in stores.events])
        try:
            answer = explained(self.plan, feature, events, stores.final, stores.until_us)
        except Refused as error:
            self._gaps.append(str(error.problems[0]))
            newest = stores.newest_us()
            return Answer(newest, None)
        lookback_us, ledger = self.plan.lookback_us, stores.ledger
        is_whole = self.plan.reach_us is None and answer.at_us in stores.instants_us and _is_of_all(answer)
        for stream in self.view.sources if ledger is not None and answer.at_us is not None and not is_whole else ():
            expired_us = ledger.expired.get(stream, 0) if ledger else 0
            if expired_us and (lookback_us is None or (answer.at_us or 0) - lookback_us <= expired_us):
                until = f"up to {spell(instant(expired_us))}"
                hint = "FRESHET_ARCHIVE_RETENTION says how long they are kept"
                hint += "" if lookback_us is None else "; explain a later row with --at"
                self._gaps.append(
                    f"archived events of {stream} {until} may have been dropped, and the row needs them: {hint}"
                )
        taken_over_us = NEVER_US if ledger is None else ledger.taken_over.get(self.view.name, NEVER_US)
        if answer.at_us is not None and answer.at_us < taken_over_us:
            since = spell(instant(taken_over_us))
            self._gaps.append(
                f"the row is of an earlier declaration, whose rows before {since} were taken over (--from): DuckDB"
                " answers by the one in force; `freshet backfill` makes such rows anew"
            )
        return answer

    def _at_us_of_none(
        self,
        entity: tuple[Any, ...],
        asked: datetime | None,
        stores: "_Stores",
        online: StoredRow | None,
        others: Sequence[Left],
    ) -> int:
        """Return the instant to explain of what has no durable row: what is online, or waits, is worth a word.

        Refuses what has nothing.
        """
        if online is not None and asked is None:
            return instant_us(online.event_timestamp)
        if online is None and stores.rows.num_rows == 0 and any(one.why == Why.WAITING for one in others):
            return instant_us(asked or self.outside.now())
        name = ", ".join(f"{name}={value}" for name, value in zip(self.view.entity_names, entity, strict=True))
        first = min(stores.rows.column(EVENT_TIME).to_pylist(), default=None)
        if first is not None or online is not None:
            found = spell(first if first is not None else online.event_timestamp)  # type: ignore[union-attr]
            got = "" if asked is None else spell(asked)
            hint = f"its first row is of {found}: ask for that time or a later one"
            raise Refused([Problem("entity", name, f"has no row of {self.view.name} at that time", got, hint)])
        counts: dict[str, int] = {}
        for one in others:
            counts[one.why] = counts.get(one.why, 0) + 1
        got = ", ".join(f"{count} events that are {why}" for why, count in counts.items())
        hint = "check how it is spelled" if not others else "`freshet dlq list` says why events were not accepted"
        if "kafka" in self._troubles or "online store" in self._troubles:
            hint += f"; {' and '.join(self._troubles)} could not be asked"
        raise Refused([Problem("entity", name, f"has no row of {self.view.name}", got, hint)])


_CALENDAR_BEGIN = instant(NEVER_US)


def _until(events: pa.Table, until_us: int) -> pa.Table:
    return events.filter(pa.array(_times_us(events) <= until_us))


def _times_us(table: pa.Table) -> npt.NDArray[np.int64]:
    return table.column(EVENT_TIME).cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]  # pyarrow is untyped


def _is_of_all(answer: Answer) -> bool:
    """Say whether DuckDB saw as many events as the row: their number is the version of a row of all of the past."""
    return answer.answer is not None and VERSION not in answer.differing


@dataclass(frozen=True)
class _Stores:
    """An entity's rows and archived events, by stream, as of one ledger; rows are made until `until_us` at least.

    The first row is the newest up to then, if there is one.
    """

    ledger: Ledger | None
    until_us: int
    rows: pa.Table
    events: Sequence[pa.Table]
    moving: bool

    @property
    def final(self) -> pa.Table:
        """The greatest version of each row up to then."""
        order = [(EVENT_TIME, "ascending"), (VERSION, "ascending"), (CREATED, "ascending")]
        rows = _until(self.rows, self.until_us).sort_by(order)
        times_us = _times_us(rows)
        is_last = np.ones(len(times_us), np.bool_)
        is_last[:-1] = times_us[1:] != times_us[:-1]
        return rows.filter(pa.array(is_last))

    def told(self, at_us: int) -> pa.Table:
        """Return the rows, in every version, of an instant, of the next ones, and of the newest."""
        times_us = _times_us(self.rows)
        instants_us = np.unique(times_us[times_us >= at_us])
        return self.rows.filter(pa.array(np.isin(times_us, [*instants_us[: AFTER_MAX + 1], *instants_us[-1:]])))

    @property
    def instants_us(self) -> set[int]:
        """The instants that have a row up to then."""
        return {*_times_us(self.final).tolist()}

    def newest_us(self) -> int | None:
        """Return the instant of the row that holds at `until_us`."""
        times_us = _times_us(self.rows)
        return max(times_us[times_us <= self.until_us].tolist(), default=None)

    def later(self, topics: Sequence[str], at_us: int) -> Later:
        """Return what there is of events after an instant."""
        found = [
            (when, Origin(topic, partition, offset))
            for topic, table in zip(topics, self.events, strict=True)
            for events in [table.filter(pa.array(_times_us(table) > at_us)).sort_by(EVENT_TIME)]
            for when, partition, offset in zip(
                *(events.slice(0, NEAREST).column(name).to_pylist() for name in (EVENT_TIME, PARTITION, OFFSET)),
                strict=True,
            )
        ]
        times_us = np.concatenate([_times_us(table) for table in self.events])
        after_us = times_us[times_us > at_us]
        rows_us = _times_us(self.rows)
        nearest = tuple((origin, when) for when, origin in sorted(found)[:NEAREST])
        rows_count = len(np.unique(rows_us[rows_us > at_us]))
        return Later(nearest, len(after_us), frozenset(np.intersect1d(after_us, rows_us).tolist()), rows_count)

    def offsets(self, streams: Sequence[str]) -> dict[str, dict[int, list[int]]]:
        """Return the offsets of the archived events, by stream and partition."""
        found = dict[str, dict[int, list[int]]]()
        for stream, table in zip(streams, self.events, strict=True):
            places = zip(table.column(PARTITION).to_pylist(), table.column(OFFSET).to_pylist(), strict=True)
            of_stream = found.setdefault(stream, {})
            for partition, offset in places:
                of_stream.setdefault(partition, []).append(offset)
        return found
