"""A change of the declaration in force, handed from the old flow to the new one at one commit.

| step | what is so after it |
| --- | --- |
| make | rows of views that are new or changed stand in folders of their own, which nobody reads; the old flow runs on |
| hold | the old flow has let go of the ledger, after a last commit; what it did since is made, too |
| decide | the ledger is replaced: it speaks for the new rows, and names what is pending. There is no way back |
| complete | folders are switched, newest rows are online, the declaration is in force, nothing is pending |

A crash before `decide` has changed nothing: the next time the folders are made anew. After it, whoever holds the ledger
next completes the change first. Readers see, of every entity, its row of before or its row of after.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import pyarrow as pa

from freshet.flows.backfill import Backfill, Carry, Made, exact_since_us
from freshet.flows.backfill import Offline as Rows
from freshet.flows.journal import LedgerStore, States
from freshet.flows.materializer import Online
from freshet.flows.refill import refill
from freshet.schemas.applied import Applied, Declared
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import NEVER_US, Contract, archive_name
from freshet.schemas.ledger import Ledger, Pending, SnapshotMark
from freshet.schemas.plan import Pipeline, ViewPlan
from freshet.schemas.units import instant_at
from freshet.schemas.view import StoredRow, View

_LOOK_AGAIN_S = 0.05
_FEW_EVENTS, _ROUNDS = 5_000, 10
"""The flow is asked to wait once so few events are left to be made, or after so many rounds."""


class Offline(Rows, Protocol):
    """The offline store, as `edges.parquet` does: a view has one folder a generation."""

    def begin(self, view: str, generation: int, schema: pa.Schema) -> str:
        """Make the empty folder of a generation that is not current, whatever is left of it; return its name."""

    def next_generation(self, view: str) -> int:
        """Return the number that a view's next generation has."""

    def folder(self, view: str) -> str:
        """Return the name of a view's current folder."""

    def switch(self, generations: Mapping[str, int]) -> None:
        """Make generations current."""

    def newest(self, view: View) -> pa.Table:
        """Return each entity's newest final row."""


class OnlineRows(Online, Protocol):
    """The online store, as `edges.redis` does."""

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        """Write rows; return how many replaced what was there."""

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""


class InForce(Protocol):
    """What is in force, as `edges.applied` keeps it."""

    def read(self) -> Applied | None:
        """Return what is in force."""

    def declared(self, declaration_id: str) -> Declared | None:
        """Return a declaration that was kept."""

    def keep(self, declared: Declared) -> None:
        """Keep a declaration for those who ask for it by its id."""

    def write(self, applied: Applied) -> None:
        """Put a declaration in force."""

    def ask_for_ledger(self) -> None:
        """Ask whoever holds the ledger to let go of it."""

    def leave_ledger(self) -> None:
        """Ask no more."""


@dataclass(frozen=True)
class Places:
    """Where a change is made. `compiled` gives what a declaration compiles to."""

    ledger: LedgerStore
    states: States
    offline: Offline
    online: Callable[[], OnlineRows]
    applied: InForce
    compiled: Callable[[Declared], Pipeline]
    now_us: Callable[[], int]


@dataclass(frozen=True)
class Asked:
    """A change that is asked for: the pipeline that is to be in force, and what it was declared by.

    `carried` has, for each view that is changed, by feature the name of the old one that means the same. `since_us`
    says from when on history is made, None for as far back as the archive allows. `is_same` says that it means the same
    as what is in force, so that nobody who runs needs to be told. Views `anew` are made anew though they compute the
    same.
    """

    pipeline: Pipeline
    contracts: Mapping[str, Contract]
    declared: Declared
    carried: Mapping[str, Mapping[str, str]]
    since_us: int | None = None
    is_same: bool = False
    anew: frozenset[str] = frozenset()

    def to_make(self, ledger: Ledger) -> tuple[ViewPlan, ...]:
        """Return the plans of views whose rows are to be made."""
        changed = changed_plans(self.pipeline, ledger)
        return tuple(plan for plan in self.pipeline.plans if plan in changed or plan.view.name in self.anew)

    def needs_nobody(self, ledger: Ledger) -> bool:
        """Say whether it is in force by being written down, whoever runs."""
        is_known = ledger.pending is None and ledger.views.keys() == self.declared.views.keys()
        return self.is_same and is_known and not self.to_make(ledger)


@dataclass(frozen=True)
class Done:
    """What a change came to: rows that were made, by view, rows that DuckDB made alike, and the wait.

    The flow was held for `held`, from its last commit on.
    """

    rows_counts: Mapping[str, int]
    checked_count: int
    held: timedelta


def change(places: Places, asked: Asked, *, patience: timedelta) -> Done | None:
    """Put a declaration in force; None if nothing ran under another one, so that it is by being written down.

    Raises `Refused` where rows cannot be made from what is archived, or DuckDB makes them otherwise, or whoever holds
    the ledger does not let go of it within `patience`; then nothing has changed. Raises `Unavailable`.
    """
    ledger = places.ledger.read()
    if ledger is None or asked.needs_nobody(ledger):
        places.applied.write(_following(places.applied.read(), asked.declared, places.now_us()))
        return None
    if ledger.pending is not None:
        with _held(places, patience) as completed:
            ledger = completed
    generations, works = _works(places, asked, ledger)
    for _ in range(_ROUNDS):
        before = sum(work.events_count for work in works.values())
        ledger = places.ledger.read() or ledger
        for work in works.values():
            work.advance(ledger)
        if sum(work.events_count for work in works.values()) - before <= _FEW_EVENTS:
            break
    made_for_count = ledger.shards_count
    with _held(places, patience) as ledger:
        begun_s = time.monotonic()
        if ledger.shards_count != made_for_count:
            fact, hint = f"became {ledger.shards_count} meanwhile", "run the same command again: nothing was changed"
            raise Refused([Problem("shards", str(made_for_count), fact, hint=hint)])
        made = {name: work.finish(ledger) for name, work in works.items()}
        for name, work in works.items():
            _check_whole(name, work, ledger)
        taken_over = {name: us for name, work in works.items() if (us := _taken_over_us(work, ledger)) is not None}
        complete(places, _decide(places, asked, ledger, made, generations, taken_over))
    return Done(
        {name: one.rows_count for name, one in made.items()},
        sum(one.checked_count for one in made.values()),
        timedelta(seconds=time.monotonic() - begun_s),
    )


def complete(places: Places, ledger: Ledger) -> Ledger:
    """Make a change that is decided so everywhere; once more it changes nothing. The caller holds the ledger."""
    pending = ledger.pending
    if pending is None:
        return ledger
    declared = places.applied.declared(pending.declaration)
    assert declared is not None, pending.declaration
    places.offline.switch(pending.generations)
    views = [view for view in places.compiled(declared).views if view.name in pending.generations]
    if views:
        refill(places.online(), places.offline, views, ledger, places.now_us(), overwrite=True)
    places.applied.write(_following(places.applied.read(), declared, places.now_us()))
    ledger = ledger.model_copy(update={"pending": None})
    places.ledger.write(ledger)
    return ledger


def _following(applied: Applied | None, declared: Declared, now_us: int) -> Applied:
    if applied is None:
        return Applied(declared=declared, since_us=now_us)
    return applied if applied.declared == declared else applied.followed_by(declared, now_us)


def changed_plans(pipeline: Pipeline, ledger: Ledger) -> tuple[ViewPlan, ...]:
    """Return the plans of views that compute something else than their state does, or have none."""
    return tuple(plan for plan in pipeline.plans if ledger.views.get(plan.view.name) != plan.digest)


def _works(places: Places, asked: Asked, ledger: Ledger) -> tuple[dict[str, int], dict[str, Backfill]]:
    """Return what makes each view that is new or changed, and its generation; refuses what the archive lacks."""
    plans = asked.to_make(ledger)
    since_us = filled_since_us(plans, ledger, asked.since_us)
    generations, works = dict[str, int](), dict[str, Backfill]()
    for plan in plans:
        name, view = plan.view.name, plan.view
        carry = None
        if since_us[name] > NEVER_US and name in ledger.views:
            carry = Carry(places.offline.folder(name), since_us[name], asked.carried.get(name, {}))
        generations[name] = places.offline.next_generation(name)
        folder = places.offline.begin(name, generations[name], view.row_schema)
        works[name] = Backfill(
            plan, asked.contracts, places.offline, folder, ledger.shards_count, places.now_us, since_us[name], carry
        )
    return generations, works


def filled_since_us(plans: Iterable[ViewPlan], ledger: Ledger, asked_us: int | None = None) -> dict[str, int]:
    """Return from when on each view's rows are made; refuses all for which the archive lacks events."""
    found, problems = dict[str, int](), list[Problem]()
    for plan in plans:
        try:
            found[plan.view.name] = _since_us(plan, ledger, asked_us)
        except Refused as refusal:
            problems += refusal.problems
    if problems:
        raise Refused(problems)
    return found


def _since_us(plan: ViewPlan, ledger: Ledger, asked_us: int | None) -> int:
    exact_us, name = exact_since_us(plan, ledger), plan.view.name
    if exact_us is None:
        fact = "needs all events from the beginning, and the archive has dropped some"
        hint = "give what is new a view of its own, with windows that the archive covers (FRESHET_ARCHIVE_RETENTION)"
        raise Refused([Problem("feature view", name, fact, hint=hint)])
    if asked_us is None:
        return exact_us
    if asked_us < exact_us:
        fact = f"cannot be filled from {instant_at(asked_us).isoformat()}: the archive has a gap before it"
        hint = f"its rows are whole from {instant_at(exact_us).isoformat()} on: name that time, or none"
        raise Refused([Problem("feature view", name, fact, hint=hint)])
    return asked_us


def _taken_over_us(work: Backfill, ledger: Ledger) -> int | None:
    """Return before when a view's rows were made by another declaration; None if all are by this one."""
    name = work.plan.view.name
    if work.carry is None:
        return None
    if ledger.views[name] != work.plan.digest:
        return work.since_us
    before_us = ledger.taken_over.get(name)
    return None if before_us is None else min(before_us, work.since_us)


def _check_whole(name: str, work: Backfill, ledger: Ledger) -> None:
    """Refuse an archive that has fewer events than the ledger says."""
    told = sum(ledger.rows_counts.get(archive_name(stream), 0) for stream in work.plan.view.sources)
    if work.events_count < told:
        fact = f"has {told} events in the ledger, and {work.events_count} in its parts"
        hint = "bring the missing parts back: nothing was changed"
        raise Refused([Problem("event archive", f"of {name}", fact, hint=hint)])


def _decide(
    places: Places,
    asked: Asked,
    ledger: Ledger,
    made: Mapping[str, Made],
    generations: Mapping[str, int],
    taken_over: Mapping[str, int],
) -> Ledger:
    """Have the ledger speak for the new rows, from the same offsets on."""
    kept = {view.name for view in asked.pipeline.views} - made.keys()

    def of_kept(keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key in ledger.partitions or key.rpartition("/")[0] in kept]

    marks = {key: mark for one in made.values() for key, mark in one.marks.items()}
    snapshots = {key: ledger.snapshots[key] for key in of_kept(ledger.snapshots)}
    if places.states.identity() == ledger.id:  # else the flow's folder is elsewhere: it reads the archive again
        for one in made.values():
            for key, fold in one.folds.items():
                file = places.states.write(key, ledger.epoch, fold.state())
                snapshots[key] = SnapshotMark(file=file, epoch=ledger.epoch)
    counts = {name: one.rows_count for name, one in made.items()}
    folders = {*kept, *map(archive_name, asked.contracts)}
    ledger = ledger.model_copy(
        update={
            "views": {name: view.digest for name, view in asked.declared.views.items()},
            "shards": {**{key: ledger.shards[key] for key in of_kept(ledger.shards)}, **marks},
            "snapshots": snapshots,
            "parts": {name: parts for name, parts in ledger.parts.items() if name in folders},
            "rows_counts": {
                **{n: c for n, c in ledger.rows_counts.items() if n not in ledger.views or n in kept},
                **counts,
            },
            "taken_over": {**{name: us for name, us in ledger.taken_over.items() if name in kept}, **taken_over},
            "pending": Pending(declaration=asked.declared.id, generations=generations),
        }
    )
    places.applied.keep(asked.declared)
    places.ledger.write(ledger)
    return ledger


@contextlib.contextmanager
def _held(places: Places, patience: timedelta) -> Iterator[Ledger]:
    """Hold the ledger: its last holder has committed, and nothing is pending any more."""
    places.applied.ask_for_ledger()
    deadline_s = time.monotonic() + patience.total_seconds()
    while True:
        try:
            places.ledger.lock()
            break
        except Refused as refusal:
            if time.monotonic() < deadline_s:
                time.sleep(_LOOK_AGAIN_S)
                continue
            fact = f"was not let go of within {patience.total_seconds():.0f} s by whoever writes it"
            hint = "is that a materializer of this version? Stop it, and apply again: nothing was changed"
            raise Refused([Problem("ledger", "of the offline store", fact, hint=hint)]) from refusal
    try:
        ledger = places.ledger.read()
        assert ledger is not None, "it was there before it was asked for"
        yield complete(places, ledger)
    finally:
        places.ledger.unlock()
        places.applied.leave_ledger()
