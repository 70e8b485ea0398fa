"""One shard of one view: which rows a batch of accepted events makes or corrects, and their values.

A row stands at every event time of an entity. It is written again exactly when its version rises: when a batch brings
an event into its reach. So the greatest version of (entity, event_timestamp) is complete, whatever came in which order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from freshet.flows.steps.windows.aggregates import AGGREGATES, AggregateState, CountAll
from freshet.flows.steps.windows.segments import OFFSET, PARTITION, TIME, Changed, Column, Ints, Segments, ranges
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME
from freshet.schemas.event import OFFSET as OFFSET_COLUMN
from freshet.schemas.event import PARTITION as PARTITION_COLUMN
from freshet.schemas.plan import ViewPlan
from freshet.schemas.view import CREATED, VERSION

_COMPACT_MIN_POSITIONS = 1 << 16


@dataclass(frozen=True, slots=True)
class WindowedRows:
    """Rows of one batch before their outer expressions are computed.

    `table` has the entity, `event_timestamp`, `created`, `_version`, `_partition`, `_offset`, the payload and the
    window values. `available_at` (µs, int64) is when the event that made or corrected the row became readable in Kafka;
    `corrected` marks rows whose own events are all older than this batch; `newest` the last row of each entity here.
    """

    table: pa.Table
    available_at: pa.Array
    corrected: pa.Array
    newest: pa.Array


class WindowShard:
    """The events of one shard of one view that can still matter, and the folds over them.

    `add` takes the inputs of accepted events (`ViewPlan.inputs`) in any order; it returns rows they make or correct.
    """

    def __init__(self, plan: ViewPlan) -> None:
        self.plan = plan
        self._aggregates: list[AggregateState] = []
        self._inputs: list[int | None] = []
        kept: dict[str, np.dtype[np.generic]] = {_AVAILABLE: np.dtype(np.int64)}
        for index, aggregate in enumerate(plan.aggregates):
            if aggregate.argument is None:
                state: AggregateState = CountAll()
            else:
                kind = plan.inputs.field(f"_a{aggregate.argument}").type
                state = AGGREGATES[aggregate.function](f"w{index}", kind)
            self._aggregates.append(state)
            self._inputs.append(aggregate.argument)
            kept |= state.columns()
        for name in plan.payload:
            kept |= _payload_columns(name, plan.inputs.field(name).type)
        self._segments = Segments(kept)
        self._created_us = 0

    @property
    def entities_count(self) -> int:
        """How many entities have state here."""
        return len(self._segments.keys)

    @property
    def events_count(self) -> int:
        """How many events are kept."""
        return self._segments.live

    def add(self, inputs: pa.Table, *, horizon_us: int, now_us: int) -> WindowedRows | None:
        """Take accepted events; return the rows they make or correct, or None if there are none.

        Events before `horizon_us` (µs since the epoch) can matter no more, and are forgotten. `now_us` is when the rows
        are made; `created` never falls behind what this shard said before.
        """
        if inputs.num_rows == 0:
            return None
        inputs = inputs.combine_chunks()
        segments = self._segments
        slots = self._slots(inputs)
        segments.forget(np.unique(slots), horizon_us)
        changed = segments.insert(slots, self._lift(inputs))
        for state in self._aggregates:
            state.update(segments, changed)
        positions, owners, causes = self._rows(changed)
        rows = self._values(positions, owners, causes, now_us)
        self._compact(horizon_us)
        return rows

    def _slots(self, inputs: pa.Table) -> Ints:
        """Return the slot of each event's entity."""
        codes = np.zeros(inputs.num_rows, np.int64)
        values: list[list[object]] = []
        for column in self.plan.view.entity:
            encoded = inputs.column(column.name).combine_chunks().dictionary_encode()
            values.append(encoded.dictionary.to_pylist())
            codes = codes * len(values[-1]) + encoded.indices.to_numpy(zero_copy_only=False)
        if len(values) == 1:
            return self._segments.slots_of([(value,) for value in values[0]])[codes]
        distinct, inverse = np.unique(codes, return_inverse=True)
        keys = []
        for code in distinct.tolist():
            key: tuple[object, ...] = ()
            left = code
            for domain in reversed(values):
                left, index = divmod(left, len(domain))
                key = (domain[index], *key)
            keys.append(key)
        return self._segments.slots_of(keys)[inverse]

    def _lift(self, inputs: pa.Table) -> Mapping[str, Column]:
        """Return everything that is kept of each event."""
        columns: dict[str, Column] = {
            TIME: _microseconds(inputs.column(EVENT_TIME)),
            PARTITION: inputs.column(PARTITION_COLUMN).to_numpy(),
            OFFSET: inputs.column(OFFSET_COLUMN).to_numpy(),
            _AVAILABLE: _microseconds(inputs.column(AVAILABLE_AT)),
        }
        for state, argument in zip(self._aggregates, self._inputs, strict=True):
            if argument is not None:
                columns |= state.lift(inputs.column(f"_a{argument}").combine_chunks())
                self._segments.add_columns(state.columns())
        for name in self.plan.payload:
            columns |= _lift_payload(name, inputs.column(name).combine_chunks())
        return columns

    def _rows(self, changed: Changed) -> tuple[Ints, Ints, Ints]:
        """Return the positions of rows whose version rose, their slots, and the new event that is the cause of each.

        A row stands at the last event of its time; its cause is the newest of the new events up to there.
        """
        lengths = changed.ends - changed.starts
        at = ranges(changed.starts, lengths)
        owner = np.repeat(changed.slots, lengths)
        times = self._segments.time[at]
        firsts = np.cumsum(lengths) - lengths
        rises = np.append(times[1:] != times[:-1], True)  # numpy takes values
        rises[firsts[1:] - 1] = True
        cause = np.maximum.accumulate(np.where(changed.is_new, np.arange(len(at)), -1))
        if self.plan.reach_us is not None:
            rises &= times - times[cause] <= self.plan.reach_us
        return at[rises], owner[rises], at[cause[rises]]

    def _values(self, positions: Ints, owners: Ints, causes: Ints, now_us: int) -> WindowedRows:
        """Fold the frames of each row."""
        segments, plan = self._segments, self.plan
        head, high, instants = segments.head[owners], positions + 1, segments.time[positions]
        low: dict[int, Ints] = {}
        for preceding in {aggregate.frame.preceding_us for aggregate in plan.aggregates} | ({plan.reach_us} - {None}):
            assert preceding is not None
            low[preceding] = segments.first_at_or_after(head, high, instants - preceding)
        reach = plan.reach_us
        versions: Ints = segments.forgotten[owners] + high - head if reach is None else high - low[reach]
        created = max(now_us, self._created_us + 1) + np.arange(len(positions))
        self._created_us = int(created[-1]) if len(created) else self._created_us
        columns: dict[str, pa.Array] = {}
        keys = [segments.keys[slot] for slot in owners.tolist()]
        for index, column in enumerate(plan.view.entity):
            columns[column.name] = pa.array([key[index] for key in keys], column.type)
        columns[EVENT_TIME] = _timestamps(instants)
        columns[CREATED] = _timestamps(created)
        columns[VERSION] = pa.array(versions, pa.int64())
        columns[PARTITION_COLUMN] = pa.array(segments.columns[PARTITION][positions], pa.int32())
        columns[OFFSET_COLUMN] = pa.array(segments.columns[OFFSET][positions], pa.int64())
        for name in plan.payload:
            columns[name] = _lower_payload(name, plan.inputs.field(name).type, segments.columns, positions)
        for index, (state, aggregate) in enumerate(zip(self._aggregates, plan.aggregates, strict=True)):
            columns[f"_w{index}"] = state.fold(segments, low[aggregate.frame.preceding_us], high)
        newest = np.append(owners[1:] != owners[:-1], True)[: len(owners)]  # numpy takes values
        available = pa.array(segments.columns[_AVAILABLE][causes], pa.int64())
        corrected = pa.array(segments.time[causes] != instants)
        return WindowedRows(pa.table(columns), available, corrected, pa.array(newest))

    def _compact(self, horizon_us: int) -> None:
        """Give memory back once most of it is unused."""
        segments = self._segments
        if segments.used < _COMPACT_MIN_POSITIONS or segments.used < 3 * segments.live:
            return
        segments.forget(np.arange(len(segments.keys)), horizon_us)
        segments.compact(keep_counts=self.plan.reach_us is None)
        for state in self._aggregates:
            state.rebuild(segments)


_AVAILABLE = "available_at"


def _microseconds(column: pa.ChunkedArray) -> Ints:
    return column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]  # untyped


def _timestamps(microseconds: Ints) -> pa.Array:
    return pa.array(microseconds, pa.int64()).cast(pa.timestamp("us", "UTC"))


def _fixed_width(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or _is_time(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _storage(kind: pa.DataType) -> pa.DataType:
    """The plain type whose bits a fixed-width column is kept as."""
    if _is_time(kind):
        return pa.int64() if kind.bit_width == 64 else pa.int32()
    return kind


def _payload_columns(name: str, kind: pa.DataType) -> dict[str, np.dtype[np.generic]]:
    if not _fixed_width(kind):
        return {name: np.dtype(object)}
    return {name: np.dtype(_storage(kind).to_pandas_dtype()), f"{name}.null": np.dtype(np.bool_)}


def _lift_payload(name: str, values: pa.Array) -> dict[str, Column]:
    if not _fixed_width(values.type):
        kept = np.empty(len(values), object)
        kept[:] = values.to_pylist()
        return {name: kept}
    storage = _storage(values.type)
    zero = False if pa.types.is_boolean(storage) else pa.scalar(0).cast(storage)
    plain = values.cast(storage).fill_null(zero).to_numpy(zero_copy_only=False)
    return {name: plain, f"{name}.null": values.is_null().to_numpy(zero_copy_only=False)}


def _lower_payload(name: str, kind: pa.DataType, columns: Mapping[str, Column], positions: Ints) -> pa.Array:
    values = columns[name][positions]
    if not _fixed_width(kind):
        return pa.array(values, kind)
    return pa.array(values, _storage(kind), mask=columns[f"{name}.null"][positions]).cast(kind)
