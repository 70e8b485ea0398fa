"""Each entity's events, ordered by (event time, partition, offset), in one contiguous segment of shared columns.

A segment has room to grow, so that events in order are appended in place; one that is full moves to the end of the
columns with twice the room. Events out of order are merged into their segment's tail. Positions are only valid until
the next `insert`.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Column: TypeAlias = npt.NDArray[np.generic]

TIME, PARTITION, OFFSET = "time", "partition", "offset"
_ORDER = (TIME, PARTITION, OFFSET)
_ROOM_EVENTS = 2


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return the positions of every range, one after the other.

    >>> ranges(np.array([10, 20]), np.array([2, 3])).tolist()
    [10, 11, 20, 21, 22]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def blank(size: int, dtype: np.dtype[np.generic]) -> Column:
    """Return a column of nothing: zeros, or None where Python values are kept."""
    return np.full(size, None, dtype) if dtype.hasobject else np.zeros(size, dtype)


@dataclass(frozen=True, slots=True)
class Changed:
    """What an insert touched: for each touched slot the positions from the first new event to the segment's end.

    `starts` and `ends` bound those positions; `is_new` says, range after range, which of them are new events. Where a
    segment moved to get room, `written` is its new first position; elsewhere it equals `starts`.
    """

    slots: Ints
    written: Ints
    starts: Ints
    ends: Ints
    is_new: npt.NDArray[np.bool_]


@dataclass
class Segments:
    """The ordered events of many entities. `dtypes` names the columns kept beside time, partition and offset."""

    dtypes: Mapping[str, np.dtype[np.generic]]
    keys: list[Hashable] = field(default_factory=list)
    slots: dict[Hashable, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order: dict[str, np.dtype[np.generic]] = {
            TIME: np.dtype(np.int64), PARTITION: np.dtype(np.int32), OFFSET: np.dtype(np.int64),
        }  # fmt: skip
        self.columns: dict[str, Column] = {name: blank(0, dtype) for name, dtype in {**order, **self.dtypes}.items()}
        self.used = 0
        """Positions of the columns that belong to some segment."""
        self.start: Ints = np.zeros(0, np.int64)
        self.head: Ints = np.zeros(0, np.int64)
        """The first event that is still kept; those before it in the segment were forgotten."""
        self.end: Ints = np.zeros(0, np.int64)
        self.room: Ints = np.zeros(0, np.int64)
        """Where the segment's room ends."""
        self.forgotten: Ints = np.zeros(0, np.int64)
        """How many events each entity had before its head."""

    @property
    def time(self) -> Ints:
        """Event time of every position, µs since the epoch."""
        return self.columns[TIME]  # type: ignore[return-value]  # TIME is int64 by construction

    def add_columns(self, dtypes: Mapping[str, np.dtype[np.generic]]) -> None:
        """Keep further columns; events that are already here have zeros in them."""
        for name, dtype in dtypes.items():
            if name not in self.columns:
                self.columns[name] = blank(len(self.time), dtype)

    def slots_of(self, keys: Sequence[Hashable]) -> Ints:
        """Return the slot of each key; a key not seen before gets a new one."""
        known = self.slots
        found = np.empty(len(keys), np.int64)
        for index, key in enumerate(keys):
            slot = known.get(key)
            if slot is None:
                slot = known[key] = len(self.keys)
                self.keys.append(key)
            found[index] = slot
        missing = len(self.keys) - len(self.start)
        if missing > 0:
            grown = max(missing, len(self.start) // 2)
            for name in ("start", "head", "end", "room", "forgotten"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(grown, np.int64)]))
        return found

    def insert(self, slots: Ints, columns: Mapping[str, Column]) -> Changed:
        """Put events where their order says; `slots` says whose each is. Returns what changed.

        `columns` need not name those that a fold derives, such as prefixes.
        """
        order = np.lexsort((columns[OFFSET], columns[PARTITION], columns[TIME], slots))
        slots = slots[order]
        columns = {name: column[order] for name, column in columns.items()}
        firsts = np.flatnonzero(np.concatenate([[True], slots[1:] != slots[:-1]]))
        counts = np.diff(np.append(firsts, len(slots)))
        touched = slots[firsts]
        moved = self._make_room(touched, counts)

        starts = self._insertion_points(touched, {name: columns[name][firsts] for name in _ORDER})
        tails = self.end[touched] - starts
        late = tails > 0
        lengths = tails + counts
        destination = ranges(starts, lengths)
        is_new = np.ones(len(destination), np.bool_)
        if not late.any():
            for name, column in columns.items():
                self.columns[name][destination] = column
        else:
            is_new = self._merge(touched, starts, tails, counts, columns, destination)
        self.end[touched] += counts
        written = np.where(moved, self.start[touched], starts)
        return Changed(touched, written, starts, starts + lengths, is_new)

    def _insertion_points(self, touched: Ints, first: Mapping[str, Column]) -> Ints:
        """Return where each touched segment's first new event belongs."""
        end = self.end[touched]
        last = np.maximum(end - 1, 0)
        kept = end > self.head[touched]
        behind = np.zeros(len(touched), np.bool_)
        tied = kept.copy()
        for name in _ORDER:
            stored: Any = self.columns[name][last] if self.used else np.zeros(len(touched), np.int64)
            behind |= tied & (first[name] < stored)
            tied &= first[name] == stored
        points = end.copy()
        for index in np.flatnonzero(behind):
            low, high = int(self.head[touched[index]]), int(end[index])
            for name in _ORDER:  # narrow to the events that tie on what was compared so far
                column, value = self.columns[name], first[name][index]
                left = low + int(np.searchsorted(column[low:high], value, "left"))
                high = low + int(np.searchsorted(column[low:high], value, "right"))
                low = left
            points[index] = low
        return points

    def _merge(
        self, touched: Ints, starts: Ints, tails: Ints, counts: Ints, columns: Mapping[str, Column], destination: Ints
    ) -> npt.NDArray[np.bool_]:
        """Merge new events with the tails of their segments; returns which of the written positions are new."""
        old = ranges(starts, tails)
        owner = np.concatenate([np.repeat(np.arange(len(touched)), tails), np.repeat(np.arange(len(touched)), counts)])
        merged = {name: np.concatenate([self.columns[name][old], column]) for name, column in columns.items()}
        order = np.lexsort((merged[OFFSET], merged[PARTITION], merged[TIME], owner))
        for name, column in merged.items():
            self.columns[name][destination] = column[order]
        return order >= len(old)

    def _make_room(self, touched: Ints, counts: Ints) -> npt.NDArray[np.bool_]:
        """Move every segment that cannot take its new events to the end of the columns, with more room; say which."""
        full = self.end[touched] + counts > self.room[touched]
        if not full.any():
            return full
        moving, needed = touched[full], counts[full]
        kept = self.end[moving] - self.head[moving]
        room = np.maximum(_ROOM_EVENTS, 2 ** np.ceil(np.log2((kept + needed) * 1.5)).astype(np.int64))
        self._grow(self.used + int(room.sum()))
        old = ranges(self.head[moving], kept)
        begins = self.used + np.cumsum(room) - room
        new = ranges(begins, kept)
        for column in self.columns.values():
            column[new] = column[old]
        self.start[moving] = self.head[moving] = begins
        self.end[moving] = begins + kept
        self.room[moving] = begins + room
        self.used += int(room.sum())
        return full

    def _grow(self, needed: int) -> None:
        """Make every column at least `needed` long."""
        size = len(self.time)
        if needed <= size:
            return
        larger = max(needed, size * 3 // 2, 1024)
        for name, column in self.columns.items():
            grown = blank(larger, column.dtype)
            grown[: self.used] = column[: self.used]
            self.columns[name] = grown

    def forget(self, slots: Ints, before_us: int) -> None:
        """Forget the given entities' events that are older than `before_us`."""
        low, high = self.head[slots], self.end[slots]
        heads = self.first_at_or_after(low, high, np.full(len(slots), before_us))
        self.forgotten[slots] += heads - low
        self.head[slots] = heads

    def first_at_or_after(self, low: Ints, high: Ints, instants: Ints) -> Ints:
        """Return for each query the first position in [low, high) whose time is not before the instant.

        A binary search of all queries at once; `high` where there is none.
        """
        time = self.time
        low, high = low.copy(), high.copy()
        open_ = np.flatnonzero(low < high)
        while len(open_):
            middle = (low[open_] + high[open_]) >> 1
            before = time[middle] < instants[open_]
            low[open_[before]] = middle[before] + 1
            high[open_[~before]] = middle[~before]
            open_ = open_[low[open_] < high[open_]]
        return low

    @property
    def live(self) -> int:
        """How many positions hold an event that is still kept."""
        known = len(self.keys)
        return int((self.end[:known] - self.head[:known]).sum())

    def compact(self, *, keep_counts: bool) -> None:
        """Give back the room of moved and forgotten events; drop entities with nothing left.

        With `keep_counts` an entity stays for the sake of its number of forgotten events.
        """
        known = len(self.keys)
        kept = self.end[:known] - self.head[:known]
        staying = np.flatnonzero((kept > 0) | (keep_counts & (self.forgotten[:known] > 0)))
        kept = kept[staying]
        room = np.where(kept > 0, np.maximum(_ROOM_EVENTS, kept + kept // 4), 0)
        old = ranges(self.head[staying], kept)
        begins = np.cumsum(room) - room
        new = ranges(begins, kept)
        self.used = int(room.sum())
        for name, column in self.columns.items():
            fresh = blank(max(self.used, 1024), column.dtype)
            fresh[new] = column[old]
            self.columns[name] = fresh
        self.forgotten = self.forgotten[staying]
        self.keys = [self.keys[slot] for slot in staying]
        self.slots = {key: slot for slot, key in enumerate(self.keys)}
        self.start, self.head, self.end, self.room = begins, begins.copy(), begins + kept, begins + room
