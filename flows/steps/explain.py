"""Why a feature has its value: the row in both stores and in DuckDB, the events in its frame, those left out: pure.

What is said of events is DuckDB's own: it lists, for the very windows that the judge computes, the events between the
frame's ends, those that EXCLUDE leaves, and those that FILTER lets through (`oracle.explained`).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Any

import pyarrow as pa

from freshet.flows.steps.frames import comparable
from freshet.flows.steps.oracle import Answer, Window
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.event import CALENDAR_US, EVENT_TIME
from freshet.schemas.finding import Outcome
from freshet.schemas.plan import Framed, Pipeline, Range, ViewPlan
from freshet.schemas.rejects import Origin
from freshet.schemas.units import instant_us, microseconds
from freshet.schemas.view import CREATED, VERSION, StoredRow, View

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEAREST, AFTER_MAX = 3, 50
"""So many events outside of the frame are shown on either side, and so many rows after the explained one."""


class Why(StrEnum):
    """Why an event of the entity does not count, beside the reasons of a reject (`schemas.rejects.Reason`)."""

    OUTSIDE = "outside"
    """It is before the frame, or after its end."""
    EXCLUDED = "excluded"
    """EXCLUDE leaves it out."""
    FILTERED = "filtered"
    """FILTER does not let it through."""
    DUPLICATE = "duplicate"
    """Its event id came before."""
    WAITING = "waiting"
    """It is in Kafka, and not durable in both stores yet."""
    MISSING = "missing"
    """It was read, and is neither in the archive nor among the dead letters."""


@dataclass(frozen=True, slots=True)
class Left:
    """An event of the entity that does not count: where it stands, its time if that is known, and why.

    `window` is the number of the window, from 1, where it is one window that leaves it out; 0 for all of them.
    """

    origin: Origin
    at: datetime | None
    why: str
    detail: str = ""
    window: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """An event that counts: where it stands, its time, and what the feature takes of it, by its SQL."""

    origin: Origin
    at: datetime
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """A window of the feature: its SQL, its value by DuckDB, where its frame lies in words, and its events."""

    sql: str
    value: Any
    frame: str
    events: tuple[Counted, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """What one side has: the row's time, its version (0 where the store keeps none), the feature, when it was made."""

    at: datetime
    version: int
    value: Any
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class After:
    """A row that stands after the explained one, and whether an event made it, or the time alone."""

    row: Value
    is_decay: bool


@dataclass(frozen=True, slots=True)
class Later:
    """What there is of events after a row: the nearest, how many, and at which of the rows after it one stands (µs).

    `rows_count` is how many rows are after it.
    """

    nearest: tuple[tuple[Origin, datetime], ...] = ()
    count: int = 0
    times_us: frozenset[int] = frozenset()
    rows_count: int = 0


@dataclass(frozen=True)
class Gathered:
    """All that was found of an entity, to be explained.

    `asked` is the time that was asked about, None for the newest row. `rows` are offline rows in every version: of the
    explained instant, of up to `AFTER_MAX` after it, and of the newest. `answer` is what DuckDB says, of events up to
    the row. `rejected`, `passed_over` and `waiting` are events of it that are in no archive.

    `troubles` says by system why it could not be asked, `gaps` what else cannot be said and why; `notes` how far was
    looked. While the stores are `moving` it was not possible to read them at one instant.
    """

    project: str
    plan: ViewPlan
    feature: str
    entity: tuple[Any, ...]
    topics: tuple[str, ...]
    now: datetime
    asked: datetime | None
    rows: pa.Table
    answer: Answer
    later: Later = Later()
    online: StoredRow | None = None
    rejected: tuple[Left, ...] = ()
    passed_over: tuple[Left, ...] = ()
    waiting: tuple[Left, ...] = ()
    troubles: Mapping[str, str] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    moving: bool = False


@dataclass(frozen=True)
class Explanation:
    """Why a feature of an entity has its value at an instant.

    `findings` says where online, offline and DuckDB disagree, `reasons` what cannot be said yet.
    """

    project: str
    view: str
    feature: str
    entity: Mapping[str, Any]
    asked: datetime | None
    at: datetime
    is_decay: bool
    declared: str
    online: Value | None
    offline: Value | None
    duckdb: Value | None
    windows: tuple[Seen, ...]
    newest: Counted | None
    """The newest event up to then, of which columns outside of windows are."""
    left: tuple[Left, ...]
    before_count: int
    """How many accepted events up to the row, as far as was looked, are outside; of them the nearest are in `left`."""
    later_count: int
    """How many accepted events are after the row."""
    versions: tuple[Value, ...]
    after: tuple[After, ...]
    after_count: int
    """How many rows are after it, of which the first are in `after`."""
    findings: tuple[str, ...]
    reasons: tuple[str, ...]
    troubles: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """Say whether all sides agree, as far as they could be asked."""
        if self.findings:
            return Outcome.VIOLATED
        return Outcome.INCONCLUSIVE if self.reasons or self.troubles else Outcome.OK

    @property
    def exit_code(self) -> int:
        """Return what it is for scripts: a finding is one whatever else could not be asked."""
        if self.findings:
            return 1
        return 5 if self.troubles else 3 if self.reasons else 0


# What is asked


def asked_plan(pipeline: Pipeline, view: str, feature: str) -> ViewPlan:
    """Return the plan of a view that has a feature; raises `Refused` with what was probably meant."""
    names = [plan.view.name for plan in pipeline.plans]
    if view not in names:
        raise _unknown("feature view", view, names, f"there is {listed(names)}")
    plan = pipeline.plan(view)
    own = [one.name for one in plan.view.features]
    if feature not in own:
        other = next((one.name for one in pipeline.views if feature in {made.name for made in one.features}), None)
        there = f"{view} has {listed(own)}" if other is None else f"{other} has it"
        raise _unknown("feature", feature, own if other is None else (), there)
    return plan


def _unknown(kind: str, name: str, known: Sequence[str], there: str) -> Refused:
    meant = nearest(name, known)
    return Refused([Problem(kind, name, "is unknown", hint=f"did you mean {meant}?" if meant else there)])


def asked_entity(view: View, words: Sequence[str]) -> tuple[Any, ...]:
    """Return the entity that some words name: values of the join keys in their order, or each as `name=value`.

    Raises `Refused` for what is missing or too much, and a value that is not of its join key's type.
    """
    names = view.entity_names
    named = dict[str, str]()
    for word in words:
        name, is_named, value = word.partition("=")
        if is_named and name in names and name not in named:
            named[name] = value
    if len(named) != len(words) or len(named) != len(names):  # else they are values, whatever is in them
        if len(words) != len(names) or named.keys() >= {*names}:
            hint = f"write {' '.join(f'{name}=…' for name in names)}"
            fact = f"needs a value of each join key of {view.name}"
            raise Refused([Problem("argument", "KEY", fact, " ".join(words) or "nothing", hint)])
        named = dict(zip(names, words, strict=True))
    return tuple(_typed(column, named[column.name]) for column in view.entity)


def _typed(column: pa.Field, word: str) -> Any:
    if not pa.types.is_integer(column.type):
        return word
    try:
        return pa.scalar(int(word), column.type).as_py()
    except (ValueError, OverflowError, pa.ArrowInvalid):
        fact, hint = "is not of its join key's type", f"write a whole number of {column.type}"
        raise Refused([Problem("key", column.name, fact, repr(word), hint)]) from None


# What is said


def explain(found: Gathered) -> Explanation:
    """Explain a row that is there, offline or by DuckDB: `found.answer` has its instant."""
    answer, view = found.answer, found.plan.view
    assert answer.at_us is not None, "a row that is nowhere"
    at = instant(answer.at_us)
    feature = next(one for one in view.features if one.name == found.feature)
    versions = [_value(row, found.feature) for row in found.rows.to_pylist()]
    final = _final(versions)
    offline, newest = final.get(at), final[max(final)] if final else None
    online = None if found.online is None else _online(found.online, found.feature)
    by_duckdb = answer.answer
    duckdb = None if by_duckdb is None else Value(at, by_duckdb[VERSION], by_duckdb[found.feature])
    findings = [*_offline_findings(found, at, offline), *_online_findings(found, online, newest)]
    reasons = [*found.gaps, *_waiting(found, at, online, newest)]
    if found.moving and findings:
        reasons, findings = [*reasons, *(f"{one}; but the stores changed while they were read" for one in findings)], []
    times = {one.at_us for one in answer.events} | found.later.times_us
    numbered = {one.number: one for one in answer.events}
    counted = {
        number: Counted(_origin(found, one.stream, one.partition, one.offset), instant(one.at_us), one.inputs)
        for number, one in numbered.items()
    }
    windows = [
        Seen(
            one.framed.sql,
            one.value,
            frame_words(one, answer.at_us),
            tuple(_only(counted[number], [words for words, _ in one.framed.inputs]) for number in one.counted),
        )
        for one in answer.windows
    ]
    trace = found.plan.oracle.traces[found.feature]
    is_plain = bool(trace.columns) or not trace.windows
    return Explanation(
        project=found.project,
        view=view.name,
        feature=found.feature,
        entity=dict(zip(view.entity_names, found.entity, strict=True)),
        asked=found.asked,
        at=at,
        is_decay=answer.at_us not in times,
        declared=feature.transformation,
        online=online,
        offline=offline,
        duckdb=duckdb,
        windows=tuple(windows),
        newest=_only(counted[answer.newest], trace.columns) if is_plain and answer.newest else None,
        left=(*_left(found, counted), *found.rejected, *found.passed_over, *found.waiting),
        before_count=len(answer.events) - len(_inside(answer)),
        later_count=found.later.count,
        versions=tuple(sorted((one for one in versions if one.at == at), key=_rank)),
        after=tuple(After(final[one], instant_us(one) not in times) for one in sorted(final) if one > at)[:AFTER_MAX],
        after_count=found.later.rows_count,
        findings=tuple(findings),
        reasons=tuple(reasons),
        troubles=found.troubles,
        notes=found.notes,
    )


def _only(event: Counted, names: Iterable[str]) -> Counted:
    return Counted(event.origin, event.at, {name: event.inputs[name] for name in names})


def _value(row: Mapping[str, Any], feature: str) -> Value:
    return Value(row[EVENT_TIME], row[VERSION], row[feature], row[CREATED])


def _online(row: StoredRow, feature: str) -> Value:
    return Value(row.event_timestamp, row.version, row.features.get(feature))


def _rank(row: Value) -> tuple[int, datetime]:
    return row.version, row.created or _EPOCH


def _final(versions: Iterable[Value]) -> dict[datetime, Value]:
    """Return the greatest version of each row."""
    final: dict[datetime, Value] = {}
    for row in versions:
        if row.at not in final or _rank(final[row.at]) < _rank(row):
            final[row.at] = row
    return final


def _origin(found: Gathered, stream: int, partition: int, offset: int) -> Origin:
    return Origin(found.topics[stream], partition, offset)


def _left(found: Gathered, counted: Mapping[int, Counted]) -> list[Left]:
    """Return the accepted events that some window leaves out, and the nearest of those outside of all frames."""
    answer = found.answer
    left: list[Left] = []

    def leave(events: Iterable[int], why: Why, words: Callable[[Counted], str], number: int = 0) -> None:
        places = (counted[event] for event in sorted(events))
        left.extend(Left(one.origin, one.at, why, words(one), number) for one in places)

    for number, window in enumerate(answer.windows, start=1):
        framed = window.framed
        leave({*window.between} - {*window.members}, Why.EXCLUDED, partial(_excluded, framed), number)
        leave({*window.members} - {*window.counted}, Why.FILTERED, partial(_filtered, framed), number)
    inside = _inside(answer)
    outside = [one for one in counted if one not in inside]
    newest = answer.newest or 0
    older = [one for one in outside if one <= newest and (not inside or one < min(inside))]
    between = [one for one in outside if one not in older and one <= newest]
    leave(older[-NEAREST:], Why.OUTSIDE, lambda _: "before the frame")
    leave(between[-NEAREST:], Why.OUTSIDE, lambda _: "after the frame's end")
    left += [Left(origin, at, Why.OUTSIDE, "after the row") for origin, at in found.later.nearest]
    return left


def _excluded(framed: Framed, _: Counted) -> str:
    return f"EXCLUDE {framed.frame.exclude}"


def _filtered(framed: Framed, event: Counted) -> str:
    condition = framed.inputs[-1][0]
    return f"{condition} is {plain(event.inputs[condition])}"


def _inside(answer: Answer) -> set[int]:
    """Return the events that some window has between its ends; without a window it is the newest alone."""
    inside = {event for window in answer.windows for event in window.between}
    return inside | ({answer.newest} if answer.newest and not answer.windows else set())


def _offline_findings(found: Gathered, at: datetime, offline: Value | None) -> Iterable[str]:
    """Say where the offline row and DuckDB's differ; nothing where DuckDB cannot know."""
    answer = found.answer
    if found.gaps:
        return
    if offline is None and answer.answer is not None:
        yield f"the offline store has no row at {spell(at)}, which DuckDB makes of the archived events"
    elif offline is not None and answer.answer is None:
        yield f"the offline store has a row at {spell(at)}, which no archived event makes"
    elif offline is not None and answer.answer is not None:
        names = {found.feature, VERSION} & answer.differing
        for name in sorted(names):
            mine = offline.version if name == VERSION else offline.value
            yield f"{name} is {plain(mine)} offline and {plain(answer.answer[name])} by DuckDB, at {spell(at)}"
        others = sorted(answer.differing - names - {VERSION})
        if names and others:
            yield f"other features of the row differ, too: {listed(others)}"


def _online_findings(found: Gathered, online: Value | None, newest: Value | None) -> Iterable[str]:
    """Say where the online row is not the newest offline one; a row is online before it is committed."""
    if newest is None or "online store" in found.troubles:
        return
    if online is None:
        ttl = found.plan.view.ttl
        if not ttl or found.now - newest.at < ttl:
            yield f"the online store has no row; the newest offline is of {spell(newest.at)}"
    elif online.at < newest.at:
        yield f"the online row is of {spell(online.at)}, older than the newest offline, of {spell(newest.at)}"
    elif online.at == newest.at and 0 < online.version < newest.version:
        yield f"the online row has version {online.version}, offline it has {newest.version}, at {spell(newest.at)}"
    elif (online.at, online.version or newest.version) == (newest.at, newest.version):
        mine, its = comparable(online.value), comparable(newest.value)
        if mine != its:
            yield f"{found.feature} is {plain(mine)} online and {plain(its)} offline, at {spell(newest.at)}"


def _waiting(found: Gathered, at: datetime, online: Value | None, newest: Value | None) -> Iterable[str]:
    """Say what is under way that may change this row."""
    asked = found.asked
    if online and (newest is None or (online.at, online.version) > (newest.at, newest.version)):
        later = asked is not None and online.at > max(at, asked)
        if not later and online.version:
            yield f"the online row, of {spell(online.at)}, is newer than what is durable, which its events will be soon"
    waiting = [one for one in found.waiting if asked is None or one.at is None or one.at <= asked]
    if waiting:
        yield f"{len(waiting)} events of it wait in Kafka"


def frame_words(window: Window, at_us: int) -> str:
    """Return where a window's frame lies, for people."""
    frame = window.framed.frame
    if not isinstance(frame, Range):
        newest = "the newest event" if frame.ending == 0 else f"{frame.ending} before the newest event"
        return f"up to {newest}" if frame.preceding is None else f"from {frame.preceding} before to {newest}"
    end = instant(at_us - frame.ending_us)
    if frame.preceding_us is None:
        return f"up to {spell(end)}"
    start_us = at_us - frame.preceding_us
    start_us -= (start_us - frame.origin_us) % frame.resolution_us
    return f"from {spell(instant(start_us))} to {spell(end)}"


def instant(at_us: int) -> datetime:
    """Return an instant of µs since the epoch; of one that no calendar has, the end of the calendar.

    >>> instant(1_000_000), instant(-(2**62)).year
    (datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.timezone.utc), 1)
    """
    begin_us, end_us = CALENDAR_US
    return _EPOCH + microseconds(min(max(at_us, begin_us), end_us))


def spell(at: datetime) -> str:
    """Write an instant in UTC, to the microsecond where it has some.

    >>> spell(datetime(2026, 3, 1, 12, tzinfo=UTC)), spell(datetime(2026, 3, 1, 12, 0, 0, 500, tzinfo=UTC))
    ('2026-03-01T12:00:00Z', '2026-03-01T12:00:00.000500Z')
    """
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


# As JSON


def as_json(told: Explanation) -> dict[str, Any]:
    """Return an explanation as JSON has it; numbers that JSON has not are text."""
    return {
        "project": told.project,
        "view": told.view,
        "feature": told.feature,
        "entity": told.entity,
        "asked": told.asked and spell(told.asked),
        "at": spell(told.at),
        "made_by": "time" if told.is_decay else "event",
        "outcome": told.outcome.value,
        "findings": list(told.findings),
        "reasons": list(told.reasons),
        "troubles": dict(told.troubles),
        "notes": list(told.notes),
        "declared": told.declared,
        "online": told.online and _row_json(told.online),
        "offline": told.offline and _row_json(told.offline),
        "duckdb": told.duckdb and _row_json(told.duckdb),
        "newest": told.newest and _event_json(told.newest),
        "windows": [
            {
                "sql": one.sql,
                "value": json_value(one.value),
                "frame": one.frame,
                "events": [_event_json(event) for event in one.events],
            }
            for one in told.windows
        ],
        "left": [
            {**_place_json(one.origin, one.at), "why": one.why, "detail": one.detail, "window": one.window or None}
            for one in told.left
        ],
        "before_count": told.before_count,
        "later_count": told.later_count,
        "versions": [_row_json(one) for one in told.versions],
        "after_count": told.after_count,
        "after": [{**_row_json(one.row), "made_by": "time" if one.is_decay else "event"} for one in told.after],
    }


def _row_json(row: Value) -> dict[str, Any]:
    return {
        "event_timestamp": spell(row.at),
        "version": row.version,
        "value": json_value(row.value),
        "created": row.created and spell(row.created),
    }


def _event_json(event: Counted) -> dict[str, Any]:
    inputs = {name: json_value(value) for name, value in event.inputs.items()}
    return {**_place_json(event.origin, event.at), "inputs": inputs}


def _place_json(origin: Origin, at: datetime | None) -> dict[str, Any]:
    place = {"topic": origin.topic, "partition": origin.partition, "offset": origin.offset}
    return {**place, "event_timestamp": at and spell(at)}


def json_value(value: Any) -> Any:
    """Return a value as JSON has it.

    >>> json_value(float("nan")), json_value(Decimal("1.5")), json_value([datetime(2026, 3, 1)]), json_value(b"a")
    ('nan', '1.5', ['2026-03-01T00:00:00'], '61')
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if abs(value) < float("inf") else str(value)
        case datetime():
            return spell(value) if value.tzinfo else value.isoformat()
        case bytes():
            return value.hex()
        case list() | tuple():
            return [json_value(one) for one in value]
        case Mapping():
            return {str(name): json_value(one) for name, one in value.items()}
        case Decimal() | timedelta():
            return str(value)
    return str(value)


# For people

_CELL_CHARACTERS, _VALUE_CHARACTERS = 40, 120


def screen(told: Explanation, events_count: int = 20) -> str:
    """Return an explanation as a person reads it, with so many events of each window at most, the newest ones."""
    entity = ", ".join(f"{name}={plain(value)}" for name, value in told.entity.items())
    lines = [f"{told.view}.{told.feature} of {entity}, at {spell(told.at)}, {_made(told)}", ""]
    lines += table(
        ("", "value", "at", "version"),
        [
            (name, *(_cells(row) if row else (_absent(told, name), "", "")))
            for name, row in (("online", told.online), ("offline", told.offline), ("DuckDB", told.duckdb))
        ],
    )
    lines += ["", _sentence(told), "", "declared:", *(f"  {line}" for line in told.declared.strip().splitlines())]
    for number, window in enumerate(told.windows, start=1):
        lines += ["", *_window_lines(window, number, len(told.windows), events_count)]
    if told.newest is not None:
        lines += ["", "the newest event up to then:", *_events([told.newest])]
    lines += ["", *_left_lines(told, events_count)]
    lines += [*_versions(told.versions), *_after(told, events_count)]
    lines += [f"note: {escaped(note)}" for note in told.notes]
    return "\n".join(lines)


def _made(told: Explanation) -> str:
    if told.offline is None and told.duckdb is None:
        return "not durable yet"
    return "made by time alone" if told.is_decay else "made by an event"


def _cells(row: Value) -> tuple[str, str, str]:
    return plain(row.value, _VALUE_CHARACTERS), spell(row.at), str(row.version or "-")


def _absent(told: Explanation, name: str) -> str:
    return "(not known)" if name == "online" and "online store" in told.troubles else "(no row)"


def _sentence(told: Explanation) -> str:
    said = [*told.findings, *told.reasons, *(f"{name}: {why}" for name, why in told.troubles.items())]
    word = {Outcome.VIOLATED: "they disagree", Outcome.INCONCLUSIVE: "not all can be said"}.get(told.outcome)
    return f"{word}: " + escaped("; ".join(said)) if word else "all that can be compared agrees"


def _window_lines(window: Seen, number: int, count: int, events_count: int) -> list[str]:
    name = f"window {number}" if count > 1 else "window"
    lines = [f"{name}: {escaped(window.sql)}"]
    lines.append(f"  is {plain(window.value, _VALUE_CHARACTERS)}, of {len(window.events)} events, {window.frame}")
    shown = window.events[-events_count:] if events_count else ()
    if len(shown) < len(window.events):
        lines.append(f"  the newest {len(shown)} of them; --events N shows more, --json all")
    return lines + _events(shown)


def _events(events: Sequence[Counted]) -> list[str]:
    if not events:
        return []
    names = list(events[0].inputs)
    head = ("topic", "partition", "offset", "at", *(_cut(name) for name in names))
    rows = [(*_place(one.origin), spell(one.at), *(plain(one.inputs[name]) for name in names)) for one in events]
    return [f"  {line}" for line in table(head, rows)]


def _place(origin: Origin) -> tuple[str, str, str]:
    return origin.topic, str(origin.partition), str(origin.offset)


def _left_lines(told: Explanation, events_count: int) -> list[str]:
    counts = {"before the frame": told.before_count, "after the row": told.later_count}
    for one in told.left:
        if one.why != Why.OUTSIDE:
            counts[one.why] = counts.get(one.why, 0) + 1
    said = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
    head = ("topic", "partition", "offset", "at", "why", "")
    rows = []
    for one in sorted(told.left, key=_interest)[:events_count]:
        window = f"window {one.window}: " if one.window and len(told.windows) > 1 else ""
        at = "-" if one.at is None else spell(one.at)
        rows.append((*_place(one.origin), at, one.why, escaped(window + one.detail)))
    lines = [f"left out: {said or 'nothing that was found'}"]
    return lines + [f"  {line}" for line in table(head, rows)] if rows else lines


def _interest(one: Left) -> tuple[int, datetime, Origin]:
    """Return the order in which events that do not count are shown: what was never accepted first, then by time."""
    known = [Why.EXCLUDED, Why.FILTERED, Why.OUTSIDE]
    rank = known.index(Why(one.why)) + 1 if one.why in known else 0
    return rank, one.at or _EPOCH, one.origin


def _versions(versions: Sequence[Value]) -> list[str]:
    if len(versions) < 2:
        return ["never corrected"] if versions else []
    lines = [f"corrected {len(versions) - 1} times:"]
    rows = [
        (str(one.version), plain(one.value), "-" if one.created is None else spell(one.created)) for one in versions
    ]
    return lines + [f"  {line}" for line in table(("version", "value", "created"), rows)]


def _after(told: Explanation, events_count: int) -> list[str]:
    if not told.after_count:
        return []
    rows = [
        (spell(one.row.at), plain(one.row.value), str(one.row.version), "time" if one.is_decay else "event")
        for one in told.after[:events_count]
    ]
    more = f", the first {len(rows)} of them" if len(rows) < told.after_count else ""
    lines = [f"rows since: {told.after_count}{more}"]
    return lines + [f"  {line}" for line in table(("at", "value", "version", "made by"), rows)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows below a head, each column flush left.

    >>> table(("a", "b"), [("one", "2")])
    ['a    b', 'one  2']
    """
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def plain(value: Any, characters: int = _CELL_CHARACTERS) -> str:
    r"""Write a value for a terminal: one line, no control characters, not too long.

    >>> plain(None), plain("a\x1b[31m\nb"), plain([1, "x"]), plain(2.5)
    ('NULL', 'a\\x1b[31m\\nb', '[1, "x"]', '2.5')
    """
    if value is None:
        return "NULL"
    made = json_value(value)
    text = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)
    return _cut(escaped(text), characters)


def _cut(text: str, characters: int = _CELL_CHARACTERS) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def escaped(text: str) -> str:
    r"""Return text without control characters.

    >>> escaped("a\tb")
    'a\\tb'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
