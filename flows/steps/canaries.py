"""Canaries: events of the validator's own, one at a time on its way through each source partition: pure.

A canary takes the way of every event, into both stores. Where nobody publishes, it tells a flow that stands still from
one that has nothing to do; and since it is known which rows must come of it, none of them can be lost unseen.

It may move nothing: an event that is the newest of its partition makes others late. So its event time is not its send
time, but one of which its partition is past already, by half of what the stream allows for lateness.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pyarrow as pa

from freshet.flows.steps.watch import Entity, Place, place
from freshet.schemas.event import Contract
from freshet.schemas.ledger import Ledger, PartitionMark, source_key
from freshet.schemas.units import count_us, instant_us
from freshet.schemas.view import StoredRow, View

LATENESS_MIN = timedelta(seconds=1)
"""Of a stream that allows for less, a canary would make events late."""

_PLACE = re.compile(r"\{(canary|sequence)(?::(-?\d+))?\}")
_STALLED_LOOKS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Template:
    """An event of a stream, with places to fill in: `{canary}` by whose it is, `{sequence}` by when it was sent.

    `{canary:9000}` counts from 9000. A place that is all of an integer field's text becomes an integer.
    """

    contract: Contract
    fields: Mapping[str, Any]

    def filled(self, number: int, sequence: int, at: datetime) -> dict[str, Any]:
        """Return the event of an entity, the `number`th one, at a time."""
        values = {"canary": number, "sequence": sequence}
        event = {name: self._filled(name, value, values) for name, value in self.fields.items()}
        return {**event, self.contract.stream.event_time: at}

    def _filled(self, name: str, value: Any, values: Mapping[str, int]) -> Any:
        if not isinstance(value, str):
            return value
        text = _PLACE.sub(lambda place: str(values[place[1]] + int(place[2] or 0)), value)
        is_number = _PLACE.fullmatch(value) and pa.types.is_integer(self.contract.schema.field(name).type)
        return int(text) if is_number else text


def event_time(newest_us: int, lateness: timedelta, now: datetime, before: datetime | None) -> datetime:
    """Return a canary's event time in a partition that is at `newest_us`; later than the one `before`.

    It grows by a microsecond a second in a partition in which nothing happens, also over restarts of the validator.

    >>> noon, quarter = datetime(2026, 3, 1, 12, tzinfo=UTC), timedelta(minutes=15)
    >>> str(event_time(instant_us(noon), timedelta(minutes=10), noon + quarter, None))
    '2026-03-01 11:59:32.367300+00:00'
    """
    window_us, now_us = count_us(lateness) // 2, instant_us(now)
    time_us = min(newest_us - window_us + now_us // 10**6 % window_us, now_us)
    return _EPOCH + timedelta(microseconds=time_us if before is None else max(time_us, instant_us(before) + 1))


@dataclass(frozen=True, slots=True)
class Canary:
    """An event that Kafka has: where, since when at least, of what time, and the entity that it is of in each view."""

    offset: int
    sent_at: datetime
    event_timestamp: datetime
    entities: Mapping[str, Entity]


class CanaryState(StrEnum):
    """How far a partition's canary is."""

    WAITING = "waiting"
    """It is not committed."""
    STALLED = "stalled"
    """It is not committed, and neither was anything else of its partition for long."""
    COMMITTED = "committed"
    """Both stores must have its rows."""
    LATE = "late"
    """Events far ahead in time came before it: the flow may have rejected it."""
    UNSENT = "unsent"
    """Kafka did not take it."""


@dataclass(frozen=True, slots=True)
class CanaryLine:
    """What became of a canary in one view.

    `online_row` says, of a committed one, whether the online row is as new: `found`, `older`, `absent`; `offline_row`
    whether its own row is there: `found`, `absent`. None is said where it cannot be known.
    """

    stream: str
    partition: int
    state: CanaryState
    entity: str | None = None
    source_offset: int | None = None
    event_at: datetime | None = None
    sent_at: datetime | None = None
    waited_seconds: float | None = None
    committed: int | None = None
    online_at: Place | None = None
    online_row: str | None = None
    offline_row: str | None = None


@dataclass
class Probe:
    """A source partition as one view sees it: the canary that is on its way, if there is one.

    A partition stands still once nothing was committed for `limit` while it waited.
    """

    view: View
    stream: str
    partition: int
    lateness: timedelta
    limit: timedelta
    canary: Canary | None = None
    state: CanaryState | None = None
    _committed: int = 0
    _stands_since: datetime = _EPOCH
    _waited: timedelta = timedelta(0)
    _looks_count: int = 0

    @property
    def key(self) -> str:
        """What the partition is called in the ledger."""
        return source_key(self.stream, self.partition)

    @property
    def wanted(self) -> StoredRow | None:
        """The row that both stores must have by now, without its values."""
        if self.canary is None or self.state is not CanaryState.COMMITTED:
            return None
        return StoredRow(self.canary.entities[self.view.name], self.canary.event_timestamp, 0, {})

    def send(self, canary: Canary | None, ledger: Ledger) -> None:
        """Note that a canary was sent, or that none could be."""
        self.canary, self.state = canary, CanaryState.UNSENT if canary is None else CanaryState.WAITING
        self._committed = ledger.offsets.get(self.key, 0)
        self._waited, self._looks_count = timedelta(0), 0
        if canary is not None:
            self._stands_since = canary.sent_at

    def look(self, ledger: Ledger, asked_at: datetime, answered_at: datetime) -> None:
        """Note what is durable: it was asked for at one instant, and had been answered at another."""
        if self.canary is None:
            return
        committed = ledger.offsets.get(self.key, 0)
        if committed != self._committed:
            self._committed, self._stands_since, self._looks_count = committed, answered_at, 0
        self._looks_count += 1
        self._waited = max(timedelta(0), asked_at - self.canary.sent_at)
        if committed > self.canary.offset:
            newest_us = ledger.partitions.get(self.key, PartitionMark()).newest_us
            is_late = newest_us - count_us(self.lateness) > instant_us(self.canary.event_timestamp)
            self.state = CanaryState.LATE if is_late else CanaryState.COMMITTED
        else:
            stands = self._looks_count >= _STALLED_LOOKS and asked_at - self._stands_since >= self.limit
            self.state = CanaryState.STALLED if stands else CanaryState.WAITING

    def line(self, online: StoredRow | None, *, is_offline: bool | None) -> CanaryLine:
        """Return what there is to judge; of the rows, if it is committed. `is_offline` is None if nobody can tell."""
        assert self.state is not None, "nothing is known"
        canary = self.canary
        if canary is None:
            return CanaryLine(self.stream, self.partition, self.state)
        known = self.state is CanaryState.COMMITTED
        ttl = self.view.ttl
        is_served = known and not (ttl and canary.sent_at + self._waited - canary.event_timestamp > ttl)
        return CanaryLine(
            self.stream,
            self.partition,
            self.state,
            " / ".join(map(str, canary.entities[self.view.name])),
            canary.offset,
            canary.event_timestamp,
            canary.sent_at,
            round(self._waited.total_seconds(), 3),
            self._committed,
            place(online),
            _held_against(canary, online) if is_served else None,
            None if not known or is_offline is None else "found" if is_offline else "absent",
        )

    def let_go(self) -> None:
        """Have done with a canary of which all was said that there is to say."""
        if self.state in {CanaryState.COMMITTED, CanaryState.LATE}:
            self.canary = None
            self.state = None


def _held_against(canary: Canary, online: StoredRow | None) -> str:
    if online is None:
        return "absent"
    return "older" if online.event_timestamp < canary.event_timestamp else "found"
