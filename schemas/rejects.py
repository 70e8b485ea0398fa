"""An event that cannot be used is a value: it keeps its bytes, its place and the reason.

As a record of the topic `<topic>.dlq` it is a dead letter: its key, value and headers as they were, and behind them
Kafka Connect's `__connect.errors.*` headers, UTF-8 strings that its tools read, then `freshet.reason`, and
`freshet.time`: the event's own Kafka time, milliseconds since 1970 in decimal. The record's time is that of its
writing: Kafka deletes by it, and a letter with an old one would be gone within minutes. One that was sent again leaves
a receipt there: a record of the same key whose header `freshet.redriven` names the event.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from freshet.schemas.poll import Poll
from freshet.schemas.record import NO_TIME_MS, Headers, Record


class Reason(StrEnum):
    """Why an event was not accepted; the label of `freshet_rejects_total`."""

    UNDECODABLE = "undecodable"
    CONTRACT = "contract"
    NULL_KEY = "null_key"
    LATE = "late"
    FUTURE = "future"
    UNKNOWN_VERSION = "unknown_version"
    TRANSFORM = "transform"


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where an event stands in Kafka.

    >>> str(Origin("wiki_edits", 3, 42)), Origin.read(b"wiki_edits/3@42"), Origin.read(b"wiki_edits")
    ('wiki_edits/3@42', Origin(topic='wiki_edits', partition=3, offset=42), None)
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"

    @classmethod
    def read(cls, text: bytes | None) -> "Origin | None":
        """Return the origin that a header names, None if it names none."""
        found = _ORIGIN.fullmatch(_text(text))
        return cls(found[1], int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that was not accepted: where it stands in Kafka, its bytes, and why.

    `timestamp_ms` is Kafka's own time of the record, `record.NO_TIME_MS` where there is none, as in a file.
    """

    topic: str
    partition: int
    offset: int
    reason: Reason
    detail: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = NO_TIME_MS

    @classmethod
    def of(cls, poll: Poll, index: int, reason: Reason, detail: str) -> "Reject":
        """Return that one message of a poll is not accepted."""
        headers = None if poll.headers is None else poll.headers[index]
        return cls(
            poll.topic, poll.partition, int(poll.offsets[index]), reason, detail, poll.keys[index], poll.values[index],
            tuple(headers or ()), int(poll.timestamps_ms[index]),
        )  # fmt: skip

    @property
    def origin(self) -> Origin:
        """Where the event stands."""
        return Origin(self.topic, self.partition, self.offset)


REASON, REDRIVEN, TIME = "freshet.reason", "freshet.redriven", "freshet.time"
_CONNECT = "__connect.errors."
_OURS = (_CONNECT, "freshet.")
_ORIGIN = re.compile(r"([^/@]+)/(\d{1,9})@(\d{1,18})", re.ASCII)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

_DECODER = ("VALUE_CONVERTER", "freshet.flows.steps.decode.Decoder")
_JUDGE = ("TASK_PUT", "freshet.flows.steps.accept.PartitionJudge")
STAGES: Mapping[Reason, tuple[str, str]] = {
    Reason.UNDECODABLE: _DECODER,
    Reason.CONTRACT: _DECODER,
    Reason.NULL_KEY: _DECODER,
    Reason.UNKNOWN_VERSION: _DECODER,
    Reason.LATE: _JUDGE,
    Reason.FUTURE: _JUDGE,
    Reason.TRANSFORM: ("TRANSFORMATION", "freshet.flows.steps.intake.Intake"),
}
"""Kafka Connect's name of the stage that gave an event up, and the class that did."""


def dead_letter_topic(topic: str) -> str:
    """Return where the events of a topic are kept that were not accepted."""
    return f"{topic}.dlq"


def dead_letter(reject: Reject, group: str) -> Record:
    """Return an event as its dead letter; `group` is the consumer group that gave it up."""
    return Record(dead_letter_topic(reject.topic), reject.key, reject.value, dead_letter_headers(reject, group))


def dead_letter_headers(reject: Reject, group: str) -> Headers:
    """Return the headers of an event's dead letter: its own first, but those of a former round."""
    stage, giving_up = STAGES[reject.reason]
    said = {
        f"{_CONNECT}topic": reject.topic,
        f"{_CONNECT}partition": str(reject.partition),
        f"{_CONNECT}offset": str(reject.offset),
        f"{_CONNECT}connector.name": group,
        f"{_CONNECT}stage": stage,
        f"{_CONNECT}class.name": giving_up,
        f"{_CONNECT}exception.class.name": f"{Reason.__module__}.{Reason.__name__}.{reject.reason.name}",
        f"{_CONNECT}exception.message": reject.detail,
        REASON: reject.reason.value,
    }
    if reject.timestamp_ms >= 0:
        said[TIME] = str(reject.timestamp_ms)
    written = ((name, text.encode(errors="backslashreplace")) for name, text in said.items())
    return (*_foreign(reject.headers), *written)


def reject_of(
    key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]] | None, timestamp_ms: int
) -> Reject | None:
    """Return the event that a record of a dead-letter topic keeps; None if it is no dead letter of ours.

    Without a time of its own it has the record's.
    """
    held = dict(headers or ())  # the last of a repeated header holds
    reason = _text(held.get(REASON))
    topic = _text(held.get(f"{_CONNECT}topic"))
    partition, offset = _text(held.get(f"{_CONNECT}partition")), _text(held.get(f"{_CONNECT}offset"))
    if reason not in set(Reason) or not topic or not (_NUMBER.fullmatch(partition) and _NUMBER.fullmatch(offset)):
        return None
    detail = _text(held.get(f"{_CONNECT}exception.message"))
    own_time = _text(held.get(TIME))
    timestamp_ms = int(own_time) if _NUMBER.fullmatch(own_time) else timestamp_ms
    place = (topic, int(partition), int(offset))
    return Reject(*place, Reason(reason), detail, key, value, _foreign(headers or ()), timestamp_ms)


def redriven(reject: Reject) -> Record:
    """Return an event as it is sent again: its own key, value and headers, and a time that Kafka gives."""
    return Record(reject.topic, reject.key, reject.value, (*_foreign(reject.headers), _origin_header(reject)))


def receipt(reject: Reject) -> Record:
    """Return the record by which the dead letters know that an event was sent again."""
    return Record(dead_letter_topic(reject.topic), reject.key, None, (_origin_header(reject),))


def receipt_of(headers: Iterable[tuple[str, bytes | None]] | None) -> Origin | None:
    """Return which event a record is the receipt of; None if it is no receipt."""
    held = dict(headers or ())
    return None if REASON in held else Origin.read(held.get(REDRIVEN))


def _origin_header(reject: Reject) -> tuple[str, bytes]:
    return REDRIVEN, str(reject.origin).encode()


def _foreign(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Return the headers that are not ours."""
    return tuple((name, value) for name, value in headers if not name.startswith(_OURS))


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
