"""What one poll of one Kafka partition brought: messages as columns, and how far the partition goes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Poll:
    """Messages of one partition, in the order of their offsets; all lists are equally long, and may be empty.

    `versions` holds the value of the header `schemas.event.VERSION_HEADER`, or None. `timestamps_ms` is Kafka's own
    time of each record; -1 where there is none, as in a file. `end_offset` is the offset after the partition's last
    message when it was polled, and `at_end` says that nothing more was there. `caught_up_us` is the wall time (µs since
    the epoch) of a moment at which nothing more was there: until then the partition is known whole. It is None while a
    topic is caught up with. `epoch` numbers the commit that it will be durable with. `headers` holds all of each
    message's headers; None where none has any. `events` are the messages as their contract's columns, where they are
    known so, as those of an event archive are: nothing is decoded, and `values`, and their rejects', are all None.
    """

    topic: str
    partition: int
    partitions_count: int
    values: list[bytes | None]
    keys: list[bytes | None]
    versions: list[bytes | None]
    timestamps_ms: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    end_offset: int
    at_end: bool
    caught_up_us: int | None = None
    epoch: int = 0
    headers: Sequence[Sequence[tuple[str, bytes | None]] | None] | None = None
    events: pa.Table | None = None

    @classmethod
    def of_nothing(cls, topic: str, partition: int, partitions_count: int, end_offset: int, time_us: int) -> "Poll":
        """Return that a partition brought nothing up to a time, and was at its end then."""
        none = np.zeros(0, np.int64)
        return cls(
            topic, partition, partitions_count, [], [], [], none, none, end_offset, at_end=True, caught_up_us=time_us
        )
