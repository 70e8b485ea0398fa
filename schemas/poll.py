"""What one poll of one Kafka partition brought: messages as columns, and how far the partition goes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Poll:
    """Messages of one partition, in the order of their offsets; all lists are equally long, and may be empty.

    `versions` holds the value of the header `schemas.event.VERSION_HEADER`, or None. `timestamps_ms` is Kafka's own
    time of each record; -1 where there is none, as in a file. `end_offset` is the offset after the partition's last
    message when it was polled, and `at_end` says that nothing more was there.
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
