"""One Kafka record as it is sent, and the partition that its key chooses."""

from collections.abc import Iterable
from dataclasses import dataclass

Headers = tuple[tuple[str, bytes | None], ...]
"""A record's headers in their order; a name may be there several times, and then the last one holds."""

NO_TIME_MS = -1
"""In place of a record's time: there is none, or Kafka gives it."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a producer hands to Kafka."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = NO_TIME_MS


def header(headers: Iterable[tuple[str, bytes | None]] | None, name: str) -> bytes | None:
    """Return the value of a header, None if it is not there; of one that is repeated, the last holds.

    >>> header([("a", b"1"), ("b", None), ("a", b"2")], "a")
    b'2'
    """
    return dict(headers or ()).get(name)


def partition_of(key: bytes, partitions_count: int) -> int:
    """Return the partition to which Kafka's own clients, and ours, send a key.

    Source: `BuiltInPartitioner.partitionForKey` of Apache Kafka: murmur2, its sign bit cleared, modulo the count.
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions_count


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit hash of a key, without sign. Source: `Utils.murmur2` of Apache Kafka.

    >>> murmur2(b"21") - 2**32  # from Kafka's own tests, where it has a sign
    -973932308
    """
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    state = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        state = state * factor & mask ^ word
    if rest := data[whole:]:
        state = (state ^ int.from_bytes(rest, "little")) * factor & mask
    state = (state ^ state >> 13) * factor & mask
    return state ^ state >> 15
