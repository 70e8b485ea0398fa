"""Two declarations over the same recent events: what would differ, and what it would cost.

The events are those of the archive, so they need no judging; what the flow's own steps make of them, old and new, is
compared. Of many events only those of some entities are taken: all of theirs, or none.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.archives import Archive, is_able, known
from freshet.flows.steps.changes import Change, Kind, Needs
from freshet.flows.steps.estimates import Load, ViewEstimate, estimate
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.shadow import Differences, differences
from freshet.flows.steps.shards import hashes, split
from freshet.flows.steps.sql import Failure, Finisher, Projector
from freshet.schemas.event import EVENT_TIME, NEVER_US, Contract, archive_name
from freshet.schemas.plan import Pipeline, ViewPlan
from freshet.schemas.units import count_us, instant_us
from freshet.schemas.view import View

EVENTS_MAX = 200_000
"""So many events of a view are taken, or a few more."""
_BATCH_EVENTS = 2_000
Events = Mapping[str, pa.Table]
"""Events by stream."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one declaration of a view takes: CPU of one process for the events that were taken, rows, state.

    A row-level expression fails on `failed_count` of the events, which are left out; `failure` says how, on the first.
    """

    cpu_s: float
    rows_per_event: float
    estimate: ViewEstimate
    failed_count: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What became of one view: the span of rows (µs), and of how many events; one of `share` entities was taken.

    `oldest_us` is from when on there are events of it where a row depends on everything before; else None. There is
    nothing `before` of a view that is new, and no `differences` of one whose entity is another.
    """

    view: str
    start_us: int
    end_us: int
    events_count: int
    share: int
    after: Cost
    before: Cost | None = None
    differences: Differences | None = None
    oldest_us: int | None = None


class _Span(NamedTuple):
    start_us: int
    end_us: int
    events_count: int


class _Part(NamedTuple):
    name: str
    rows_count: int
    newest_us: int | None


@dataclass
class Shadow:
    """Runs two pipelines, of which the old one may lack views, over `length_us` of archived events, view by view."""

    old: Pipeline
    new: Pipeline
    contracts: Mapping[str, Contract]
    archive: Archive
    length_us: int
    events_max: int = EVENTS_MAX
    _parts: dict[str, list[_Part]] = field(default_factory=dict)

    def look(self, changes: tuple[Change, ...]) -> Iterator[tuple[str, Shadowed | None]]:
        """Give each view that the changes are about, None of one with no event in the archive. Raises `Unavailable`."""
        for plan in self.new.plans:
            own = [change for change in changes if change.view == plan.view.name]
            if any(change.needs is not Needs.NOTHING for change in own):
                yield plan.view.name, self._look(plan, own)

    def _look(self, new: ViewPlan, changes: list[Change]) -> Shadowed | None:
        old = next((plan for plan in self.old.plans if plan.view.name == new.view.name), None)
        plans = [new] if old is None else [new, old]
        streams = tuple(dict.fromkeys(stream for plan in plans for stream in plan.view.sources))
        newest = [one.newest_us for stream in streams for one in self._of(stream) if one.newest_us is not None]
        if not newest:
            return None
        end_us = max(newest)
        start_us = end_us - self.length_us
        lookbacks = [plan.lookback_us for plan in plans]
        oldest_us = None if None in lookbacks else start_us - max(filter(None, lookbacks), default=0)
        events, share = self._events(streams, new.view, oldest_us, sampled=all(map(is_able, plans)))
        times = [table.column(EVENT_TIME).cast(pa.int64()) for table in events.values()]
        span = _Span(start_us, end_us, sum(int(pc.sum(pc.greater_equal(one, start_us)).as_py() or 0) for one in times))
        made, after = self._run(new, events, span, share)
        begins_us = min((pc.min(column).as_py() for column in times if len(column)), default=start_us)
        shadowed = Shadowed(new.view.name, start_us, end_us, span.events_count, share, after)
        shadowed = shadowed if oldest_us is not None else replace(shadowed, oldest_us=begins_us)
        if old is None:
            return shadowed
        was, before = self._run(old, events, span, share)
        shadowed = replace(shadowed, before=before)
        if old.view.entity != new.view.entity:
            return shadowed
        renamed = {change.after: change.before for change in changes if change.kind is Kind.RENAMED}
        there = {feature.name for feature in old.view.features}
        names = {feature.name: renamed.get(feature.name, feature.name) for feature in new.view.features}
        names = {name: earlier for name, earlier in names.items() if earlier in there}
        return replace(shadowed, differences=differences(new.view.entity_names, was, made, names))

    # Events

    def _of(self, stream: str) -> list[_Part]:
        """Return the parts of a stream's archive, with their numbers of rows and newest event times."""
        if stream not in self._parts:
            name = archive_name(stream)
            found = ((part, self.archive.summary(name, part)) for part in self.archive.visible_parts(name))
            self._parts[stream] = [
                _Part(part, one.rows_count, None if one.newest is None else instant_us(one.newest))
                for part, one in found
                if one is not None and one.rows_count
            ]
        return self._parts[stream]

    def _events(
        self, streams: tuple[str, ...], view: View, oldest_us: int | None, *, sampled: bool
    ) -> tuple[Events, int]:
        """Return the events from a time on, of one of so many entities, and of how many."""
        since = NEVER_US if oldest_us is None else oldest_us
        parts = {
            stream: [one for one in self._of(stream) if one.newest_us is None or one.newest_us >= since]
            for stream in streams
        }
        count = sum(one.rows_count for own in parts.values() for one in own)
        share = -(-count // self.events_max) if sampled else 1
        events = {}
        for stream, own in parts.items():
            tables = [self.contracts[stream].schema.empty_table()]
            for one in own:
                table = self.archive.read_parts(archive_name(stream), [one.name])
                table = table.filter(pc.greater_equal(table.column(EVENT_TIME).cast(pa.int64()), since))
                if share > 1:
                    table = known(table, view)
                    table = table.filter(pa.array(hashes(table, view) % share == 0))
                tables.append(table)
            events[stream] = pa.concat_tables(tables).sort_by(EVENT_TIME)
        return events, max(1, share)

    # Running

    def _run(self, plan: ViewPlan, events: Events, span: _Span, share: int) -> tuple[pa.Table, Cost]:
        """Return the final rows of a view in a span, and what they cost."""
        view, own = plan.view, {stream: events[stream] for stream in plan.view.sources}
        projectors = {stream: Projector(plan, stream) for stream in own}
        fold, finisher, failures = ShardFold.of(plan, self.contracts), Finisher(plan), list[Failure]()

        def inputs() -> Iterator[list[ShardInput]]:
            for batch in _batches(own):
                items = []
                for stream, table in batch.items():
                    projected, failed = projectors[stream].project(table)
                    failures.extend(failed)
                    newest_us = pc.max(table.column(EVENT_TIME)).cast(pa.int64()).as_py()
                    items.append(_input(view, stream, newest_us, None, split(projected, view, 1).get(0)))
                yield items
            yield [_input(view, stream, NEVER_US, span.end_us, None) for stream in own]

        rows, begun_s = [view.row_schema.empty_table()], time.process_time()
        for number, items in enumerate(inputs()):
            for windowed in fold.fold(items, now_us=number):
                table = finisher.finish(windowed.table)
                rows.append(table.filter(pc.greater_equal(table.column(EVENT_TIME).cast(pa.int64()), span.start_us)))
        cpu_s, made = time.process_time() - begun_s, pa.concat_tables(rows)
        load = Load(span.events_count * share * 1e6 / self.length_us, _entities_count(own, view) * share, "the shadow")
        lateness_us = {name: count_us(self.contracts[name].stream.lateness) for name in view.sources}
        failure = f"{failures[0].features}: {failures[0].error}" if failures else ""
        rows_per_event = made.num_rows / span.events_count if span.events_count else 0.0
        return made, Cost(cpu_s, rows_per_event, estimate(plan, load, lateness_us), len(failures), failure)


def _input(view: View, stream: str, newest_us: int, caught_up_us: int | None, inputs: pa.Table | None) -> ShardInput:
    """Return what a stream's archive tells: it is read as one partition, in the order of time."""
    return ShardInput(view.name, 0, 0, stream, 0, 1, newest_us, caught_up_us, inputs)


def _entities_count(events: Events, view: View) -> int:
    names = list(view.entity_names)
    tables = [table.select(names) for table in events.values() if {*names} <= {*table.column_names}]
    return pa.concat_tables(tables).group_by(names).aggregate([]).num_rows if tables else 0


def _batches(events: Events) -> Iterator[Events]:
    """Cut sorted events into batches, all of one instant in one: so each row is made once, and is the final one."""
    times = {stream: table.column(EVENT_TIME).cast(pa.int64()).to_numpy() for stream, table in events.items()}
    merged = np.sort(np.concatenate([*times.values(), np.empty(0, np.int64)]))
    ends = np.unique(merged[_BATCH_EVENTS - 1 :: _BATCH_EVENTS]).tolist() + merged[-1:].tolist()
    at = dict.fromkeys(events, 0)
    for end_us in ends:
        stops = {stream: int(np.searchsorted(times[stream], end_us, side="right")) for stream in events}
        batch = {stream: table.slice(at[stream], stops[stream] - at[stream]) for stream, table in events.items()}
        at = stops
        if batch := {stream: table for stream, table in batch.items() if table.num_rows}:
            yield batch
