"""What the validator says: checks, findings and verdicts.

A `Check` is one expectation that the declaration implies; a `Finding` is a check that does not hold, with its cause and
evidence; a `Verdict` is the answer for one feature view. A verdict that could not be reached is never `ok`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    """The stores hold different values for one version of a row."""
    NULL_ONLINE = "null_online"
    """The online store holds null where the offline store, for the same version, holds a value."""
    DTYPE = "dtype"
    """A stored value is not of the declared type."""
    LOST_OFFLINE_WRITE = "lost_offline_write"
    """An online row is not in the offline store, though the flow has committed everything up to it."""
    DUPLICATE_OFFLINE = "duplicate_offline"
    """One version of a row stands more than once in the offline store."""
    MISSING_ENTITY = "missing_entity"
    """An entity with offline rows has no online row."""
    STALE_ONLINE = "stale_online"
    """The online row is older than the newest offline row."""
    SCHEMA_DRIFT = "schema_drift"
    """The offline store's columns are not those of the declaration."""
    BREACHED = "breached"
    """A partition has waited longer than the declared freshness allows."""


class Frame(StrEnum):
    """What a check looks at: the offline columns of a view, its rows, or the lag of its source's partitions."""

    SCHEMA = "schema"
    ROWS = "rows"
    LAG = "lag"

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that say which line a piece of evidence is about."""
        return _IDENTITIES[self]


_IDENTITIES = {
    Frame.SCHEMA: ("column",),
    Frame.ROWS: ("entity", "event_timestamp", "version"),
    Frame.LAG: ("stream", "partition"),
}


@dataclass(frozen=True)
class Check:
    """One expectation of Great Expectations, by class name and arguments.

    `given` names a column: lines where it is null are not looked at. `cause` is what a failure means; None where it
    means that nothing can be said. `severity` is critical, warning or info.
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


@dataclass(frozen=True)
class Finding:
    """A check that does not hold. `evidence` has some of the lines that say so, each as column → value."""

    view: str
    check: str
    cause: Cause
    features: tuple[str, ...]
    evidence: tuple[Mapping[str, Any], ...]
    message: str


@dataclass(frozen=True)
class Verdict:
    """The answer for one view. `reasons` say why it is inconclusive, or why the validator failed.

    `compared` counts the lines of the frame judged; of a whole round, the rows that were found in both stores.
    """

    view: str
    outcome: Outcome
    compared: int
    findings: tuple[Finding, ...] = ()
    reasons: tuple[str, ...] = ()
