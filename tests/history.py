"""A pipeline on both stores' twins under a virtual clock, and what can be done to it: events are produced, folded into
rows, written online, committed; a crash begins anew where the ledger says. All of it is right, until a fault is there.

A row's version is the number of its entity's events up to its time, so an event that comes late rewrites what follows.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from freshet.flows.edges.parquet import MemoryOfflineStore, last_versions
from freshet.flows.edges.quality import Judge, agree
from freshet.flows.edges.recovery import MemoryLedger
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.observer import Observer
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.freshness import Freshness, Progress
from freshet.flows.validator import Edges, Round, Rounds, heeded
from freshet.flows.watch import Outside, Sampling
from freshet.schemas import feast_bytes
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.finding import Check, Outcome, Question, Verdict
from freshet.schemas.ledger import Ledger, Pending, ShardMark, Update, source_key
from freshet.schemas.plan import Oracle, Pipeline, ViewPlan
from freshet.schemas.units import Objective, instant_us
from freshet.schemas.view import Feature, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
STREAM, SHARDS_COUNT, PARTITIONS_COUNT = "edits", 2, 2
TARGET = Objective(99, timedelta(seconds=5))
VIEW = View("edits_by_user", (STREAM,), (pa.field("user", pa.string()),), (Feature("edits", DTYPES["int64"], "…"),))

Row = dict[str, Any]
Event = tuple[str, datetime]


def plan_of(view: View, sql: str = "") -> ViewPlan:
    """A plan that says no more of what it computes than that another one computes something else."""
    return ViewPlan(view, (), pa.schema([]), (), (), "", Oracle((), sql), whole_history=True)


def nothing(*_: Any) -> None:
    """Do nothing."""


class Touched:
    """A part of the outside; before each call to it something may happen."""

    def __init__(self, part: Any, touch: Callable[[], Any]) -> None:
        self._part, self._touch = part, touch

    def __getattr__(self, name: str) -> Any:
        def call(*words: Any, **named: Any) -> Any:
            self._touch()
            return getattr(self._part, name)(*words, **named)

        return call


@dataclass
class Hooks:
    """Where faults reach in: an event as it is sent, a row on its way online (None loses it), one that was written,
    the rows of a part as they are staged, and a part that has become visible."""

    sent: Callable[[Event], Event] = lambda event: event
    writing: Callable[[Row], Row | None] = lambda row: row
    written: Callable[[Row], None] = nothing
    staged: Callable[[list[Row]], list[Row]] = lambda rows: rows
    visible: Callable[[str], None] = nothing


@dataclass
class History:
    """Both stores, the ledger, Kafka and the flow, at one instant; `meanwhile` happens at each touch of a validator."""

    hooks: Hooks = field(default_factory=Hooks)
    meanwhile: Callable[[], Any] = nothing
    now: datetime = START
    view: View = VIEW

    def __post_init__(self) -> None:
        self.online, self.offline, self.ledger = (
            MemoryOnlineStore("t", [self.view], lambda: self.now),
            MemoryOfflineStore(),
            MemoryLedger(),
        )
        self.offline.prepare(self.view.name, self.view.row_schema)
        self.log: list[list[Event]] = [[] for _ in range(PARTITIONS_COUNT)]
        self.read_counts = [0] * PARTITIONS_COUNT
        self.events: dict[str, list[datetime]] = {}
        self.staging: list[Row] = []
        self._unseen: dict[str, dict[str, int]] = {}
        self.plan = plan_of(self.view)  # what is in force
        self.ledger.write(Ledger(id="a", shards_count=SHARDS_COUNT, views={self.view.name: self.plan.digest}))

    # What producers and the flow do

    def produce(self, user: str, at: datetime | None = None) -> None:
        """Send an event, of now or of another time."""
        sent = self.hooks.sent((user, at or self.now))
        self.log[sum(map(ord, user)) % PARTITIONS_COUNT].append(sent)

    def process(self) -> None:
        """Read what waits, and write the newest row of each entity online."""
        waiting = [events[count:] for events, count in zip(self.log, self.read_counts, strict=True)]
        self.read_counts = [*map(len, self.log)]
        rows = self._fold([event for events in waiting for event in events])
        newest = {row["user"]: row for row in rows}  # they come in the order of their times
        self.staging += rows
        kept = [row for row in map(self.hooks.writing, newest.values()) if row is not None]
        if newest:
            self.online.write(self.view, pa.Table.from_pylist(kept, self.view.row_schema))
        for row in kept:
            self.hooks.written(row)

    def commit(self, *, published: bool = True) -> None:
        """Make all that was read durable; its part is visible at once, or only before the next commit or crash."""
        self._publish()
        before = self.ledger.read()
        assert before is not None
        rows = self.hooks.staged(self.staging)
        epoch = before.epoch + 1
        part = self.offline.stage(self.view.name, pa.Table.from_pylist(rows, self.view.row_schema), epoch)
        self.staging = []
        parts = {self.view.name: {part: len(rows)}} if part else {}
        reached = max([self.now, *(times[-1] for times in self.events.values() if times)])
        marks = {f"{self.view.name}/{shard}": ShardMark(clock_us=instant_us(reached)) for shard in range(SHARDS_COUNT)}
        update = Update(parts=parts, shards=marks, online_writes_count=self.online.writes_count)
        self.ledger.write(before.after(epoch, self._offsets(self.read_counts), [update]))
        self._unseen = parts
        if published:
            self._publish()

    def _publish(self) -> None:
        unseen, self._unseen = self._unseen, {}
        self.offline.publish(unseen)
        for part in unseen.get(self.view.name, ()):
            self.hooks.visible(part)

    def crash(self) -> None:
        """Die, and go on from the ledger: what was online stays there."""
        self._publish()
        ledger = self.ledger.read()
        assert ledger is not None
        self.read_counts = [ledger.offsets.get(source_key(STREAM, part), 0) for part in range(PARTITIONS_COUNT)]
        self.staging, self.events = [], {}
        self._fold([event for log, count in zip(self.log, self.read_counts, strict=True) for event in log[:count]])

    def _fold(self, events: Sequence[Event]) -> list[Row]:
        """Return every row that some events make or rewrite, in the order of their times."""
        since: dict[str, datetime] = {}
        for user, at in events:
            insort(self.events.setdefault(user, []), at)
            since[user] = min(at, since.get(user, at))
        return [
            self.row(user, at, bisect_right(times, at))
            for user, oldest in since.items()
            for times in [self.events[user]]
            for at in sorted({*times[bisect_left(times, oldest) :]})
        ]

    def row(self, user: str, at: datetime, version: int) -> Row:
        """Return a row as it must be."""
        columns = {"user": user, "event_timestamp": at, "created": self.now, "_version": version}
        return {**columns, "_partition": 0, "_offset": 0, "edits": 1 + version % 7}

    def _offsets(self, counts: Sequence[int]) -> dict[str, int]:
        return {source_key(STREAM, part): count for part, count in enumerate(counts)}

    def compact(self) -> None:
        """Have the next generation be the current one, at one stroke: of each row of older parts it has the final version.

        The last commit's parts stay as they are, as they do where `flows/compact.py` takes many steps.
        """
        name, ledger, before = self.view.name, self.ledger.read(), self._folder
        assert ledger is not None
        merged = [part for part in before if part not in ledger.parts.get(name, {})]
        rows = pa.concat_tables([before[part] for part in merged])
        final = last_versions(rows, self.view)
        if len(merged) < 2 or not final.num_rows:
            return
        target = self.offline.next_generation(name)
        folder = self.offline.begin(name, target, self.view.row_schema)
        made = {f"part-{ledger.epoch:010d}-final.memory-{target:06d}.parquet": final}
        staged = self.offline._staged[self.offline.folder(name)]  # noqa: SLF001  # the flow puts them into both
        self.offline._visible[folder] |= made | {part: table for part, table in before.items() if part not in merged}  # noqa: SLF001
        self.offline._staged[folder] = staged  # noqa: SLF001
        self.offline._generations = self.offline._generations.begun(name).switched(  # noqa: SLF001
            name, rows.num_rows - final.num_rows
        )
        assert self.offline.folder(name) == folder

    # What is done to the online store past its own rule

    def stored(self, user: str) -> dict[bytes, bytes]:
        """Return the fields that the online store holds of an entity."""
        key = self.online._layouts[self.view.name].keys_of([(user,)])[0]  # noqa: SLF001  # what no writer may do
        return self.online._hashes.setdefault(key, {})  # noqa: SLF001

    def overwrite(self, row: Row) -> None:
        """Put a row there, whatever it replaces."""
        layout = self.online._layouts[self.view.name]  # noqa: SLF001
        [(_, *pairs, _)] = layout.commands(pa.Table.from_pylist([row], self.view.row_schema))
        self.stored(row["user"]).update(zip(pairs[::2], pairs[1::2], strict=True))

    def alter(self, user: str, value: Any) -> None:
        """Put another value there, of whatever type; None is null."""
        name = self.online._layouts[self.view.name].fields[2]  # noqa: SLF001
        self.stored(user)[name] = b"" if value is None else feast_bytes.encode(pa.array([value]))[0]

    def keep(self, user: str) -> None:
        """Have the online store keep an entity for ever."""
        key = self.online._layouts[self.view.name].keys_of([(user,)])[0]  # noqa: SLF001
        self.online._expiries_ms.pop(key, None)  # noqa: SLF001

    @property
    def parts(self) -> list[str]:
        """The visible parts that have rows."""
        return [part for part, table in self._folder.items() if table.num_rows]

    @property
    def _folder(self) -> dict[str, pa.Table]:
        return self.offline._visible[self.offline.folder(self.view.name)]  # noqa: SLF001  # what no writer may do

    def change_part(self, part: str, change: Callable[[pa.Table], pa.Table | None]) -> None:
        """Replace a visible part, or take it away."""
        parts = self._folder
        changed = change(parts[part])
        if changed is None:
            del parts[part]
        else:
            parts[part] = changed

    def repair(self) -> None:
        """Write every entity's newest row online, whatever is there; the store counts as many writes as ever."""
        for user, times in self.events.items():
            if times:
                self.overwrite(self.row(user, times[-1], len(times)))
        self.online.catch_up(max(ledger.online_writes_count if (ledger := self.ledger.read()) else 0, 1))

    # What a validator sees

    def outside(self) -> Outside:
        parts = (Touched(part, self._touch) for part in (self.online, self.offline, self.ledger))
        return Outside(*parts, self._ends, self._progress, lambda: self.now)

    def _touch(self) -> None:
        self.meanwhile()

    def _ends(self) -> dict[str, int]:
        self._touch()
        return self._offsets([*map(len, self.log)])

    def _progress(self) -> dict[tuple[str, int], Progress]:
        ledger = self.ledger.read()
        done = ledger.offsets if ledger else {}
        committed = [done.get(source_key(STREAM, part)) for part in range(PARTITIONS_COUNT)]
        return {(STREAM, part): Progress(committed[part], len(log)) for part, log in enumerate(self.log)}


@dataclass
class Once:
    """What happens at one touch of the outside, of which it counts all."""

    touch: int
    act: Callable[[], object]
    touches_count: int = 0

    def __call__(self) -> None:
        if self.touches_count == self.touch:
            self.act()
        self.touches_count += 1


class Changing(History):
    """A history in which the declaration changes, to and fro, step by step as `flows/change.py` does it.

    One counts otherwise than the other. The flow waits from its last commit on until the new declaration is in force.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_held, self._next = False, self.plan
        self._steps = list[Callable[[], None]]()

    def change(self, steps_count: int = 1) -> None:
        """Go some steps on."""
        for _ in range(steps_count):
            self._steps = self._steps or [
                self._hold, self._decide, self._switch, self._fill_half, self._fill, self._apply, self._end
            ]  # fmt: skip
            self._steps.pop(0)()

    def complete(self) -> None:
        """Have the change, if there is one, be over."""
        while self._steps:
            self.change()

    def row(self, user: str, at: datetime, version: int) -> Row:
        """Return a row as it must be."""
        return {**super().row(user, at, version), "edits": 1 + (version + len(self._next.oracle.finish)) % 7}

    def process(self) -> None:
        if not self.is_held:
            super().process()

    def commit(self, *, published: bool = True) -> None:
        if not self.is_held:
            super().commit(published=published)

    def crash(self) -> None:
        if not self.is_held:
            super().crash()

    def _hold(self) -> None:
        self.commit()
        self.is_held = True

    def _decide(self) -> None:
        self._next = plan_of(self.view, "" if self._next.oracle.finish else "other")
        ledger, name = self.ledger.read(), self.view.name
        assert ledger is not None
        rows = [
            self.row(user, at, bisect_right(times, at))
            for user, times in self.events.items()
            for at in sorted({*times})
        ]
        self._generations = {name: self.offline.next_generation(name)}
        folder = self.offline.begin(name, self._generations[name], self.view.row_schema)
        part = self.offline.stage(folder, pa.Table.from_pylist(rows, self.view.row_schema), ledger.epoch)
        self.offline.publish({folder: [part] if part else []})
        changes = {
            "views": {name: self._next.digest},
            "parts": {},
            "rows_counts": {name: len(rows)},
            "pending": Pending(declaration="other", generations=self._generations),
        }
        self.ledger.write(ledger.model_copy(update=changes))

    def _switch(self) -> None:
        self.offline.switch(self._generations)

    def _fill_half(self) -> None:
        self._overwrite([*self.events][::2])

    def _fill(self) -> None:
        self._overwrite([*self.events])

    def _overwrite(self, users: Sequence[str]) -> None:
        for user in users:
            if times := self.events[user]:
                self.overwrite(self.row(user, times[-1], len(times)))

    def _apply(self) -> None:
        self.plan = self._next

    def _end(self) -> None:
        ledger = self.ledger.read()
        assert ledger is not None
        self.ledger.write(ledger.model_copy(update={"pending": None}))
        self.is_held = False


class Validator:
    """A validator of a history at default settings, whose rounds are begun by hand.

    It begins anew where the plan is another one by now, and goes on with the findings that are open.
    """

    def __init__(self, history: History, judge: Any, sampling: Sampling) -> None:
        self._history, self._sampling = history, sampling
        self._begin()
        rounds = Rounds(timedelta(seconds=5), lambda: history.now)
        self._edges = Edges(self.observer, judge, Alarms(), rounds, _Silent(), TARGET)
        self._number = 0

    def _begin(self) -> None:
        history, self._plan = self._history, self._history.plan
        pipeline, freshness = Pipeline("history", (self._plan,)), Freshness(TARGET, timedelta(seconds=1))
        self.observer = Observer(pipeline, history.outside(), self._sampling, freshness)

    def round(self) -> Round:
        """Do one round."""
        self._number += 1
        if self._history.plan.digest != self._plan.digest:
            self._begin()
            checks = {check.name for check in checks_of(self._history.view, TARGET)}
            assert self._edges.alarms.keep(checks, self._history.now) == ()
        return heeded(self._edges, self._number, self.observer.look(self._number))


class _Silent:
    def report(self, told: Round, took: timedelta) -> None:
        """Tell nobody."""


class Sparing:
    """A judge that asks the judge of all only about checks that may fail: most of a long history holds for certain.

    What it spares is asked all the same every so often, and must be answered alike.
    """

    def __init__(self, judge: Judge, every: int) -> None:
        self._judge, self._every, self._count = judge, every, 0

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answer each question, as `Judge` does."""
        spared = [_spared(question) for question in questions]
        left = [
            replace(one, checks=[check for check in one.checks if check.name not in held])
            for one, (held, _) in zip(questions, spared, strict=True)
        ]
        asked = [one for one in left if one.checks]
        answers = iter(self._judge.judge(asked) if asked else [])
        told = []
        for one, rest, (_, known) in zip(questions, left, spared, strict=True):
            said = next(answers) if rest.checks else known
            untold = {*said.untold, *known.untold}
            told.append(replace(said, untold=tuple(check.name for check in one.checks if check.name in untold)))
        self._count += 1
        assert self._count % self._every or self._judge.judge(questions) == told, "Great Expectations says otherwise"
        return told


def _spared(question: Question) -> tuple[set[str], Verdict]:
    """Return the checks of which the verdict is certain, and that verdict."""
    lines = question.lines.to_dict("records")
    names = tuple(check.name for check in question.checks)
    if len(lines) < question.minimum_rows:
        reason = f"{question.view}: {len(lines)} lines to judge, fewer than {question.minimum_rows}"
        return {*names}, Verdict(question.view, Outcome.INCONCLUSIVE, len(lines), reasons=(reason,), untold=names)
    held = [check for check in question.checks if _holds(lines, check)]
    untold = tuple(check.name for check in held if not any(_looks(line, check) for line in lines))
    return {check.name for check in held}, Verdict(question.view, Outcome.OK, len(lines), untold=untold)


def _looks(line: Mapping[Any, Any], check: Check) -> bool:
    return all(line[name] is not None for name in check.needed)


def _holds(lines: Sequence[Mapping[Any, Any]], check: Check) -> bool:
    """Say whether a check holds for certain; of one that is not known here, that it may not."""
    words = check.arguments
    one, other = (words.get(name, words.get("column")) for name in ("column_A", "column_B"))
    looked = [(line[one], line[other]) for line in lines if _looks(line, check)] if one and other else []
    match check.expectation:
        case "ExpectColumnValuesToNotBeNull":
            return all(value is not None for value, _ in looked)
        case "ExpectColumnPairValuesToBeEqual":
            return all(value == another for value, another in looked)
        case "ExpectColumnPairValuesAToBeGreaterThanB":
            return all(value >= another for value, another in looked)
        case "ExpectColumnValuesToNotBeInSet":
            return all(value not in words["value_set"] for value, _ in looked)
        case "ExpectColumnValuesToBeInSet":
            return all(value in words["value_set"] for value, _ in looked)
        case "ExpectColumnValuesToBeBetween":
            return all(value <= words["max_value"] for value, _ in looked)
        case "ExpectOnlineToEqualOffline":
            return all(agree(*pair, words["relative_tolerance"]) for pair in looked)
    return False
