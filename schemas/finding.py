"""What the validator says: checks, findings and verdicts.

A `Check` is one expectation that the declaration implies; a `Finding` is a check that does not hold, with its cause and
evidence; a `Verdict` is the answer for one feature view. A verdict that could not be reached is never `ok`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


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
    """The stores hold different values for one version of a row, or values that are not as the declaration expects."""
    NULL_ONLINE = "null_online"
    """The online store holds null where the offline store, for the same version, holds a value, or nulls too often."""
    DTYPE = "dtype"
    """A stored value is not of the declared type."""
    LOST_ONLINE_WRITE = "lost_online_write"
    """The online row is older than an offline row, which it must have followed, and was never seen as new as that."""
    OUT_OF_ORDER_OVERWRITE = "out_of_order_overwrite"
    """The online row is older than it was."""
    MISSING_ENTITY = "missing_entity"
    """An entity that has offline rows, or had an online row, has none online."""
    STALE_ONLINE = "stale_online"
    """What is served is of some time ago: the online store counts fewer writes than were committed, or is empty; or the
    flow does not keep up with Kafka, and events wait for longer than is declared."""
    LOST_OFFLINE_WRITE = "lost_offline_write"
    """An online row is not in the offline store, though all it was made of is committed; or a part of it is gone."""
    PARTIAL_BATCH = "partial_batch"
    """There are fewer offline rows than were committed."""
    DUPLICATE_OFFLINE = "duplicate_offline"
    """One version of a row stands more than once in the offline store, or there are more rows than were committed."""
    CLOCK_SKEW = "clock_skew"
    """A row is of a time that has not come: the clock of whoever made its event runs ahead."""
    SCHEMA_DRIFT = "schema_drift"
    """The offline store's columns are not those of the declaration."""


class Frame(StrEnum):
    """What a check looks at.

    The columns of a view's offline parts, their rows' numbers, single rows in both stores, offline rows beside what the
    declared SQL makes of the archived events, rows of many rounds together, of those the values of one feature, one an
    entity, the online store as a whole, or how the source's partitions keep up.
    """

    SCHEMA = "schema"
    PARTS = "parts"
    ROWS = "rows"
    RECOMPUTED = "recomputed"
    POOL = "pool"
    VALUES = "values"
    STORE = "store"
    FRESHNESS = "freshness"

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
    Frame.POOL: ("entity", "event_timestamp", "version"),
    Frame.VALUES: ("entity", "event_timestamp", "version"),
    Frame.STORE: ("committed", "counted"),
    Frame.FRESHNESS: ("stream", "partition", "state", "lag_seconds", "waiting_count", "committed", "end", "burning"),
}


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

    def as_json(self, project: str) -> dict[str, Any]:
        """Return what is published: plain values, the same for the topic and the webhook."""
        finding = self.finding
        return {
            "project": project,
            "status": self.status.value,
            "cause": finding.cause.value,
            "feature_view": finding.view,
            "features": list(finding.features),
            "check": finding.check,
            "message": finding.message,
            "lines": finding.count,
            "since": self.since.isoformat(),
            "at": self.at.isoformat(),
            "evidence": [dict(line) for line in finding.evidence],
        }


@dataclass(frozen=True)
class Verdict:
    """The answer for one view. `reasons` say why it is inconclusive, or why the validator failed.

    `compared` counts the lines of the frame judged; of a whole round, the rows that were found in both stores.
    `untold` names the checks of which it cannot be said whether they hold: there was nothing, or too little, to judge.
    """

    view: str
    outcome: Outcome
    compared: int
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
