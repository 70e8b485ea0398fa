"""An event that cannot be used is a value: it keeps its bytes, its place and the reason."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an event was not accepted; the label of `freshet_rejects_total`."""

    UNDECODABLE = "undecodable"
    CONTRACT = "contract"
    NULL_KEY = "null_key"
    LATE = "late"
    FUTURE = "future"
    UNKNOWN_VERSION = "unknown_version"
    TRANSFORM = "transform"


@dataclass(frozen=True, slots=True)
class Reject:
    """One event that was not accepted: where it stands in Kafka, its bytes, and why."""

    topic: str
    partition: int
    offset: int
    reason: Reason
    detail: str
    key: bytes | None
    value: bytes | None
