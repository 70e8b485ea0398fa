"""One shard of one view: which rows a batch of accepted events, or the time, makes or corrects, and their values.

A row stands at every event time of an entity, and at every tick: where an event leaves a frame, or enters one, by time
alone. A row is written when its instant is new, and again exactly when its version rises: when a batch brings an event
into its reach. So the greatest version of (entity, event_timestamp) is complete, whatever came in which order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.flows.steps.windows.aggregates import FUNCTIONS, Folded, parts_of
from freshet.flows.steps.windows.columns import ValueColumn, microseconds, timestamps
from freshet.flows.steps.windows.due import NEVER_DUE_US, DueSlots
from freshet.flows.steps.windows.folds import Spans, SumFold
from freshet.flows.steps.windows.frames import TickRule, low_edges, tick_rules
from freshet.flows.steps.windows.panes import panes
from freshet.flows.steps.windows.parts import Digits, Part
from freshet.flows.steps.windows.segments import (
    EVENT_ID,
    OFFSET,
    PARTITION,
    TIME,
    Changed,
    Column,
    Columns,
    Ints,
    Segments,
    ranges,
    run_begins,
    without,
)
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, NEVER_US
from freshet.schemas.event import OFFSET as OFFSET_COLUMN
from freshet.schemas.event import PARTITION as PARTITION_COLUMN
from freshet.schemas.plan import PARTITION_BITS, Aggregate, Exclude, Range, Rows, ViewPlan
from freshet.schemas.view import CREATED, NOWHERE, VERSION, Kind

Bools = npt.NDArray[np.bool_]

_AVAILABLE, _EVENTS = "available_at", "events"
_COMPACT_MIN_POSITIONS, _COMPACTED_POSITIONS, _COMPACTED_PER_EVENT = 1 << 14, 1 << 12, 8
_ROWS_MAX = 1 << 17
_CODES_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class WindowedRows:
    """Rows of one batch before their outer expressions are computed.

    `table` has the entity, `event_timestamp`, `created`, `_version`, `_partition`, `_offset`, the payload and the
    window values. `available_at` (µs, int64) is when the event that made or corrected the row became readable in Kafka,
    or when a tick was due; `kinds` says what made each row, as `Kind`'s numbers; `newest` marks the last row of each
    entity here.
    """

    table: pa.Table
    available_at: pa.Array
    kinds: pa.Array
    newest: pa.Array


class _Instants(NamedTuple):
    """Instants at which rows are to be written: whose, when, by what and which event, where later ones start."""

    slots: Ints
    times: Ints
    kinds: npt.NDArray[np.int8]
    causes: Ints
    ends: Ints

    def taken(self, which: Bools | Ints) -> "_Instants":
        """Return some of them, or all in another order."""
        slots, times, kinds, causes, ends = self
        return _Instants(slots[which], times[which], kinds[which], causes[which], ends[which])


class WindowShard:
    """The events of one shard of one view that can still matter, and the folds over them.

    `add` takes the inputs of accepted events (`ViewPlan.inputs`) in any order, and the time; it gives the rows that
    they make or correct. `lagged` computes `ViewPlan.lagged_sql` where a plan has one.
    """

    def __init__(self, plan: ViewPlan, lagged: Callable[[pa.Table], pa.Table] | None = None) -> None:
        self.plan, self._lagged = plan, lagged
        self.clock_us = NEVER_US
        self._created_us = 0
        self._rules = tick_rules(plan)
        self._events = SumFold(_EVENTS)
        self._arguments = {
            index: {part: part(f"a{index}", _argument(plan, index)) for part in parts_of(functions)}
            for index, functions in _functions(plan).items()
        }
        self._payload = [ValueColumn(name, plan.inputs.field(name).type) for name in plan.payload]
        raw = (name for name in plan.inputs.names if name.startswith("_r"))
        self._raw = {name: ValueColumn(name, plan.inputs.field(name).type) for name in raw}
        self._segments = Segments(self._dtypes(), self._sums())
        self._due = DueSlots()

    # State

    def _dtypes(self) -> dict[str, np.dtype[np.generic]]:
        kept: dict[str, np.dtype[np.generic]] = {_AVAILABLE: np.dtype(np.int64)}
        if "_id" in self.plan.inputs.names:
            kept[EVENT_ID] = np.dtype(object)
        for part in self._parts():
            kept |= part.columns()
        for column in (*self._payload, *self._raw.values()):
            kept |= column.columns()
        return kept

    def _sums(self) -> list[str]:
        return [_EVENTS, *(name for part in self._parts() for name in part.sums())]

    def _parts(self) -> Iterator[Part]:
        for parts in self._arguments.values():
            yield from parts.values()

    @property
    def entities_count(self) -> int:
        """How many entities have state here."""
        return len(self._segments.slots)

    @property
    def events_count(self) -> int:
        """How many events and panes are kept."""
        return self._segments.live

    @property
    def created_us(self) -> int:
        """The newest `created` that a row was given."""
        return self._created_us

    @property
    def bytes_count(self) -> int:
        """How many bytes the columns take as far as they are used, Python values apart."""
        return sum(column.itemsize * self._segments.used for column in self._segments.columns.values())

    @property
    def element_bytes(self) -> int:
        """How many bytes an event or a pane takes, sums being of numbers of few digits, Python values of 24 bytes."""
        columns = sum(24 if dtype.hasobject else dtype.itemsize for dtype in self._segments.dtypes.values())
        sums = sum(part.usual_bytes if isinstance(part, Digits) else 8 * len(part.sums()) for part in self._parts())
        return columns + sums + 28  # time, partition, offset, and one event or more

    def state(self) -> dict[str, Any]:
        """Return all that must be kept to go on elsewhere: plain values and arrays."""
        segments = self._segments
        slots = np.flatnonzero(segments.end > segments.start)
        lengths = segments.end[slots] - segments.start[slots]
        elements = segments.elements(ranges(segments.start[slots], lengths), np.repeat(slots, lengths))
        return {
            "clock_us": self.clock_us,
            "created_us": self._created_us,
            "keys": [segments.keys[slot] for slot in slots.tolist()],
            "lengths": lengths,
            "columns": dict(elements),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.clock_us, self._created_us = state["clock_us"], state["created_us"]
        columns: Mapping[str, Column] = state["columns"]
        for part in self._parts():
            if isinstance(part, Digits):
                part.restore(columns)
        self._segments = Segments(self._dtypes(), self._sums())
        slots = np.repeat(self._segments.slots_of(state["keys"]), state["lengths"])
        if len(slots):
            self._update(self._segments.insert(slots, columns))
        self.pass_to(self.clock_us, self._created_us)

    def pass_to(self, clock_us: int, created_us: int) -> None:
        """Let time have passed: every row up to `clock_us` was written, with a `created` up to `created_us`."""
        self.clock_us, self._created_us = max(self.clock_us, clock_us), max(self._created_us, created_us)
        self._due = DueSlots()
        self._set_due(np.arange(len(self._segments.keys)))

    # A batch

    def absorb(self, inputs: pa.Table, horizon_us: int) -> None:
        """Take accepted events whose rows were written already; `pass_to` must follow the last of them."""
        self._insert(inputs.combine_chunks())
        self._compact(horizon_us, inputs.num_rows)

    def add(self, inputs: pa.Table | None, *, clock_us: int, horizon_us: int, now_us: int) -> Iterator[WindowedRows]:
        """Take accepted events, and let time pass to `clock_us`; give the rows they make or correct.

        Events before `horizon_us` (µs since the epoch) come no more. `now_us` is when the rows are made; `created`
        never falls behind what this shard said before.
        """
        before, self.clock_us = self.clock_us, max(self.clock_us, clock_us)
        changed = self._insert(inputs.combine_chunks()) if inputs is not None and inputs.num_rows else None
        touched = np.zeros(0, np.int64) if changed is None else changed.slots
        due = self._due.take(self.clock_us)
        if len(due):
            due = without(due, touched)
        for rows in _together(self._instants(changed, due, before)):
            yield from self._write(rows, now_us)
        self._set_due(np.append(touched, due))
        self._compact(min(horizon_us, self.clock_us), 0 if inputs is None else inputs.num_rows)

    def _instants(self, changed: Changed | None, due: Ints, before_us: int) -> Iterator[_Instants]:
        """Give the instants of all rows, a bounded number of ticks at once."""
        if changed is not None:
            yield self._changed_instants(changed, before_us)
        since = np.full(len(due), before_us)
        for some in self._chunks(due, since):
            yield self._ticked(due[some], since[some])

    def _insert(self, inputs: pa.Table) -> Changed:
        segments = self._segments
        columns: dict[str, Column] = {
            TIME: microseconds(inputs.column(EVENT_TIME)),
            PARTITION: inputs.column(PARTITION_COLUMN).to_numpy(),
            OFFSET: inputs.column(OFFSET_COLUMN).to_numpy(),
            _AVAILABLE: microseconds(inputs.column(AVAILABLE_AT)),
            _EVENTS: np.ones(inputs.num_rows, np.int64),
        }
        if EVENT_ID in segments.columns:
            columns[EVENT_ID] = np.array(inputs.column("_id").to_pylist(), object)
        for index, parts in self._arguments.items():
            if f"_a{index}" in inputs.column_names:
                columns |= self._lift(parts, inputs.column(f"_a{index}").combine_chunks())
        for column in (*self._payload, *self._raw.values()):
            columns |= column.lift(inputs.column(column.name).combine_chunks())
        changed = segments.insert(self._slots(inputs), columns)
        if self.plan.lags:
            self._lift_lagged(changed)
        self._update(changed)
        return changed

    def _lift(self, parts: Mapping[type[Part], Part], values: pa.Array) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for part in parts.values():
            columns |= part.lift(values)
            self._segments.add_sums(part.sums())
        return columns

    def _lift_lagged(self, changed: Changed) -> None:
        """Compute the arguments that need earlier events anew, from the first new event on."""
        assert self._lagged is not None
        segments, plan, at = self._segments, self.plan, changed.at
        starts = np.repeat(segments.start[changed.slots], changed.lengths)
        columns = {name: raw.lower(segments.columns, at) for name, raw in self._raw.items()}
        for index, lag in enumerate(plan.lags):
            earlier = np.where(at - lag.rows >= starts, at - lag.rows, -1)
            values = self._raw[lag.column].lower(segments.columns, earlier)
            if lag.default is not None:
                own = self._raw[lag.default].lower(segments.columns, at)
                values = pa.compute.if_else(pa.array(earlier < 0), own, values)
            columns[f"_l{index}"] = values
        made = self._lagged(pa.table(columns))
        for index, parts in self._arguments.items():
            if f"_a{index}" in made.column_names:
                segments.put(changed, self._lift(parts, made.column(f"_a{index}").combine_chunks()))

    def _update(self, changed: Changed) -> None:
        """Bring all folds up to date."""
        for part in self._parts():
            part.update(self._segments, changed)

    def _slots(self, inputs: pa.Table) -> Ints:
        """Return the slot of each event's entity."""
        columns = [inputs.column(column.name).combine_chunks() for column in self.plan.view.entity]
        codes, room = np.zeros(inputs.num_rows, np.int64), 1
        for column in columns:
            encoded = column.dictionary_encode()
            if room * len(encoded.dictionary) > _CODES_MAX:
                found, codes = np.unique(codes, return_inverse=True)  # no more than events: so one column more fits
                room = len(found)
            codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy(zero_copy_only=False)
            room *= len(encoded.dictionary)
        if len(columns) == 1:
            return self._segments.slots_of([(value,) for value in encoded.dictionary.to_pylist()])[codes]
        _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
        keys = [*zip(*(column.take(firsts).to_pylist() for column in columns), strict=True)]
        return self._segments.slots_of(keys)[inverse]

    # Which rows

    def _changed_instants(self, changed: Changed, before_us: int) -> _Instants:
        """Return the instants of rows that new events make or correct, and of ticks since that are due by now."""
        segments, at, firsts = self._segments, changed.at, changed.firsts
        owners = np.repeat(np.arange(len(changed.slots)), changed.lengths)
        latest = np.maximum.accumulate(np.where(changed.is_new, np.arange(len(at)), -1))

        times = segments.time[at]
        stands = np.append(times[1:] != times[:-1], True)  # a row does, at the last event of its time
        stands[firsts[1:] - 1] = True
        since = np.minimum(
            segments.time[at[changed.is_new]][np.flatnonzero(run_begins(owners[changed.is_new]))] - 1, before_us
        )
        who, ticks, _ = self._ticks(changed.slots, since)
        instants = np.append(times[stands], ticks)
        indices = np.append(owners[stands], who)
        is_tick = np.arange(len(instants)) >= int(stands.sum())

        slots = changed.slots[indices]
        high = segments.search(TIME, segments.start[slots], segments.end[slots], instants + 1)
        offset = firsts[indices] + high - 1 - changed.starts[indices]
        inside = high > changed.starts[indices]
        cause = np.where(inside, latest[np.where(inside, offset, 0)], -1)
        caused = cause >= firsts[indices]
        causes = np.where(caused, at[cause], high - 1)
        rises = caused & (segments.time[causes] >= self._reach_edges(instants))
        old = is_tick & (instants <= before_us)
        existed = np.zeros(len(instants), np.bool_)
        existed[old] = self._existed(changed, firsts, indices[old], instants[old])
        wanted = np.where(is_tick, (instants > before_us) | rises | (old & ~existed), rises)
        kinds = np.where(
            is_tick,
            np.where(instants > before_us, Kind.DECAY, Kind.CORRECTION),
            np.where(segments.time[causes] == instants, Kind.EVENT, Kind.CORRECTION),
        ).astype(np.int8)
        return _sorted(_Instants(slots, instants, kinds, causes, high).taken(wanted))

    def _existed(self, changed: Changed, firsts: Ints, indices: Ints, ticks: Ints) -> Bools:
        """Say which ticks an older event had made already."""
        segments, slots = self._segments, changed.slots[indices]
        news: Ints = np.append(0, np.cumsum(changed.is_new))

        def new_before(positions: Ints) -> Ints:
            inside = np.maximum(positions - changed.starts[indices], 0)
            found: Ints = news[firsts[indices] + inside]
            return found

        existed = np.zeros(len(ticks), np.bool_)
        for rule in self._rules:
            low = segments.search(TIME, segments.start[slots], segments.end[slots], rule.first_after(ticks - 1))
            high = segments.search(TIME, low, segments.end[slots], rule.first_after(ticks))
            existed |= high - low > new_before(high) - new_before(low)
        return existed

    def _ticks(self, slots: Ints, since: Ints) -> tuple[Ints, Ints, Ints]:
        """Return the ticks after `since` of each slot, up to the clock, at which no event stands.

        Of each the slot's index, the instant, and where the slot's later events start.
        """
        segments = self._segments
        owners, instants = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for rule in self._rules:
            low, high = self._ticking(rule, slots, since)
            at = ranges(low, high - low)
            owners.append(np.repeat(np.arange(len(slots)), high - low))
            instants.append(rule.ticks(segments.time[at]))
        if len(owners) == 1:
            return owners[0], instants[0], owners[0]
        who, ticks = np.concatenate(owners), np.concatenate(instants)
        order = np.lexsort((ticks, who))
        who, ticks = who[order], ticks[order]
        distinct = run_begins(who, ticks)
        who, ticks = who[distinct], ticks[distinct]
        whose = slots[who]
        at = segments.search(TIME, segments.start[whose], segments.end[whose], ticks)
        free = (at == segments.end[whose]) | (segments.time[np.minimum(at, len(segments.time) - 1)] != ticks)
        return who[free], ticks[free], at[free]

    def _ticking(self, rule: TickRule, slots: Ints, since: Ints) -> tuple[Ints, Ints]:
        """Return the positions [low, high) of each slot's events whose tick lies after `since`, up to the clock."""
        segments, clock = self._segments, np.full(len(slots), self.clock_us)
        low = segments.search(TIME, segments.start[slots], segments.end[slots], rule.first_after(since))
        return low, segments.search(TIME, low, segments.end[slots], rule.first_after(clock))

    def _ticked(self, slots: Ints, since: Ints) -> _Instants:
        """Return the ticks of slots that nothing else befell."""
        who, ticks, later = self._ticks(slots, since)
        return _Instants(slots[who], ticks, np.full(len(ticks), Kind.DECAY, np.int8), later - 1, later)

    def _chunks(self, slots: Ints, since: Ints) -> Iterator[slice]:
        """Cut slots such that a bounded number of ticks is made at once."""
        if not len(slots):
            return
        if int((self._segments.end[slots] - self._segments.start[slots]).sum()) * len(self._rules) <= _ROWS_MAX:
            yield slice(0, len(slots))
            return
        counts = np.ones(len(slots), np.int64)
        for rule in self._rules:
            low, high = self._ticking(rule, slots, since)
            counts += high - low
        bounds = np.flatnonzero(np.diff(np.cumsum(counts) // _ROWS_MAX, prepend=-1))
        for start, end in zip(bounds.tolist(), [*bounds[1:].tolist(), len(slots)], strict=True):
            yield slice(start, end)

    def _set_due(self, slots: Ints) -> None:
        """Find out when each slot's next tick is due."""
        if not self._rules or not len(slots):
            return
        segments, clock = self._segments, np.full(len(slots), self.clock_us)
        soonest = np.full(len(slots), NEVER_DUE_US)
        for rule in self._rules:
            end = segments.end[slots]
            at = segments.search(TIME, segments.start[slots], end, rule.first_after(clock))
            ticks = rule.ticks(segments.time[np.minimum(at, len(segments.time) - 1)])
            soonest = np.where(at < end, np.minimum(soonest, ticks), soonest)
        self._due.set(slots, soonest)

    def _reach_edges(self, instants: Ints) -> Ints:
        """Return the time of the oldest event that can matter at each instant."""
        edges = np.full(len(instants), NEVER_US)
        if self.plan.reach_us is not None:
            edges = np.min([low_edges(frame, instants) for frame in self.plan.ranges], axis=0)
        return edges

    # Their values

    def _write(self, rows: _Instants, now_us: int) -> Iterator[WindowedRows]:
        """Fold the frames of each row."""
        if not len(rows.slots):
            return
        segments, plan = self._segments, self.plan
        slots, instants, high = rows.slots, rows.times, rows.ends
        start, current = segments.start[slots], high - 1
        lows: dict[Range | Rows, Ints] = {
            frame: segments.search(TIME, start, high, low_edges(frame, instants))
            for frame in plan.ranges
            if frame.preceding_us is not None
        }
        created = max(now_us, self._created_us + 1) + np.arange(len(slots))
        self._created_us = int(created[-1])
        columns: dict[str, pa.Array] = {}
        keys: list[Any] = [segments.keys[slot] for slot in slots.tolist()]
        for index, column in enumerate(plan.view.entity):
            columns[column.name] = pa.array([key[index] for key in keys], column.type)
        columns[EVENT_TIME] = timestamps(instants)
        columns[CREATED] = timestamps(created)
        reach = start if plan.reach_us is None else np.min([lows[frame] for frame in plan.ranges], axis=0)
        columns[VERSION] = pa.array(self._events.fold(Spans(segments, start, ((reach, high),))), pa.int64())
        partitions: Ints = segments.columns[PARTITION][current] & ((1 << PARTITION_BITS) - 1)  # type: ignore[operator]
        columns[PARTITION_COLUMN] = pa.array(np.where(high > reach, partitions, NOWHERE), pa.int32())
        columns[OFFSET_COLUMN] = pa.array(
            np.where(high > reach, segments.columns[OFFSET][current], NOWHERE), pa.int64()
        )
        for value in self._payload:
            columns[value.name] = value.lower(segments.columns, current)
        spans = {frame: self._spans(frame, start, lows.get(frame, start), instants, high) for frame in plan.frames}
        for index, aggregate in enumerate(plan.aggregates):
            columns[f"_w{index}"] = self._value(aggregate, spans[aggregate.frame])
        newest = np.append(slots[1:] != slots[:-1], True)  # numpy takes values
        available: Ints = segments.columns[_AVAILABLE][rows.causes]  # type: ignore[assignment]  # int64 by construction
        available = np.where(rows.kinds == Kind.DECAY, np.maximum(available, instants), available)
        yield WindowedRows(pa.table(columns), pa.array(available), pa.array(rows.kinds), pa.array(newest))

    def _value(self, aggregate: Aggregate, spans: Spans) -> pa.Array:
        """Return an aggregate's values."""
        if aggregate.argument is None:
            return pa.array(self._events.fold(spans), pa.int64())
        parts = self._arguments[aggregate.argument]
        kind = _argument(self.plan, aggregate.argument)
        return FUNCTIONS[aggregate.function].lower(Folded(parts, kind, spans, aggregate.parameter))

    def _spans(self, frame: Range | Rows, start: Ints, low: Ints, instants: Ints, high: Ints) -> Spans:
        """Return the positions of each row's frame; one in time begins at `low`, `high` is behind its current row."""
        segments = self._segments
        if isinstance(frame, Rows):
            low = start if frame.preceding is None else np.maximum(start, high - 1 - frame.preceding)
            end = np.maximum(low, high - frame.ending)
        else:
            end = high
            if frame.ending_us:
                end = segments.search(TIME, low, high, instants - frame.ending_us + 1)
        if frame.exclude is Exclude.NOTHING:
            return Spans(segments, start, ((low, end),))
        if frame.exclude is Exclude.CURRENT_ROW:
            return Spans(segments, start, ((low, np.maximum(low, np.minimum(end, high - 1))),))
        ties = segments.search(TIME, start, high, segments.time[high - 1])
        before = (low, np.maximum(low, np.minimum(end, ties)))
        if frame.exclude is Exclude.GROUP:
            return Spans(segments, start, (before,))
        current = np.maximum(low, high - 1)
        return Spans(segments, start, (before, (current, np.maximum(current, end))))

    # What is forgotten

    def _compact(self, horizon_us: int, events_count: int) -> None:
        """Go round all entities once twice as much room was taken as they had, a few at a time: no batch waits for all.

        They are the more, the more events came, so that it is over before much room is taken again.
        """
        segments = self._segments
        if segments.sweeps or segments.taken >= max(_COMPACT_MIN_POSITIONS, 2 * segments.settled):
            self.compact(horizon_us, max(_COMPACTED_POSITIONS, _COMPACTED_PER_EVENT * events_count))

    def compact(self, horizon_us: int, most: int) -> None:
        """Forget events that can matter no more, and merge those that no frame will tell apart, into panes.

        No event older than the horizon will come, and every row to come lies at or after it. A call does so for the
        next entities, of up to `most` events and panes together, or for one; calls go round all of them.
        """
        segments = self._segments
        slots = segments.next_swept(most)
        if not segments.sweeps:
            return
        lengths = segments.end[slots] - segments.start[slots]
        at, owners = ranges(segments.start[slots], lengths), np.repeat(slots, lengths)
        begins, matters = panes(self.plan, segments, at, owners, horizon_us)
        at, owners, begins = at[matters], owners[matters], begins[matters]  # of a pane's events all matter, or none
        self._update(segments.replace(slots, at, owners, np.flatnonzero(begins), self._merge))

    def _merge(self, columns: Columns, firsts: Ints) -> Columns:
        """Return the columns of panes that are not of the last event of each."""
        merged: dict[str, Column] = {}
        for part in self._parts():
            merged |= part.merge(columns, firsts)
        return merged


def _together(found: Iterator[_Instants]) -> Iterator[_Instants]:
    """Put what is found together while it is little: to fold the frames of few rows costs as much as of many."""
    waiting: list[_Instants] = []
    for rows in found:
        if waiting and sum(len(some.slots) for some in (*waiting, rows)) > _ROWS_MAX:
            yield _Instants(*map(np.concatenate, zip(*waiting, strict=True)))
            waiting = []
        waiting.append(rows)
    if waiting:
        yield waiting[0] if len(waiting) == 1 else _Instants(*map(np.concatenate, zip(*waiting, strict=True)))


def _sorted(rows: _Instants) -> _Instants:
    return rows.taken(np.lexsort((rows.times, rows.slots)))


def _functions(plan: ViewPlan) -> dict[int, Sequence[str]]:
    """Return the functions of each argument."""
    found: dict[int, list[str]] = {}
    for made in plan.aggregates:
        if made.argument is not None:
            found.setdefault(made.argument, []).append(made.function)
    return found  # type: ignore[return-value]  # a list is a sequence


def _argument(plan: ViewPlan, index: int) -> pa.DataType:
    """Return the type of an argument."""
    schema = plan.inputs if f"_a{index}" in plan.inputs.names else plan.arguments
    return schema.field(f"_a{index}").type
