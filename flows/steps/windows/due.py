"""Which entities have a tick to make next, and when: time passes without a look at the others."""

import heapq

import numpy as np

from freshet.flows.steps.windows.segments import Ints, distinct, run_begins

NEVER_DUE_US = np.iinfo(np.int64).max
_SLICE_US = 100_000
_ENTRIES_PER_SLOT, _ENTRIES_MIN = 4, 1024


class DueSlots:
    """Slots by the instant of their next tick, in slices of a tenth of a second.

    An instant that changed leaves its old entry behind; that is noticed when its slice comes, or many have been left.
    """

    def __init__(self) -> None:
        self._instants: Ints = np.zeros(0, np.int64)
        self._slices: dict[int, list[Ints]] = {}
        self._order: list[int] = []
        self.entries_count = 0
        """How many entries slices have, old ones too."""

    def set(self, slots: Ints, instants: Ints) -> None:
        """Say when the next tick of each slot is due; `NEVER_DUE_US` for none."""
        needed = int(slots.max(initial=-1)) + 1 - len(self._instants)
        if needed > 0:
            more = np.full(max(needed, len(self._instants) // 2), NEVER_DUE_US)
            self._instants = np.append(self._instants, more)
        changed = self._instants[slots] != instants
        slots, instants = slots[changed], instants[changed]
        self._instants[slots] = instants
        self._enter(slots[instants < NEVER_DUE_US])
        if self.entries_count > _ENTRIES_PER_SLOT * max(len(self._instants), _ENTRIES_MIN):
            self._slices, self._order, self.entries_count = {}, [], 0
            self._enter(np.flatnonzero(self._instants < NEVER_DUE_US))

    def _enter(self, slots: Ints) -> None:
        """Put slots into the slices of their instants."""
        slices = self._instants[slots] // _SLICE_US
        order = np.argsort(slices, kind="stable")
        slots, slices = slots[order], slices[order]
        firsts = np.flatnonzero(run_begins(slices))
        for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(slots)], strict=False):
            index = int(slices[first])
            if index not in self._slices:
                self._slices[index] = []
                heapq.heappush(self._order, index)
            self._slices[index].append(slots[first:end].copy())  # a view would keep all of them
        self.entries_count += len(slots)

    def take(self, clock_us: int) -> Ints:
        """Return the slots whose next tick is at or before a clock; each must be set anew."""
        found: list[Ints] = []
        last = clock_us // _SLICE_US
        later: list[Ints] = []
        while self._order and self._order[0] <= last:
            index = heapq.heappop(self._order)
            entered = np.concatenate(self._slices.pop(index))
            self.entries_count -= len(entered)
            slots = distinct(entered)
            instants = self._instants[slots]
            found.append(slots[instants <= clock_us])
            later.append(slots[(instants > clock_us) & (instants // _SLICE_US == index)])
        for slots in later:
            self._enter(slots)
        due = distinct(np.concatenate(found)) if found else np.zeros(0, np.int64)
        self._instants[due] = NEVER_DUE_US
        return due
