"""Compaction: small parts become large ones, while the flow writes and readers read.

A reader lists a folder and then opens what it found, so no file of it may go, and none may come that has the same rows.
Therefore what is merged stands in a new folder, the next generation (schemas/generations.py):

1. It is begun: the flow puts every new part into it, too. Once the ledger says so, or no flow runs, the parts that only
   the current generation has are never more, and no less, than what is to be merged.
2. They are merged, or linked as they are.
3. It becomes the current one: for our own readers at that instant, for Feast's as soon as the registry points to it.
4. The former generation still gets new parts, so whoever knows its path goes on with all rows. After `grace`, which
   must be longer than clients keep a registry, it gets none any more, and once the ledger says so, it is removed.

A compaction that was killed is taken up by the next one, from its merging on; and whatever it had not yet done for
another folder, too. Which rows are dropped is said with the generation, so that who counts rows still can.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

import pyarrow as pa

from freshet.flows.steps.compaction import Merges, merges
from freshet.schemas.compaction import Sized, Slice
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.generations import Generations
from freshet.schemas.ledger import Ledger
from freshet.schemas.units import count_us, instant_at
from freshet.schemas.view import View

LOG = logging.getLogger("freshet")

_PAUSE_S = 0.1


class Store(Protocol):
    """The folders' generations, as `edges.compaction` does."""

    def lock(self) -> None:
        """Be the only one who makes generations."""

    def unlock(self) -> None:
        """Let another process do it."""

    def generations(self) -> Generations:
        """Return which generations there are."""

    def write(self, generations: Generations) -> None:
        """Replace what says which there are."""

    def found(self, name: str) -> set[int]:
        """Return of which generations there is a folder."""

    def begin(self, name: str, generation: int, schema: pa.Schema) -> None:
        """Make a generation's folder, with nothing in it but what the flow put there."""

    def parts(self, name: str, generation: int) -> list[str]:
        """Return the names of all visible parts."""

    def sized(self, view: View, generation: int, parts: Iterable[str]) -> dict[str, Sized]:
        """Return what is known of parts."""

    def link(self, name: str, source: int, target: int, parts: Iterable[str]) -> None:
        """Give parts of one generation to another."""

    def merge(
        self, view: View, source: int, target: int, one: Slice, *, final: bool, alive_after: datetime | None = None
    ) -> int:
        """Make a slice of one generation's rows a part of another; return how many rows it has."""

    def remove(self, name: str, generation: int) -> None:
        """Remove a generation's folder."""


class Parts(Protocol):
    """The offline store as the flow has it."""

    def publish(self, parts: Mapping[str, Iterable[str]]) -> None:
        """Make staged parts visible, in every generation that is alive."""


class LedgerFile(Protocol):
    """The ledger, and the lock that a running flow holds."""

    def lock(self, wait_s: float) -> None:
        """Be the only one who writes; raises `Refused` while a flow is for so long."""

    def unlock(self) -> None:
        """Let another process write."""

    def read(self) -> Ledger | None:
        """Return what was written last."""


@dataclass(frozen=True)
class Outside:
    """All that is outside. `point` has Feast's registry say where views are, and returns those that moved for it."""

    store: Store
    parts: Parts
    ledger: LedgerFile
    point: Callable[[Sequence[View]], set[str]]
    now_us: Callable[[], int]
    sleep: Callable[[float], None]


@dataclass(frozen=True)
class Choice:
    """What is asked for: parts of about `target_bytes`, all versions or only the final ones, rows up to which age.

    A running flow answers within `patience_s`; a folder that is no longer current is left to readers for `grace`.
    """

    target_bytes: int = 128 * 10**6
    final: bool = False
    keep: timedelta | None = None
    grace: timedelta = timedelta(minutes=10)
    patience_s: float = 60.0


@dataclass(frozen=True)
class Compacted:
    """What was done to a view: how many parts became how many, and how many rows of how many were dropped.

    `left_until` is until when its former folders stay, None if there are none.
    """

    view: str
    parts_before: int = 0
    parts_after: int = 0
    rows_count: int = 0
    dropped_count: int = 0
    removed_count: int = 0
    left_until: datetime | None = None


@dataclass
class Compactor:
    """Compacts views, one after the other."""

    outside: Outside
    choice: Choice = field(default_factory=Choice)
    _oldest_kept: datetime | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Take one instant for all that is dropped."""
        if self.choice.keep is not None:
            self._oldest_kept = _earlier(instant_at(self.outside.now_us()), self.choice.keep)

    def run(self, views: Sequence[View]) -> list[Compacted]:
        """Compact some views and remove what is no longer needed; raises `Refused` and `Unavailable`.

        At whatever moment it ends, no reader sees a row twice or misses one, and the next run goes on.
        """
        return self._alone(views, self.compact)

    def retire_all(self, views: Sequence[View]) -> list[Compacted]:
        """Only remove what is no longer needed of some views."""
        return self._alone(views, lambda view: Compacted(view.name))

    def _alone(self, views: Sequence[View], work: Callable[[View], Compacted]) -> list[Compacted]:
        self.outside.store.lock()
        try:
            self.point(views)
            done = [work(view) for view in views]
            return [self.retire(view, one) for view, one in zip(views, done, strict=True)]
        finally:
            self.outside.store.unlock()

    def point(self, views: Sequence[View]) -> None:
        """Have Feast's registry point to the current generations, and note since when it does."""
        store, moved = self.outside.store, self.outside.point(views)
        for view in views:
            folder, again = store.generations().of(view.name), view.name in moved
            if folder.former and (again or {*folder.former} - folder.left_us.keys()):
                store.write(store.generations().left(view.name, self.outside.now_us(), again=again))

    def compact(self, view: View) -> Compacted:
        """Merge a view's parts into a next generation, and make it the current one."""
        store, name = self.outside.store, view.name
        self._clean(name)
        folder = store.generations().of(name)
        told = self.outside.ledger.read()
        newest = set[str]() if told is None else {*told.parts.get(name, ())}
        there = [part for part in store.parts(name, folder.current) if part not in newest]  # those may stay as they are
        if not self._planned(view, folder.current, there).are_needed:
            if folder.next is not None:
                self._drop(name, (folder.next,))
            return Compacted(name)
        target = folder.unused if folder.next is None else folder.next
        store.begin(name, target, view.row_schema)
        if folder.next is None:
            store.write(store.generations().begun(name))
        self.await_flow()
        before, also = store.parts(name, folder.current), {*store.parts(name, target)}  # in this order
        own = [part for part in before if part not in also]
        sized = store.sized(view, folder.current, own)
        planned = self._planned(view, folder.current, own)
        store.link(name, folder.current, target, planned.kept)
        kept_count = sum(sized[part].rows_count for part in planned.kept)
        made = [self._merge(view, folder.current, target, one) for one in planned.slices]
        rows_before, rows_after = sum(part.rows_count for part in sized.values()), kept_count + sum(made)
        drops = self.choice.final or self.choice.keep is not None
        assert rows_after == rows_before or (drops and rows_after < rows_before), "merging neither loses nor adds rows"
        store.write(store.generations().switched(name, rows_before - rows_after))
        self.point([view])
        after = len(planned.kept) + sum(map(bool, made))
        LOG.info("compacted %s: %d parts became %d", name, len(sized), after)
        return Compacted(name, len(sized), after, rows_before, rows_before - rows_after)

    def _planned(self, view: View, generation: int, parts: Iterable[str]) -> Merges:
        sized = self.outside.store.sized(view, generation, parts)
        return merges(sized, self.choice.target_bytes, final=self.choice.final, oldest_kept=self._oldest_kept)

    def _merge(self, view: View, source: int, target: int, one: Slice) -> int:
        alive_after = _earlier(self._oldest_kept, view.ttl) if view.ttl and self._oldest_kept else None
        return self.outside.store.merge(view, source, target, one, final=self.choice.final, alive_after=alive_after)

    def retire(self, view: View, done: Compacted) -> Compacted:
        """Remove a view's former generations, if readers had their time; say until when they stay."""
        folder, now_us = self.outside.store.generations().of(view.name), self.outside.now_us()
        until_us = {number: left_us + count_us(self.choice.grace) for number, left_us in folder.left_us.items()}
        over = tuple(number for number in folder.former if until_us.get(number, now_us + 1) <= now_us)
        if over:
            self._drop(view.name, over)
        stay_us = [until_us[number] for number in folder.former if number not in over]
        left_until = instant_at(max(stay_us)) if stay_us else None
        return replace(done, removed_count=len(over), left_until=left_until)

    def _drop(self, name: str, numbers: tuple[int, ...]) -> None:
        """Have the flow put nothing more into some generations, and remove them."""
        store = self.outside.store
        store.write(store.generations().without(name, numbers))
        self._clean(name)

    def _clean(self, name: str) -> None:
        """Remove the folders of generations that are not alive: one was begun, or dropped, and then came a crash."""
        store = self.outside.store
        dead = store.found(name) - store.generations().of(name).alive.keys()
        if dead:
            self.await_flow()
        for number in sorted(dead):
            store.remove(name, number)

    def await_flow(self) -> None:
        """Wait until a running flow goes by the generations as they are written; raises `Unavailable`.

        What was committed before stands in the current generation then, or in all: a flow that ended may have left
        parts that are not yet visible, which are made so. A next one begins by reading what is written.
        """
        number, ledger = self.outside.store.generations().number, self.outside.ledger
        waited_s = 0.0
        while True:
            told = ledger.read()
            if told is None or told.generations >= number:
                return
            try:
                ledger.lock(0)
            except Refused:  # a flow runs, and writes the ledger at the end of its epoch
                pass
            else:
                try:
                    told = ledger.read()
                    if told is not None:
                        self.outside.parts.publish(told.parts)
                    return
                finally:
                    ledger.unlock()
            if waited_s > self.choice.patience_s:
                hint = "look whether it stands still; compaction goes on where it was when it is run again"
                raise Unavailable(f"the running materializer commits nothing for {waited_s:.0f} s. Hint: {hint}")
            self.outside.sleep(_PAUSE_S)
            waited_s += _PAUSE_S


def _earlier(at: datetime, length: timedelta) -> datetime | None:
    """Return the instant so long before another; None if there is no such: nothing is as old."""
    try:
        return at - length
    except OverflowError:
        return None
