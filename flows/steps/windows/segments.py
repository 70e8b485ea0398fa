"""Each entity's events, ordered by (event time, event id, partition, offset), in one contiguous segment of columns.

An element of a segment is an event, or a pane: neighbouring events that no frame will ever tell apart again, merged
into one. A segment has room to grow, so that events in order are appended in place; one that is full moves to where
there is twice the room. Events out of order are merged into their segment's tail. Positions are only valid until the
next `insert` or `replace`.

Room is won back by sweeps, a few segments at a time, in the order in which they stand: each moves close behind the one
before. What is then left between the last of them and those that got room meanwhile is given first.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Column: TypeAlias = npt.NDArray[np.generic]
Columns: TypeAlias = Mapping[str, Column]

TIME, EVENT_ID, PARTITION, OFFSET = "time", "event_id", "partition", "offset"
_ROOM_EVENTS, _SIZE_MIN = 2, 1024
_CUT_ABOVE = 3
"""Columns are made anew when so many times more of them was used than is."""


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return the positions of every range, one after the other.

    >>> ranges(np.array([10, 20]), np.array([2, 3])).tolist()
    [10, 11, 20, 21, 22]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def is_derived(column: str) -> bool:
    """Say whether a column is computed from others."""
    return column.endswith(".prefix")


def run_begins(*columns: Column) -> npt.NDArray[np.bool_]:
    """Say where a run of equal values begins: where any of the columns differs from the place before.

    >>> run_begins(np.array([7, 7, 8]), np.array([1, 2, 2])).tolist()
    [True, True, True]
    """
    begins = np.ones(len(columns[0]), np.bool_)
    begins[1:] = False
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return begins


def blank(size: int, dtype: np.dtype[np.generic]) -> Column:
    """Return a column of nothing: zeros, or None where Python values are kept."""
    return np.full(size, None, dtype) if dtype.hasobject else np.zeros(size, dtype)


def ordered(slots: Ints, columns: Columns) -> Ints:
    """Return the order of events: by slot, event time, event id, partition, offset. NULL ids come last.

    Ids are compared only where times are tied, which is rare.
    """
    time, ids = columns[TIME], columns.get(EVENT_ID)
    order = np.lexsort((columns[OFFSET], columns[PARTITION], time, slots))
    if ids is None:
        return order
    same = (slots[order[1:]] == slots[order[:-1]]) & (time[order[1:]] == time[order[:-1]])
    tied = np.flatnonzero(np.append(False, same) | np.append(same, False))  # numpy takes values
    if not len(tied):
        return order
    at = order[tied]
    known = np.array([event_id is not None for event_id in ids[at]])
    ranks = np.full(len(at), len(at))
    ranks[known] = np.unique(ids[at][known], return_inverse=True)[1]
    order[tied] = at[np.lexsort((columns[OFFSET][at], columns[PARTITION][at], ranks, time[at], slots[at]))]
    return order


@dataclass(frozen=True)
class Changed:
    """What an insert touched: for each touched slot the positions from its first new event's time to its end.

    `starts` and `ends` bound those positions; `is_new` says, range after range, which of them are new events. Where a
    segment moved to get room, `written` is its new first position; elsewhere it equals `starts`. `continues` says where
    the segment has events before them.
    """

    slots: Ints
    written: Ints
    starts: Ints
    ends: Ints
    is_new: npt.NDArray[np.bool_]
    continues: npt.NDArray[np.bool_]

    @cached_property
    def lengths(self) -> Ints:
        """How many positions each slot has."""
        return self.ends - self.starts

    @cached_property
    def firsts(self) -> Ints:
        """Where, in `at`, the positions of each slot begin."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def at(self) -> Ints:
        """All positions, slot after slot."""
        return ranges(self.starts, self.lengths)

    @cached_property
    def before(self) -> Ints:
        """The position before each slot's, where `continues`; some position elsewhere."""
        return np.maximum(self.starts - 1, 0)


@dataclass
class Segments:
    """The ordered events of many entities. `dtypes` names the columns kept beside time, partition and offset."""

    dtypes: Mapping[str, np.dtype[np.generic]]
    keys: list[Hashable | None] = field(default_factory=list)
    slots: dict[Hashable, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order: dict[str, np.dtype[np.generic]] = {
            TIME: np.dtype(np.int64), PARTITION: np.dtype(np.int32), OFFSET: np.dtype(np.int64),
        }  # fmt: skip
        self.columns: dict[str, Column] = {name: blank(0, dtype) for name, dtype in {**order, **self.dtypes}.items()}
        self.used = 0
        """From here on, no position of the columns was given to a segment."""
        self.taken = 0
        """How many positions were given to segments since the last sweep began."""
        self.settled = 0
        """How many of those the last sweep itself gave."""
        self._touched = 0
        """How much of the columns was ever used, up to the last sweep."""
        self._free = (0, 0)
        """Positions before `used` that are given first."""
        self._sweep: _Sweep | None = None
        self._vacant: list[int] = []
        """Slots without an entity; there are as many slots as there were ever entities at once."""
        self.start: Ints = np.zeros(0, np.int64)
        self.end: Ints = np.zeros(0, np.int64)
        self.room: Ints = np.zeros(0, np.int64)
        """Where the segment's room ends."""

    @property
    def time(self) -> Ints:
        """Event time of every position, µs since the epoch; of a pane, its last event's."""
        return self.columns[TIME]  # type: ignore[return-value]  # TIME is int64 by construction

    @property
    def live(self) -> int:
        """How many positions hold an event or a pane."""
        return int((self.end - self.start).sum())

    def add_columns(self, dtypes: Mapping[str, np.dtype[np.generic]]) -> None:
        """Keep further columns; events that are already here have zeros in them."""
        for name, dtype in dtypes.items():
            if name not in self.columns:
                self.columns[name] = blank(len(self.time), dtype)

    def slots_of(self, keys: Sequence[Hashable]) -> Ints:
        """Return the slot of each key; a key that has none gets one."""
        known = self.slots
        found = np.empty(len(keys), np.int64)
        for index, key in enumerate(keys):
            slot = known.get(key)
            if slot is None:
                if self._vacant:
                    slot = self._vacant.pop()
                    self.keys[slot] = key
                else:
                    slot = len(self.keys)
                    self.keys.append(key)
                known[key] = slot
            found[index] = slot
        missing = len(self.keys) - len(self.start)
        if missing > 0:
            grown = np.zeros(max(missing, len(self.start) // 2), np.int64)
            self.start, self.end, self.room = (np.append(old, grown) for old in (self.start, self.end, self.room))
        return found

    def insert(self, slots: Ints, columns: Columns) -> Changed:
        """Put events where their order says; `slots` says whose each is. Returns what changed.

        `columns` need not name those that a fold derives, such as prefixes.
        """
        order = ordered(slots, columns)
        slots = slots[order]
        columns = {name: column[order] for name, column in columns.items()}
        firsts = np.flatnonzero(run_begins(slots))
        counts = np.diff(np.append(firsts, len(slots)))
        touched = slots[firsts]
        moved = self._make_room(touched, counts)

        first_times: Ints = columns[TIME][firsts]  # type: ignore[assignment]  # TIME is int64 by construction
        starts = self.search(TIME, self.start[touched], self.end[touched], first_times)
        tails = self.end[touched] - starts
        lengths = tails + counts
        destination = ranges(starts, lengths)
        is_new = np.ones(len(destination), np.bool_)
        if not tails.any():
            for name, column in columns.items():
                self.columns[name][destination] = column
        else:
            is_new = self._merge(touched, starts, tails, counts, columns, destination)
        self.end[touched] += counts
        begins = self.start[touched]
        written = np.where(moved, begins, starts)
        return Changed(touched, written, starts, starts + lengths, is_new, starts > begins)

    def _merge(
        self, touched: Ints, starts: Ints, tails: Ints, counts: Ints, new: Columns, destination: Ints
    ) -> npt.NDArray[np.bool_]:
        """Merge new events into the tails of their segments; return which of the destinations are new events."""
        old = ranges(starts, tails)
        owners = np.append(np.repeat(touched, tails), np.repeat(touched, counts))
        both = {name: np.append(self.columns[name][old], column) for name, column in new.items()}
        order = ordered(owners, both)
        for name, column in both.items():
            self.columns[name][destination] = column[order]
        return order >= len(old)

    def _make_room(self, touched: Ints, counts: Ints) -> npt.NDArray[np.bool_]:
        """Move every segment that cannot take its new events to where it has more room; say which."""
        full = self.end[touched] + counts > self.room[touched]
        if not full.any():
            return full
        moving, needed = touched[full], counts[full]
        kept = self.end[moving] - self.start[moving]
        room = np.maximum(_ROOM_EVENTS, 2 ** np.ceil(np.log2((kept + needed) * 1.5)).astype(np.int64))
        old = ranges(self.start[moving], kept)
        begins = self._given(room)
        new = ranges(begins, kept)
        for column in self.columns.values():
            column[new] = column[old]
        self.start[moving] = begins
        self.end[moving] = begins + kept
        self.room[moving] = begins + room
        return full

    def _given(self, rooms: Ints) -> Ints:
        """Return where rooms of such sizes begin, one after the other, where no segment has anything."""
        count = int(rooms.sum())
        begin, end = self._free
        if begin + count <= end:
            self._free = (begin + count, end)
        else:
            begin = self.used
            self._grow(begin + count)
            self.used += count
        self.taken += count
        return begin + np.cumsum(rooms) - rooms

    def _grow(self, needed: int) -> None:
        """Make every column at least `needed` long, and one that soon will not be: no batch waits for all to grow.

        Zeros take no memory until they are written over; references to Python values do, and grow as late as they can.
        """
        for name, column in self.columns.items():
            if len(column) < needed:
                larger = len(column) * 3 // 2 if column.dtype.hasobject else len(column) * 2
                self._resize(name, max(needed, larger, _SIZE_MIN))
        plain = (name for name, column in self.columns.items() if not column.dtype.hasobject)
        shortest = min(plain, key=lambda name: len(self.columns[name]))
        if needed > len(self.columns[shortest]) // 2:
            self._resize(shortest, 2 * len(self.columns[shortest]))

    def _resize(self, name: str, size: int) -> None:
        """Make a column `size` long, which is no less than what is used."""
        resized = blank(size, self.columns[name].dtype)
        resized[: self.used] = self.columns[name][: self.used]
        self.columns[name] = resized

    def search(self, column: str, low: Ints, high: Ints, targets: Ints) -> Ints:
        """Return for each query the first position in [low, high) whose value is not below the target, else `high`.

        The column must not fall within [low, high). A binary search of all queries at once, by steps that halve, which
        are the same for all: so nothing is selected on the way.
        """
        values: Ints = self.columns[column]  # type: ignore[assignment]  # only such columns are searched
        last = low - 1  # of the positions before the target
        longest = int((high - low).max(initial=0))
        step = 1 << longest.bit_length() >> 1
        while step:
            at = last + step
            is_before = at < high
            is_before &= values[np.minimum(at, len(values) - 1)] < targets
            last += is_before * step
            step >>= 1
        return last + 1

    # Sweeps

    @property
    def sweeps(self) -> bool:
        """Whether a sweep has begun and is not over."""
        return self._sweep is not None

    def next_swept(self, most: int) -> Ints:
        """Return slots that `replace` is to be called with next: of one segment, or more with at most `most` elements.

        The first call begins a sweep. When there are none left, it is over.
        """
        if self._sweep is None:
            there = np.flatnonzero(self.end > self.start)
            begins = self.start[there]
            order = np.argsort(begins, kind="stable")
            self._sweep = _Sweep(there[order], begins[order], self._free[0], self.used)
            self.taken = 0
        slots = self._sweep.slots[self._sweep.next :][: max(most, 1)]
        lengths = np.cumsum(self.end[slots] - self.start[slots])
        slots = slots[: max(1, int(np.searchsorted(lengths, most, "right")))]
        self._sweep.next += len(slots)
        if not len(slots):
            self._finish(self._sweep)
        return slots

    def replace(
        self, slots: Ints, positions: Ints, owners: Ints, firsts: Ints, merge: Callable[[Columns, Ints], Columns]
    ) -> Changed:
        """Keep only some events of the segments to sweep next, merged into panes; drop entities with none left.

        `positions` are the events to keep, in order, and `owners` their slots, in the order of `slots`; a pane begins
        at each of `firsts`, and holds events of one entity. `merge` takes the columns of the kept events and `firsts`,
        and returns those of the panes. Returns the panes as what changed, for folds to be brought up to date: of
        derived columns they have nothing yet.
        """
        assert self._sweep is not None, "`next_swept` says which"
        begin_of = np.flatnonzero(run_begins(owners[firsts]))
        kept = np.diff(np.append(begin_of, len(firsts)))
        left = owners[firsts][begin_of]
        room = np.maximum(_ROOM_EVENTS, kept + kept // 4)
        elements = {name: column[positions] for name, column in self.columns.items() if not is_derived(name)}
        begins = self._swept_to(self._sweep, room)
        self._sweep.given += int(room.sum())
        new = ranges(begins, kept)
        if len(positions):
            for name, column in merge(elements, firsts).items():
                self.columns[name][new] = column
                if column.dtype.hasobject:
                    spare = ranges(begins + kept, room - kept)
                    self.columns[name][spare] = blank(len(spare), column.dtype)
        for bounds in (self.start, self.end, self.room):
            bounds[slots] = 0
        self.start[left], self.end[left], self.room[left] = begins, begins + kept, begins + room
        for slot in np.setdiff1d(slots, left).tolist():
            del self.slots[self.keys[slot]]
            self.keys[slot] = None
            self._vacant.append(slot)
        all_new, none_before = np.ones(len(firsts), np.bool_), np.zeros(len(left), np.bool_)
        return Changed(left, begins, begins, begins + kept, all_new, none_before)

    def _swept_to(self, sweep: "_Sweep", rooms: Ints) -> Ints:
        """Return where segments go: close behind those that were swept before, if all that was there is swept, too."""
        count, to = int(rooms.sum()), sweep.to
        end = sweep.used_before if sweep.next == len(sweep.slots) else int(sweep.begins[sweep.next])
        passes = not sweep.passed and to + count > sweep.free_begin
        if passes and self._free[0] > sweep.free_begin:  # there segments have got room meanwhile
            to = self._free[0]
        if to + count > end:
            return self._given(rooms)
        if passes:
            sweep.passed, self._free = True, (0, 0)
        sweep.to = to + count
        self.taken += count
        return to + np.cumsum(rooms) - rooms

    def _finish(self, sweep: "_Sweep") -> None:
        """Have what all segments left be given again, or the larger part of it; shorten columns that are too long.

        Segments stand before `sweep.to` and from `sweep.used_before` on; and, unless that was passed, where room was
        given of what was free before: from `sweep.free_begin` to where the rest of it begins.
        """
        rest_begin, _ = self._free
        left = [(sweep.to, sweep.free_begin), (rest_begin, sweep.used_before)]
        if sweep.passed or rest_begin == sweep.free_begin:
            left = [(sweep.to, sweep.used_before)]
        for column in self.columns.values():
            for start, end in left if column.dtype.hasobject else ():
                column[start:end] = blank(end - start, column.dtype)  # nothing there is referred to any more
        if self.used == sweep.used_before:
            self.used = left[-1][0]
            left.pop()
        self._free = max(left, key=lambda room: room[1] - room[0], default=(self.used, self.used))
        self._sweep, self.settled = None, sweep.given
        self._touched = max(self._touched, sweep.used_before)
        if self._touched > _CUT_ABOVE * max(self.used, _SIZE_MIN):
            self._touched = self.used
            for name in self.columns:
                self._resize(name, max(2 * self.used, _SIZE_MIN))


@dataclass
class _Sweep:
    """A sweep: the slots in the order of their segments, where those began, what was free, and how far it is.

    What is swept goes to `to` and on. `passed` says whether that is beyond where room is given that was free before.
    """

    slots: Ints
    begins: Ints
    free_begin: int
    used_before: int
    next: int = 0
    to: int = 0
    passed: bool = False
    given: int = 0
