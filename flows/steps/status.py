"""How a deployment does, on one screen: pure.

What is not known is None, and shown as a dash: a part that does not answer takes its own lines away, and no others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from freshet.flows.steps.burrow import Status
from freshet.flows.steps.freshness import State
from freshet.flows.steps.lag import Lag
from freshet.schemas.applied import DeclarationStatus

_WORST = (Status.STOP, Status.STALL, Status.REWIND, Status.WARN, Status.OK)
_STOPPED = frozenset({Status.STOP, Status.STALL})
_UNKNOWN = "-"
_AHEAD_S = 1.0
"""By so much a producer's clock may be ahead without being told of."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the deployment: where it is, why it does not answer, or what one that answers says is wrong."""

    name: str
    where: str
    trouble: str = ""
    complaint: str = ""

    @property
    def word(self) -> str:
        """How it is, in a word."""
        return "DOWN" if self.trouble else "UNWELL" if self.complaint else "ok"


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How far the materializer is with a stream, the worst of its partitions first in everything.

    `in_per_s` messages come, `done_per_s` are made durable. `last_event_ages_s` say how long ago the newest message of
    a partition was written, by the time that it carries, where that is known: below 0 if its producer's clock is ahead.
    """

    stream: str
    topic: str
    lags: Mapping[int, Lag] = field(default_factory=dict)
    in_per_s: float | None = None
    done_per_s: float | None = None
    dead_letters_count: int | None = None
    last_event_ages_s: Mapping[int, float] = field(default_factory=dict)

    @property
    def last_event_age_s(self) -> float | None:
        """How long ago the newest message of all was written."""
        return _least(self.last_event_ages_s.values())

    @property
    def stalled_count(self) -> int:
        """In how many partitions messages wait while nothing gets done."""
        return sum(lag.status in _STOPPED for lag in self.lags.values())

    @property
    def status(self) -> Status | None:
        """Burrow's word for the worst partition."""
        found = {lag.status for lag in self.lags.values()}
        return next((status for status in _WORST if status in found), None)

    @property
    def messages_count(self) -> int | None:
        """How many messages wait."""
        return sum(lag.messages_count for lag in self.lags.values()) if self.lags else None

    @property
    def age_s(self) -> float | None:
        """How long the oldest of them has waited."""
        return max((lag.age_s for lag in self.lags.values() if lag.age_s is not None), default=None)

    @property
    def drain_s(self) -> float | None:
        """Until none waits."""
        return _largest(lag.drain_s for lag in self.lags.values())

    @property
    def breach_s(self) -> float | None:
        """Until the first partition passes the target."""
        return _least(lag.breach_s for lag in self.lags.values())

    @property
    def retention_left_s(self) -> float | None:
        """Until Kafka deletes the first message that waits."""
        return _least(lag.retention_left_s for lag in self.lags.values())


def _largest(values: Any) -> float | None:
    known = list(values)
    return None if not known or None in known else max(known)


def _least(values: Any) -> float | None:
    return min((value for value in values if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """How a feature view does. Of `findings`, open ones, there are so many by cause; None if nobody looks.

    Of the `partitions_count` partitions of its streams `stalled_count` stand still. The oldest event that waits for it
    has waited for `age_s`. `freshness_p99_s` is of the rows of the last minute, of which a stalled view has none that
    tell how fresh it is.
    """

    view: str
    state: State
    features_count: int
    rows_per_s: float | None = None
    freshness_p99_s: float | None = None
    entities_count: int | None = None
    findings: Mapping[str, int] | None = None
    stalled_count: int = 0
    partitions_count: int = 0
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All of it, at one instant. `rejects` are those since the materializer started, by reason, none left out.

    `declaration` is None where the offline store, which has it, cannot be read.
    """

    project: str
    at: datetime
    parts: Sequence[Part]
    streams: Sequence[StreamStatus]
    views: Sequence[ViewStatus]
    target_s: float
    checkpoint_age_s: float | None = None
    epoch: int | None = None
    rejects: Mapping[str, int] | None = None
    validated_age_s: float | None = None
    declaration: DeclarationStatus | None = None

    def silent_at(self, name: str) -> str:
        """Return where a part is that does not answer; nothing if it does."""
        return next((part.where for part in self.parts if part.name == name and part.trouble), "")

    @property
    def is_down(self) -> bool:
        """Whether a part does not answer."""
        return any(part.trouble for part in self.parts)

    @property
    def is_ailing(self) -> bool:
        """Whether a part that answers says that something is wrong with it."""
        return any(part.complaint for part in self.parts)

    @property
    def is_unwell(self) -> bool:
        """Whether something is found, late or stopped."""
        found = any(sum((view.findings or {}).values()) for view in self.views)
        late = any(view.state in {State.LAGGING, State.STALLED, State.BREACHED} for view in self.views)
        stopped = any(stream.status in _STOPPED | {Status.REWIND} for stream in self.streams)
        return found or late or stopped


def state_of(
    streams: Sequence[StreamStatus], target_s: float, findings: Mapping[str, int] | None, breach_cause: str
) -> State:
    """Say how a view keeps up with its streams, by what Kafka tells, and by a finding of the validator's.

    It is breached while there is one of `breach_cause`, stalled where the flow does not go on with what is late.
    """
    if not all(stream.lags for stream in streams):
        return State.UNKNOWN
    is_late = any((stream.age_s or 0.0) > target_s for stream in streams)
    if is_late and any(stream.status in _STOPPED for stream in streams):
        return State.STALLED
    if findings and findings.get(breach_cause):
        return State.BREACHED
    if is_late:
        return State.LAGGING
    came = any(stream.in_per_s or stream.messages_count for stream in streams)
    return State.FRESH if came else State.IDLE


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON: what is infinite is the text `never`, as JSON has no such number."""
    streams = [
        {
            "stream": one.stream,
            "topic": one.topic,
            "status": one.status,
            "messages_count": one.messages_count,
            "age_s": one.age_s,
            "drain_s": one.drain_s,
            "breach_s": one.breach_s,
            "retention_left_s": one.retention_left_s,
            "last_event_age_s": one.last_event_age_s,
            "in_per_s": one.in_per_s,
            "done_per_s": one.done_per_s,
            "dead_letters_count": one.dead_letters_count,
            "partitions": [
                {"partition": number, **asdict(lag), "last_event_age_s": one.last_event_ages_s.get(number)}
                for number, lag in sorted(one.lags.items())
            ],
        }
        for one in report.streams
    ]
    found: dict[str, Any] = _finite(
        {
            "project": report.project,
            "declaration": None if report.declaration is None else report.declaration.model_dump(mode="json"),
            "at": report.at.astimezone(UTC).isoformat(timespec="milliseconds"),
            "is_down": report.is_down,
            "is_unwell": report.is_unwell,
            "is_ailing": report.is_ailing,
            "parts": [asdict(part) for part in report.parts],
            "streams": streams,
            "views": [asdict(view) for view in report.views],
            "target_s": report.target_s,
            "checkpoint_age_s": report.checkpoint_age_s,
            "epoch": report.epoch,
            "rejects": report.rejects,
            "validated_age_s": report.validated_age_s,
        }
    )
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return "never" if math.isinf(value) else round(value, 3)
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def screen(report: Report) -> str:
    """Return a report as a person reads it."""
    lines = [f"{report.project}, {report.at.astimezone():%Y-%m-%d %H:%M:%S}", ""]
    lines += _table(
        ("part", "", "where"),
        [(part.name, part.word, part.trouble or part.complaint or part.where) for part in report.parts],
        left=3,
    )
    lines += ["", *([] if report.declaration is None else [str(report.declaration)])]
    lines += [f"{_durable(report)}; {_validated(report)}; rejects {_counts(report.rejects)}", ""]
    lines += _table(
        (
            "stream",
            "is",
            "last event",
            "in/s",
            "done/s",
            "waiting",
            "oldest",
            "done in",
            "late in",
            "lost in",
            "dead letters",
        ),
        [
            (
                one.stream,
                _status(one),
                _came(one.last_event_age_s),
                _rate(one.in_per_s),
                _rate(one.done_per_s),
                _number(one.messages_count),
                span(one.age_s),
                span(one.drain_s),
                span(one.breach_s),
                span(one.retention_left_s),
                _number(one.dead_letters_count),
            )
            for one in report.streams
        ],
    )
    lines += [""]
    lines += _table(
        ("view", "is", "rows/s", "p99", "entities", "features", "findings"),
        [
            (
                one.view,
                _state(one),
                _rate(one.rows_per_s),
                span(one.freshness_p99_s),
                _number(one.entities_count),
                _number(one.features_count),
                _counts(one.findings),
            )
            for one in report.views
        ],
    )
    lines += ["", f"rows should be online within {span(report.target_s)}"]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Lay out rows below a head, the first `left` columns and the last one flush left, the others right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    last = len(head) - 1
    return [
        "  ".join(
            cell.ljust(width) if column < left or column == last else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def span(seconds: float | None) -> str:
    """Write a length of time as a person says it.

    >>> [span(one) for one in (None, 0.0, 0.0042, 0.84, 12.3, 75.0, 4000.0, 200_000.0, math.inf)]
    ['-', '0 s', '4 ms', '840 ms', '12 s', '75 s', '67 min', '56 h', 'never']
    """
    if seconds is None:
        return _UNKNOWN
    if math.isinf(seconds):
        return "never"
    for limit, unit_s, name in ((1.0, 0.001, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (259_200.0, 3600.0, "h")):
        if 0 < seconds < limit:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds / 86_400:.0f} days" if seconds else "0 s"


NO_ROUND = "no round has ended yet"
"""What a validator says of itself that has just begun."""


def failing(said: str, validated_age_s: float | None) -> str:
    """Say what a validator whose rounds fail says of them, and since when.

    >>> failing("by_user: Redis does not answer", 420.0), failing(NO_ROUND, 3.0)
    ('no round has succeeded for 7 min: by_user: Redis does not answer', 'no round has ended yet')
    """
    if validated_age_s is None or said == NO_ROUND:
        return said
    return f"no round has succeeded for {span(validated_age_s)}: {said}"


def _durable(report: Report) -> str:
    if where := report.silent_at("offline store"):
        return f"last commit unknown: no answer from the offline store at {where}"
    if report.checkpoint_age_s is None:
        return "nothing durable yet"
    return f"durable up to epoch {_number(report.epoch)}, {_ago(report.checkpoint_age_s)}"


def _validated(report: Report) -> str:
    if where := report.silent_at("validator"):
        return f"last validation unknown: no answer from the validator at {where}"
    if not any(part.name == "validator" for part in report.parts):
        return "no validator"
    return "not validated yet" if report.validated_age_s is None else f"validated {_ago(report.validated_age_s)}"


def _status(stream: StreamStatus) -> str:
    word = (stream.status or _UNKNOWN).lower()
    alike = sum(lag.status is stream.status for lag in stream.lags.values())
    is_told = stream.status in _STOPPED | {Status.REWIND} and len(stream.lags) > 1
    return f"{word} ({alike} of {len(stream.lags)})" if is_told else word


def _state(view: ViewStatus) -> str:
    word = view.state.upper() if view.state in {State.STALLED, State.BREACHED} else view.state.value
    if view.state is not State.STALLED:
        return word
    lasts = "" if view.age_s is None else f" for {span(view.age_s)}"
    places = f" ({view.stalled_count} of {view.partitions_count} partitions)" if view.partitions_count > 1 else ""
    return f"{word}{lasts}{places}"


def _ago(seconds: float) -> str:
    return f"{span(max(0.0, seconds))} ago"


def _came(seconds: float | None) -> str:
    """Write how long ago a message says that it was written; a clock that is ahead by little is none.

    >>> [_came(one) for one in (None, 12.3, 0.0, -0.4, -75.0)]
    ['-', '12 s ago', '0 s ago', '0 s ago', '75 s ahead']
    """
    if seconds is None:
        return _UNKNOWN
    return f"{span(-seconds)} ahead" if seconds < -_AHEAD_S else _ago(seconds)


def _number(count: int | None) -> str:
    return _UNKNOWN if count is None else f"{count:,}"


def _rate(per_s: float | None) -> str:
    return _UNKNOWN if per_s is None else f"{per_s:,.0f}"


def _counts(counts: Mapping[str, int] | None) -> str:
    if counts is None:
        return _UNKNOWN
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
