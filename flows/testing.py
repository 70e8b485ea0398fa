"""Unit tests of features: given these events, a feature has these rows.

    from freshet.flows.testing import Given

    def test_an_edit_counts_for_ten_minutes():
        rows = Given.project(".").rows(
            "user_edits_10m", [{"user": "ada", "time": "2026-03-01T12:00:00Z"}], until="2026-03-01T12:11:00Z"
        )

        assert rows == [("ada", "2026-03-01T12:00:00Z", 1), ("ada", "2026-03-01T12:10:06Z", 0)]

The events pass the very steps that production runs, in memory; DuckDB computes the same rows from the declared SQL, and
the two must agree. No broker, store or file is needed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from freshet.flows.edges.project import Project
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.engines import Engines
from freshet.flows.steps.fold import ShardFold, ShardInput
from freshet.flows.steps.intake import Taken
from freshet.flows.steps.oracle import Compared, compare, union_of
from freshet.flows.steps.shards import split
from freshet.flows.steps.sql import compile_views
from freshet.flows.steps.windows.segments import run_begins
from freshet.schemas.declaration import read
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.event import EVENT_TIME, PARTITION, Contract, Event, contract
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reject
from freshet.schemas.units import instant_us
from freshet.schemas.view import CREATED, VERSION, View

_INSTANT = TypeAdapter(datetime)


@dataclass(frozen=True)
class Given:
    """Features, compiled, that wait for events.

    `samples` has an event of a stream from which the keys are taken that a hand-written event leaves out.
    """

    pipeline: Pipeline
    contracts: Mapping[str, Contract]
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def project(cls, folder: str | Path) -> "Given":
        """Return the features of a project's folder; raises `Refused` with everything that is wrong with it.

        Keys that an event leaves out are those of `schemas/samples/<stream>/good-….json`, the first by name.
        """
        project = Project(Path(folder).absolute())
        source = project.declaration()
        streams = [name for made in source.declaration.featureDefinitions for name in made.streams]
        contracts = project.contracts(streams)
        samples = {
            name: json.loads(path.read_text(encoding="utf-8"))
            for name in contracts
            for path in sorted((project.root / "schemas" / "samples" / name).glob("good-*.json"))[:1]
        }
        return cls(compile_views(source, contracts), contracts, samples)

    @classmethod
    def declared(cls, text: str, streams: Mapping[str, type[Event]]) -> "Given":
        """Return the features of a declaration's text over some contracts; raises `Refused`."""
        made = {name: contract(name, model) for name, model in streams.items()}
        problems = [problem for _, found in made.values() for problem in found]
        if problems:
            raise Refused(problems)
        contracts = {name: found for name, (found, _) in made.items() if found is not None}
        return cls(compile_views(read(text), contracts), contracts)

    def rows(
        self,
        feature: str,
        events: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
        until: str | datetime | None = None,
    ) -> list[tuple[Any, ...]]:
        """Return the final rows of a feature: the entity's columns, the instant as ISO text in UTC, the value.

        Rows are sorted by entity and instant. Events are those of the feature's stream, in the order in which they
        arrive, or a mapping from streams to their events; `_partition` may stand among an event's keys. Time passes to
        `until`, if that is after the last event. Raises `Refused` for an event that is not accepted, with the reason.
        """
        view = self.view_of(feature)
        by_stream = events if isinstance(events, Mapping) else {view.sources[0]: events}
        run = self.start()
        for stream, documents in by_stream.items():
            run.take(*self.polls(stream, documents))
        if until is not None:
            run.pass_time(microseconds(until))
        if run.rejects:
            raise Refused(_rejected(reject) for reject in run.rejects)
        run.check(view.name)
        names = (*view.entity_names, EVENT_TIME, feature)
        rows = [tuple(row[name] for name in names) for row in run.final(view.name).to_pylist()]
        return [(*entity, spell(instant), value) for *entity, instant, value in rows]

    def view_of(self, feature: str) -> View:
        """Return the view that has a feature; raises `Refused` if none has."""
        views = {made.name: view for view in self.pipeline.views for made in view.features}
        if feature not in views:
            meant = nearest(feature, views)
            hint = f"did you mean {meant}?" if meant else f"there is {listed([*views])}"
            raise Refused([Problem("feature", feature, "is not declared", hint=hint)])
        return views[feature]

    def polls(self, stream: str, documents: Sequence[Mapping[str, Any]], *, first_offset: int = 0) -> Iterator[Poll]:
        """Give hand-written events as a topic would: a poll each, in their order. Raises `Refused` for unknown keys."""
        if stream not in self.contracts:
            hint = f"there is {listed([*self.contracts])}"
            raise Refused([Problem("stream", stream, "feeds no feature", hint=hint)])
        known = self.contracts[stream]
        partitions = [document.get(PARTITION, 0) for document in documents]
        count = max(partitions, default=0) + 1
        for number, document in enumerate(documents):
            unknown = [key for key in document if key not in known.model.model_fields and key != PARTITION]
            if unknown:
                meant = nearest(unknown[0], known.model.model_fields)
                hint = f"did you mean {meant}?" if meant else f"{stream} has {listed([*known.model.model_fields])}"
                raise Refused([Problem("event", f"{stream} {number + 1}", "has an unknown key", unknown[0], hint)])
            whole = {**self.samples.get(stream, {}), **document}
            value = to_json({key: whole[key] for key in whole if key != PARTITION}, inf_nan_mode="constants")
            yield poll(known, partitions[number], count, [value], offset=first_offset + number)

    def start(self, shards_count: int = 1) -> "Run":
        """Begin a run that has seen no event yet."""
        return Run(self, shards_count)

    @cached_property
    def engines(self) -> Engines:
        """What its steps compute with."""
        return Engines(self.pipeline, self.contracts)


class Run:
    """The flow's steps at work in memory: polls in, rows out.

    `judges` and `folds` hold all state, by topic and partition and by view and shard; `written` holds every version of
    every row, in the order in which they were made, and `online` which of them went online.
    """

    def __init__(self, given: Given, shards_count: int) -> None:
        self.given, self.shards_count = given, shards_count
        self.judges: dict[tuple[str, int], PartitionJudge] = {}
        self.folds = {
            (plan.view.name, shard): ShardFold.of(plan, given.contracts)
            for plan in given.pipeline.plans
            for shard in range(shards_count)
        }
        self.accepted: dict[str, list[pa.Table]] = {name: [] for name in given.contracts}
        self.rejects: list[Reject] = []
        self.duplicates_count = 0
        self.written: dict[str, list[pa.Table]] = {view.name: [] for view in given.pipeline.views}
        self.online: dict[str, list[pa.Array]] = {view.name: [] for view in given.pipeline.views}
        self._partitions: dict[str, int] = {}
        self._steps_count = 0

    def take(self, *polls: Poll) -> None:
        """Take polls, together, as one batch: of any topics and partitions, a partition's in its order."""
        waiting: dict[tuple[str, int], list[ShardInput]] = {}
        for poll in polls:
            taken = self._take(poll)
            for view, inputs in taken.inputs.items():
                parts = split(inputs, self.given.pipeline.plan(view).view, self.shards_count)
                for shard in range(self.shards_count):
                    clock = (taken.partition, taken.partitions_count, taken.newest_us, taken.caught_up_us)
                    item = ShardInput(view, shard, taken.epoch, taken.stream, *clock, parts.get(shard))
                    waiting.setdefault((view, shard), []).append(item)
        self._steps_count += 1
        for (view, shard), items in waiting.items():
            for rows in self.folds[view, shard].fold(items, now_us=self._steps_count * 10**9):
                self.written[view].append(self.given.engines.finishers[view].finish(rows.table))
                self.online[view].append(rows.newest)

    def _take(self, poll: Poll) -> Taken:
        intake = self.given.engines.intakes[poll.topic]
        judge = self.judges.setdefault((poll.topic, poll.partition), PartitionJudge(intake.contract.stream))
        taken = intake.take(judge, poll)
        self._partitions[poll.topic] = poll.partitions_count
        self.accepted[taken.stream].append(taken.events)
        self.rejects += taken.rejects
        self.duplicates_count += taken.duplicates_count
        return taken

    def pass_time(self, until_us: int) -> None:
        """Let time pass, though no event comes, until an instant (µs since the epoch)."""
        counts = {made.stream.topic: 1 for made in self.given.contracts.values()} | self._partitions
        self.take(
            *(
                Poll.of_nothing(topic, partition, count, 0, until_us)
                for topic, count in counts.items()
                for partition in range(count)
            )
        )

    def events(self, stream: str) -> pa.Table:
        """Return the accepted events of a stream."""
        return pa.concat_tables([self.given.contracts[stream].schema.empty_table(), *self.accepted[stream]])

    def versions(self, view: str) -> pa.Table:
        """Return every version of every row of a view, in the order in which they were made."""
        schema = self.given.pipeline.plan(view).view.row_schema
        return pa.concat_tables([schema.empty_table(), *self.written[view]])

    def final(self, view: str) -> pa.Table:
        """Return the greatest version of each row of a view, sorted by entity and instant."""
        keys = [*self.given.pipeline.plan(view).view.entity_names, EVENT_TIME]
        rows = self.versions(view)
        rows = rows.sort_by([(key, "ascending") for key in keys] + [(VERSION, "descending"), (CREATED, "descending")])
        return rows.take(pa.array(_firsts(rows.select(keys))))

    def clock_us(self, view: str) -> int:
        """Return the time that has passed for a view: what its last events and `pass_time` have shown."""
        return self.folds[view, 0].clock_us()

    def compare(self, view: str) -> Compared:
        """Compare the final rows of a view with what DuckDB makes of the accepted events."""
        plan = self.given.pipeline.plan(view)
        events = union_of([self.events(name) for name in plan.view.sources])
        return compare(plan, events, self.final(view), self.clock_us(view))

    def check(self, view: str) -> None:
        """Fail where DuckDB disagrees: the mistake would be Freshet's."""
        compared = self.compare(view)
        assert not compared.differing, f"DuckDB gives other rows of {view}: {compared.differing}"


def poll(known: Contract, partition: int, partitions_count: int, values: Sequence[bytes], *, offset: int = 0) -> Poll:
    """Return messages of one partition, from an offset on, as a file would give them: without Kafka's own time."""
    nothing: list[bytes | None] = [None] * len(values)
    signs: list[bytes | None] = [str(known.stream.version).encode()] * len(values)
    unknown_ms = np.full(len(values), -1, np.int64)
    offsets = np.arange(offset, offset + len(values))
    end = offset + len(values)
    messages: list[bytes | None] = [*values]
    return Poll(
        known.stream.topic, partition, partitions_count, messages, nothing, signs, unknown_ms, offsets, end,
        at_end=False,
    )  # fmt: skip


def microseconds(instant: str | datetime) -> int:
    """Return an instant as µs since the epoch; one without a zone is in UTC.

    >>> microseconds("1970-01-01T00:00:01Z"), microseconds("1970-01-01 00:00:00.000001")
    (1000000, 1)

    Raises `Refused`.
    """
    try:
        return instant_us(_INSTANT.validate_python(instant))
    except ValidationError:
        raise Refused([Problem("time", str(instant), "is none", hint="write 2026-03-01T12:00:00Z")]) from None


def spell(instant: datetime) -> str:
    """Write an instant as ISO text in UTC.

    >>> from datetime import UTC
    >>> spell(datetime(2026, 3, 1, 12, tzinfo=UTC))
    '2026-03-01T12:00:00Z'
    """
    return instant.isoformat().replace("+00:00", "Z")


def _firsts(keys: pa.Table) -> Any:
    """Return where each key of some sorted rows stands first."""
    encoded = [column.combine_chunks().dictionary_encode() for column in keys.columns]
    return np.flatnonzero(run_begins(*(column.indices.to_numpy(zero_copy_only=False) for column in encoded)))


def _rejected(reject: Reject) -> Problem:
    fact = f"is not accepted: {reject.reason}"
    return Problem("event", f"{reject.topic} {reject.offset + 1}", fact, reject.detail)
