"""What the validator says: checks, findings and verdicts.

A `Check` is one expectation that the declaration implies; a `Finding` is a check that does not hold, with its cause and
evidence; a `Verdict` is the answer for one feature view. A verdict that could not be reached is never `ok`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from freshet.schemas.record import Record

FINDINGS_TOPIC = "freshet.findings"
"""Where alarms are published, for all projects of a cluster."""

_TEXT_LENGTH_MAX = 500


class Outcome(StrEnum):
    """How a round ended, from best to worst."""

    OK = "ok"
    INCONCLUSIVE = "inconclusive"
    VIOLATED = "violated"
    VALIDATOR_ERROR = "validator_error"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst of some outcomes; of none, nothing can be said.

    >>> worst([Outcome.OK, Outcome.VIOLATED, Outcome.INCONCLUSIVE])
    <Outcome.VIOLATED: 'violated'>
    >>> worst([])
    <Outcome.INCONCLUSIVE: 'inconclusive'>
    """
    return max(outcomes, key=list(Outcome).index, default=Outcome.INCONCLUSIVE)


class Cause(StrEnum):
    """Why a check does not hold."""

    VALUE_MISMATCH = "value_mismatch"
    """The stores, or Feast's two APIs, have different values for one version of a row, or values that are not as the
    declaration expects."""
    NULL_ONLINE = "null_online"
    """The online store holds null where the offline store, for the same version, holds a value, or nulls too often."""
    DTYPE = "dtype"
    """A stored value is not of the declared type."""
    LOST_ONLINE_WRITE = "lost_online_write"
    """An offline row, which must have been online first, is not: the online row is older and was never seen as new as
    that, or there is none, and the entity was never online, as far as can be told."""
    OUT_OF_ORDER_OVERWRITE = "out_of_order_overwrite"
    """The online row is older than it was, as far as can be told."""
    MISSING_ENTITY = "missing_entity"
    """An entity that was online, as far as can be told, has no row there, or Feast's online API serves none."""
    EXPIRED_TTL = "expired_ttl"
    """The online store keeps a row for longer than the ttl of its view allows."""
    STALE_ONLINE = "stale_online"
    """What is served is of some time ago: the online store counts fewer writes than were committed, or is empty; or the
    flow does not keep up with Kafka, and events wait for longer than is declared; or Feast's online API serves an older
    row than is stored."""
    LOST_OFFLINE_WRITE = "lost_offline_write"
    """An online row is not in the offline store, though all it was made of is committed; or a part of it is gone; or
    Feast's historical retrieval does not give the row; or Kafka has an offset as committed that is not durable."""
    PARTIAL_BATCH = "partial_batch"
    """There are fewer offline rows than were committed, or fewer archived events than were accepted, or than rows were
    made of."""
    DUPLICATE_OFFLINE = "duplicate_offline"
    """One version of a row stands more than once in the offline store, or there are more rows than were committed, or
    more archived events than were accepted."""
    CLOCK_SKEW = "clock_skew"
    """A row is of a time that has not come: the clock of whoever made its event runs ahead."""
    SCHEMA_DRIFT = "schema_drift"
    """The offline store's columns, or the view in Feast's registry, are not those of the declaration."""


class Frame(StrEnum):
    """What a check looks at.

    The columns of a view's offline parts, their rows' numbers, single rows in both stores, offline rows beside what the
    declared SQL makes of the archived events, what Feast's registry says of the view, what Feast serves online beside
    what it gives to a trainer, rows of many rounds together, of those the values of one feature, one an entity, the
    online store as a whole, the archived events of the source's partitions, how these keep up, or what became of the
    canaries in them.
    """

    SCHEMA = "schema"
    PARTS = "parts"
    ROWS = "rows"
    RECOMPUTED = "recomputed"
    REGISTRY = "registry"
    SERVED = "served"
    POOL = "pool"
    VALUES = "values"
    STORE = "store"
    ARCHIVE = "archive"
    FRESHNESS = "freshness"
    CANARIES = "canaries"

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that say which line a piece of evidence is about, and what is to be known of it."""
        return _IDENTITIES[self]


_IDENTITIES = {
    Frame.SCHEMA: ("part", "column"),
    Frame.PARTS: ("part", "committed", "visible"),
    Frame.ROWS: (
        *("entity", "event_timestamp", "version", "online_at", "seen_at", "offline_at"),
        *("offline_part", "source_partition", "source_offset"),
    ),
    Frame.RECOMPUTED: (
        *("entity", "event_timestamp", "version", "sql_version"),
        *("offline_part", "source_partition", "source_offset"),
    ),
    Frame.REGISTRY: ("entry", "declared", "registered"),
    Frame.SERVED: (
        *("entity", "event_timestamp", "version", "asked_at", "served_at"),
        *("offline_part", "source_partition", "source_offset"),
    ),
    Frame.POOL: ("entity", "event_timestamp", "version"),
    Frame.VALUES: ("entity", "event_timestamp", "version"),
    Frame.STORE: ("committed", "counted"),
    Frame.ARCHIVE: ("stream", "partition", "accepted", "archived", "durable", "committed"),
    Frame.FRESHNESS: ("stream", "partition", "state", "lag_seconds", "waiting_count", "committed", "end", "burning"),
    Frame.CANARIES: (
        *("stream", "partition", "state", "entity", "source_offset", "event_at", "sent_at", "waited_seconds"),
        *("committed", "online_at"),
    ),
}


_SIDES = {Frame.ROWS: ("on", "off"), Frame.RECOMPUTED: ("off", "sql"), Frame.SERVED: ("api", "pit")}
"""What the columns of a feature's values begin with, where there are two."""


@dataclass(frozen=True)
class Check:
    """One expectation of Great Expectations, by class name and arguments.

    `given` names a column: lines where it is null are not looked at. `cause` is what a failure means; None where it
    means that nothing can be said. `severity` is critical, warning or info. `rounds` is in how many of its last
    `of_rounds` judgements (of as many, if None) it must fail to be a finding: 1 where what is judged was looked at
    twice already.
    """

    name: str
    description: str
    frame: Frame
    expectation: str
    arguments: Mapping[str, Any]
    cause: Cause | None
    severity: str = "critical"
    features: tuple[str, ...] = ()
    given: str | None = None
    rounds: int = 1
    of_rounds: int | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a line must have to be looked at: what may be missing is what a check for nulls is about."""
        named = () if "Null" in self.expectation else ("column", "column_A", "column_B")
        own = [self.arguments[key] for key in named if key in self.arguments]
        return (*own, *((self.given,) if self.given else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        """What its evidence shows of a line: which one it is, and both values of each feature that it is about."""
        sides = _SIDES.get(self.frame, ())
        return (*self.frame.identity, *(f"{side}_{name}" for name in self.features for side in sides))


@dataclass(frozen=True, eq=False)
class Question:
    """A frame of a view, as a pandas DataFrame, and the checks, one or more, that are all about it.

    With fewer lines than `minimum_rows` it cannot be said that they hold.
    """

    view: str
    lines: Any
    checks: Sequence[Check]
    minimum_rows: int = 1

    @property
    def frame(self) -> Frame:
        """Which frame it is about."""
        (frame,) = {check.frame for check in self.checks}
        return frame


@dataclass(frozen=True)
class Finding:
    """A check that does not hold in `count` lines. `evidence` has some of them, each as column → value."""

    view: str
    check: str
    cause: Cause
    features: tuple[str, ...]
    evidence: tuple[Mapping[str, Any], ...]
    message: str
    count: int = 1
    rounds: int = 1
    of_rounds: int | None = None
    severity: str = "critical"

    def as_json(self) -> dict[str, Any]:
        """Return what is told of a finding: a part of `Alarm.as_json`, and what `freshet check --json` prints."""
        first: Mapping[str, Any] = self.evidence[0] if self.evidence else {}
        feature = self.features[0] if len(self.features) == 1 else None
        compared = _row(first.get("event_timestamp"), first.get("version"))
        found = first.get("offline_part") is not None
        served = first.get(f"on_{feature}", first.get(f"api_{feature}"))
        kept = first.get(f"off_{feature}", first.get(f"pit_{feature}"))
        online = compared or _placed(first.get("online_at"))
        offline = compared if found else _placed(first.get("offline_at"))
        source = {
            "stream": first.get("stream"),
            "partition": first.get("source_partition", first.get("partition")),
            "offset": first.get("source_offset"),
        }
        return {
            "feature_view": self.view,
            "features": list(self.features),
            "check": self.check,
            "cause": self.cause.value,
            "severity": self.severity,
            "message": _plain(self.message),
            "lines_count": self.count,
            "entity": _plain(first.get("entity")),
            "online": online and {**online, "value": _plain(served)},
            "offline": offline and {**offline, "value": _plain(kept)},
            "source": None if set(source.values()) == {None} else _plain(source),
            "evidence": [_plain(line) for line in self.evidence],
        }


def _row(event_timestamp: str | None, version: int | None) -> dict[str, Any] | None:
    """Return where a row stands, None where there is none."""
    return None if event_timestamp is None else {"event_timestamp": event_timestamp, "version": version}


def _placed(spelled: str | None) -> dict[str, Any] | None:
    """Read a place as lines of evidence spell it.

    >>> _placed("2026-03-01T12:00:20.000000+00:00 version 0000000000000000002")
    {'event_timestamp': '2026-03-01T12:00:20.000000+00:00', 'version': 2}
    """
    if spelled is None:
        return None
    event_timestamp, _, version = spelled.partition(" version ")
    return _row(event_timestamp, int(version))


def _plain(value: Any) -> Any:
    """Return a value that JSON has: numbers that it lacks become text, and long text is cut.

    >>> _plain({"a": float("inf"), "b": (1, None), "c": "x" * 900})["a"]
    'inf'
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    return text if len(text) <= _TEXT_LENGTH_MAX else f"{text[:_TEXT_LENGTH_MAX]}…"


class Status(StrEnum):
    """What became of a finding."""

    OPENED = "opened"
    RESOLVED = "resolved"


@dataclass(frozen=True)
class Alarm:
    """News of a finding: it opened, or it is over. `since` is when it opened, `at` when this was said."""

    status: Status
    finding: Finding
    since: datetime
    at: datetime

    @property
    def identity(self) -> tuple[str, str]:
        """What news of one finding have in common: its view and its check."""
        return self.finding.view, self.finding.check

    def as_json(self, project: str) -> dict[str, Any]:
        """Return what is published, the same for the topic and the webhook: plain values, and always all keys.

        | key | meaning |
        | --- | --- |
        | `project` | the project's name |
        | `status` | `opened`, or `resolved` once the check held for FRESHET_QUIET |
        | `since`, `at` | when the finding opened, and when this was said: ISO 8601, UTC |
        | `feature_view`, `check` | the view, and the check that does not hold; together they name the finding |
        | `features` | the features that it is about; none where it is about whole rows or parts |
        | `cause` | why it does not hold, one of `Cause` |
        | `severity` | `critical`, `warning` or `info` |
        | `message` | what should hold, and of how many lines it does not |
        | `lines_count` | how many entities, parts or partitions failed in the newest round that found it |
        | `entity` | of the first line of evidence: the entity, its columns joined by ` / `; null if it is of none |
        | `online` | the online row: `event_timestamp`, `version`, and the feature's `value`; null if there is none |
        | `offline` | the offline row it is held against: the same version, else a newer one; null if there is none |
        | `source` | the row's newest event, or what lags: `stream`, `partition`, `offset`; null if it is not known |
        | `evidence` | up to ten lines, each as column → value, the first of them being told above |

        Of a `resolved` alarm all but `status` and `at` is what was found last. Text of more than 500 characters is cut;
        numbers that JSON lacks are text: `inf`, `-inf`, `nan`.
        """
        when = {"since": _instant(self.since), "at": _instant(self.at)}
        return {"project": project, "status": self.status.value, **when, **self.finding.as_json()}

    def as_record(self, project: str) -> Record:
        """Return what the topic is sent: JSON under `<project>/<check>`, so that all news of a finding are in order."""
        value = json.dumps(self.as_json(project), allow_nan=False).encode()
        return Record(FINDINGS_TOPIC, f"{project}/{self.finding.check}".encode(), value)


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Verdict:
    """The answer for one view. `reasons` say why it is inconclusive, or why the validator failed.

    `compared` counts the lines of the frame judged; of a whole round, the rows that were found in both stores.
    `untold` names the checks of which it cannot be said whether they hold: they looked at nothing, or at too little.
    """

    view: str
    outcome: Outcome
    compared: int
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what `freshet check --json` prints of a view: `compared_count` rows in both stores, and the rest."""
        return {
            "feature_view": self.view,
            "outcome": self.outcome.value,
            "compared_count": self.compared,
            "findings": [finding.as_json() for finding in self.findings],
            "reasons": [_plain(reason) for reason in self.reasons],
        }
