"""Each entity's events, ordered by (event time, event id, partition, offset), in one contiguous segment of columns.

An element of a segment is an event, or a pane: neighbouring events that no frame will ever tell apart again, merged
into one. Of some columns the running sum is kept: at each element, the sum from its segment's first to it, modulo
2**64. So the sum of a run is a difference of two, exact where it lies in int64; to merge elements is to take the last.

Columns of one type stand side by side, eight in a row: what is moved or summed of an element is one line of memory.

A segment has room to grow, so that events in order are appended in place; one that is full moves to where
there is twice the room. Events out of order are merged into their segment's tail. Positions are only valid until the
next `insert` or `replace`.

Room is won back by sweeps, a few segments at a time, in the order in which they stand: each moves close behind the one
before. What is then left between the last of them and those that got room meanwhile is given first.
"""

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Column: TypeAlias = npt.NDArray[np.generic]
Columns: TypeAlias = Mapping[str, Column]

TIME, EVENT_ID, PARTITION, OFFSET = "time", "event_id", "partition", "offset"
_ROOM_EVENTS, _SIZE_MIN, _BLOCK_COLUMNS = 2, 1024, 8
_SEARCHED_ALONE = 4
"""So many queries a step of a binary search are searched one by one in less time than a step of all takes."""
_CUT_ABOVE = 3
"""Columns are made anew when so many times more of them was used than is."""


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return the positions of every range, one after the other.

    >>> ranges(np.array([10, 20]), np.array([2, 3])).tolist()
    [10, 11, 20, 21, 22]
    """
    ends: Ints = lengths.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    return (starts - (ends - lengths)).repeat(lengths) + np.arange(total)


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


def distinct(values: Ints) -> Ints:
    """Return the different values, in order. `np.unique` takes nine times as long: it makes a hash table first.

    >>> distinct(np.array([7, 3, 7]))
    array([3, 7])
    """
    found: Ints = np.sort(values)
    return found[run_begins(found)]


def without(values: Ints, others: Ints) -> Ints:
    """Return the values that others lack; both are in order, and the others different.

    >>> without(np.array([2, 3, 5, 8]), np.array([3, 8, 9]))
    array([2, 5])
    """
    lacking: Ints = values[others.searchsorted(values, "right") == others.searchsorted(values)]
    return lacking


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


def _gathered(values: npt.NDArray[Any], at: Ints) -> npt.NDArray[Any]:
    """Return what stands at some places. `take` is quicker, but first copies all of what is not contiguous."""
    return values.take(at, axis=0) if values.flags.c_contiguous else values[at]


def running_before(running: npt.NDArray[Any], positions: Ints, starts: Ints) -> npt.NDArray[Any]:
    """Return the running sums before positions in segments that start at `starts`; of one column, or of several."""
    before = _gathered(running, np.maximum(positions - 1, 0))
    before[positions == starts] = 0
    return before


@dataclass(frozen=True)
class Changed:
    """What an insert touched: for each touched slot the positions from its first new event's time to its end.

    `starts` and `ends` bound those positions; `is_new` says, range after range, which of them are new events. Where a
    segment moved to get room, `written` is its new first position; elsewhere it equals `starts`.
    """

    slots: Ints
    written: Ints
    starts: Ints
    ends: Ints
    is_new: npt.NDArray[np.bool_]

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


class _Block:
    """Columns of one type, side by side: `cells` has a row a position. `sums` says whether they are running sums."""

    def __init__(self, names: Sequence[str], dtype: np.dtype[np.generic], *, sums: bool) -> None:
        self.names, self.dtype, self.sums = tuple(names), dtype, sums
        self.cells = self.blank(0)

    def blank(self, size: int) -> npt.NDArray[Any]:
        """Return so many rows of nothing: zeros, or None where Python values are kept."""
        if self.dtype.hasobject:
            return np.full((size, len(self.names)), None, self.dtype)
        return np.zeros((size, len(self.names)), self.dtype)

    def resize(self, size: int, used: int) -> None:
        """Make it `size` long, with what is used in it: where it lies, unless somebody has a view of it."""
        if not self.dtype.hasobject:  # numpy would fill it up with zeros
            with contextlib.suppress(ValueError):
                self.cells.resize((size, len(self.names)))
                return
        resized = self.blank(size)
        resized[:used] = self.cells[:used]
        self.cells = resized

    def columns(self) -> Columns:
        """Return the columns, each a view."""
        return {name: self.cells[:, index] for index, name in enumerate(self.names)}

    def filled(self, columns: Columns, count: int) -> npt.NDArray[Any]:
        """Return rows of given columns; of those that are not given, of nothing."""
        rows = self.blank(count)
        for index, name in enumerate(self.names):
            if name in columns:
                rows[:, index] = columns[name]
        return rows

    def taken(self, positions: Ints) -> npt.NDArray[Any]:
        """Return the rows at positions."""
        return self.cells.take(positions, axis=0)


def _blocks(dtypes: Mapping[str, np.dtype[np.generic]], sums: Collection[str]) -> list[_Block]:
    """Put columns into blocks. Times are searched, so they stand close; Python values take memory, so they do alone."""
    kinds: dict[object, list[str]] = {}
    for name, dtype in dtypes.items():
        kinds.setdefault(name if name == TIME or dtype.hasobject else dtype, []).append(name)
    groups = [(names, dtypes[names[0]], False) for names in kinds.values()]
    if sums:
        groups.append(([*sums], np.dtype(np.int64), True))
    return [
        _Block(names[start : start + _BLOCK_COLUMNS], dtype, sums=are_sums)
        for names, dtype, are_sums in groups
        for start in range(0, len(names), _BLOCK_COLUMNS)
    ]


@dataclass
class Segments:
    """The ordered events of many entities.

    `dtypes` names the columns kept beside time, partition and offset; `sums` those of whole numbers of which the
    running sum is kept.
    """

    dtypes: Mapping[str, np.dtype[np.generic]]
    sums: Sequence[str] = ()
    keys: list[Hashable | None] = field(default_factory=list)
    slots: dict[Hashable, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order: dict[str, np.dtype[np.generic]] = {
            TIME: np.dtype(np.int64), PARTITION: np.dtype(np.int32), OFFSET: np.dtype(np.int64),
        }  # fmt: skip
        self._blocks = _blocks({**order, **self.dtypes}, self.sums)
        self.columns: dict[str, Column] = {}
        """Every column by its name, as far as it reaches; of `sums`, the running sums. Views: not to be kept."""
        self._place: dict[str, tuple[_Block, int]] = {}
        self._name()
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

    def _name(self) -> None:
        for block in self._blocks:
            self.columns |= block.columns()
            self._place |= {name: (block, index) for index, name in enumerate(block.names)}

    @property
    def time(self) -> Ints:
        """Event time of every position, µs since the epoch; of a pane, its last event's."""
        return self.columns[TIME]  # type: ignore[return-value]  # TIME is int64 by construction

    @property
    def live(self) -> int:
        """How many positions hold an event or a pane."""
        return int((self.end - self.start).sum())

    def add_sums(self, names: Collection[str]) -> None:
        """Keep running sums of further columns; of events that are already here they are of zeros."""
        missing = [name for name in names if name not in self.columns]
        if not missing:
            return
        self.sums = [*self.sums, *missing]
        made = _blocks({}, missing)
        if not self.used:  # sums that are known at first stand together
            self._blocks = [block for block in self._blocks if not block.sums]
            made = _blocks({}, self.sums)
        for block in made:
            block.cells = block.blank(len(self.time))
        self._blocks += made
        self._name()

    def summed(self, column: str) -> tuple[Sequence[str], npt.NDArray[np.int64]]:
        """Return which running sums stand beside a column's, and all of them: a row a position, in their order."""
        block = self._place[column][0]
        return block.names, block.cells

    def elements(self, positions: Ints, owners: Ints) -> Columns:
        """Return the columns of elements at positions, those of the segments of `owners`: of `sums`, the values."""
        return _Elements(self, positions, self.start[owners])

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

        Columns that are not given have nothing of these events. Of `sums` the values are given.
        """
        order = ordered(slots, columns)
        slots = slots[order]
        firsts = np.flatnonzero(run_begins(slots))
        counts = np.diff(np.append(firsts, len(slots)))
        touched = slots[firsts]
        moved = self._make_room(touched, counts)

        first_times: Ints = columns[TIME][order[firsts]]  # type: ignore[assignment]  # TIME is int64 by construction
        starts = self.search(TIME, self.start[touched], self.end[touched], first_times)
        tails = self.end[touched] - starts
        changed = Changed(
            touched,
            np.where(moved, self.start[touched], starts),
            starts,
            starts + tails + counts,
            np.ones(int((tails + counts).sum()), np.bool_),
        )
        old = ranges(starts, tails)
        if len(old):
            order = self._merged(changed, old, np.append(np.repeat(touched, tails), slots), columns, order)
        for block in self._blocks:
            rows = block.filled(columns, len(slots))
            if len(old):
                rows = np.concatenate([self._values(block, old, np.repeat(self.start[touched], tails)), rows])
            self._put(block, changed, rows.take(order, axis=0))
        self.end[touched] += counts
        return changed

    def _merged(self, changed: Changed, old: Ints, owners: Ints, new: Columns, order: Ints) -> Ints:
        """Return the order of elements that are here and, behind them, new events; note which then are new."""
        names = (TIME, PARTITION, OFFSET, *((EVENT_ID,) if EVENT_ID in new else ()))
        both = {name: np.append(self.columns[name][old], new[name][order]) for name in names}
        merged = ordered(owners, both)
        changed.is_new[:] = merged >= len(old)
        return np.append(np.arange(len(old)), len(old) + order)[merged]

    def put(self, changed: Changed, columns: Columns) -> None:
        """Put other values into some columns of what changed; of `sums` the values are given."""
        for name, values in columns.items():
            block, index = self._place[name]
            self._put(block, changed, values[:, None], slice(index, index + 1))

    def _put(self, block: _Block, changed: Changed, rows: npt.NDArray[Any], which: slice = slice(None)) -> None:
        """Put rows of some columns of a block into what changed; sums run on from what stands before."""
        if block.sums:
            running = np.cumsum(rows, axis=0)
            firsts = changed.firsts
            base = running_before(block.cells[:, which], changed.starts, self.start[changed.slots])
            base -= running[firsts] - rows[firsts]
            running += np.repeat(base, changed.lengths, axis=0)
            rows = running
        block.cells[changed.at, which] = rows

    def _values(self, block: _Block, positions: Ints, starts: Ints) -> npt.NDArray[Any]:
        """Return what elements have: of running sums, by how much they rise."""
        rows = block.taken(positions)
        return rows - running_before(block.cells, positions, starts) if block.sums else rows

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
        for block in self._blocks:
            block.cells[new] = block.taken(old)
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
        """Make every block at least `needed` long, and one that soon will not be: no batch waits for all to grow."""
        for block in self._blocks:
            if len(block.cells) < needed:
                self._resize(block, max(needed, len(block.cells) * 5 // 4, _SIZE_MIN))
        plain = (block for block in self._blocks if not block.dtype.hasobject)
        shortest = min(plain, key=lambda block: len(block.cells))
        if needed > len(shortest.cells) * 9 // 10:
            self._resize(shortest, len(shortest.cells) * 5 // 4)

    def _resize(self, block: _Block, size: int) -> None:
        """Make a block `size` long, which is no less than what is used."""
        for name in block.names:
            del self.columns[name]  # else it could not grow where it lies
        block.resize(size, self.used)
        self.columns |= block.columns()

    def search(self, column: str, low: Ints, high: Ints, targets: Ints) -> Ints:
        """Return for each query the first position in [low, high) whose value is not below the target, else `high`.

        The column must not fall within [low, high). A binary search of all queries at once, by steps that halve, which
        are the same for all: so nothing is selected on the way. Few queries are searched one by one, in a column that
        is contiguous, as that of times is.
        """
        values: Ints = self.columns[column]  # type: ignore[assignment]  # only such columns are searched
        steps = int((high - low).max(initial=0)).bit_length()
        if len(low) < _SEARCHED_ALONE * steps and values.flags.c_contiguous:
            queries = zip(low.tolist(), high.tolist(), targets.tolist(), strict=True)
            return np.array(
                [start + values[start:end].searchsorted(target) for start, end, target in queries], np.int64
            )
        last = low - 1  # of the positions before the target
        step = 1 << steps >> 1
        while step:
            at = last + step
            is_before = _gathered(values, np.minimum(at, len(values) - 1)) < targets
            is_before &= at < high
            last = np.where(is_before, at, last)
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
        """Keep only the last events of the segments to sweep next, merged into panes; drop entities with none left.

        `positions` are the events to keep, in order, and `owners` their slots, in the order of `slots`; a pane begins
        at each of `firsts`, and holds events of one entity. `merge` takes the columns of the kept events and `firsts`,
        and returns those of the panes, but for sums, and for others that are of the last event of each. Returns the
        panes as what changed, for folds to be brought up to date.
        """
        assert self._sweep is not None, "`next_swept` says which"
        begin_of = np.flatnonzero(run_begins(owners[firsts]))
        kept = np.diff(np.append(begin_of, len(firsts)))
        left = owners[firsts][begin_of]
        room = np.maximum(_ROOM_EVENTS, kept + kept // 4)
        merged = merge(self.elements(positions, owners), firsts) if len(firsts) < len(positions) else {}
        lasts = positions[np.append(firsts[1:], len(positions))[: len(firsts)] - 1]
        oldest, starts = positions[firsts[begin_of]], self.start[left]
        newest = lasts[np.append(begin_of[1:], len(firsts))[: len(begin_of)] - 1]
        assert np.array_equal(newest + 1, self.end[left]), "the last ones of each are kept"
        assert int((newest - oldest + 1).sum()) == len(positions), "and none between is not"
        rows = [block.taken(lasts) for block in self._blocks]
        for block, panes in zip(self._blocks, rows, strict=True):
            if block.sums:
                np.subtract(panes, np.repeat(running_before(block.cells, oldest, starts), kept, axis=0), panes)
            for index, name in enumerate(block.names):
                if name in merged:
                    panes[:, index] = merged[name]
        begins = self._swept_to(self._sweep, room)
        self._sweep.given += int(room.sum())
        new = ranges(begins, kept)
        for block, panes in zip(self._blocks, rows, strict=True):
            block.cells[new] = panes
            if block.dtype.hasobject:
                block.cells[ranges(begins + kept, room - kept)] = None
        for bounds in (self.start, self.end, self.room):
            bounds[slots] = 0
        self.start[left], self.end[left], self.room[left] = begins, begins + kept, begins + room
        for slot in slots[self.room[slots] == 0].tolist():
            del self.slots[self.keys[slot]]
            self.keys[slot] = None
            self._vacant.append(slot)
        return Changed(left, begins, begins, begins + kept, np.ones(len(firsts), np.bool_))

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
        for block in self._blocks:
            for start, end in left if block.dtype.hasobject else ():
                block.cells[start:end] = None  # nothing there is referred to any more
        if self.used == sweep.used_before:
            self.used = left[-1][0]
            left.pop()
        self._free = max(left, key=lambda room: room[1] - room[0], default=(self.used, self.used))
        self._sweep, self.settled = None, sweep.given
        self._touched = max(self._touched, sweep.used_before)
        if self._touched > _CUT_ABOVE * max(self.used, _SIZE_MIN):
            self._touched = self.used
            for block in self._blocks:
                self._resize(block, max(2 * self.used, _SIZE_MIN))


@dataclass(frozen=True)
class _Elements(Mapping[str, Column]):
    """The columns of some elements, each gathered when it is asked for."""

    segments: Segments
    positions: Ints
    starts: Ints

    def __getitem__(self, name: str) -> Column:
        column = self.segments.columns[name]
        found: Column = column[self.positions]
        return found - running_before(column, self.positions, self.starts) if name in self.segments.sums else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.segments.columns)

    def __len__(self) -> int:
        return len(self.segments.columns)


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
