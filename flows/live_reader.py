"""A Kafka partition as the flow reads it: epoch after epoch, beside the others, and up to which instant it is known."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import numpy as np
import numpy.typing as npt

from freshet.flows.journal import Journal
from freshet.schemas.ledger import Update
from freshet.schemas.poll import Poll
from freshet.schemas.units import count_us

_POLL_MESSAGES_MIN, _POLL_MESSAGES_MAX = 2000, 10_000
"""How many are asked for at once: the more come, the less each costs. While live, few are there."""
_AHEAD_LIMIT_MS = 30_000
_IDLE_US = 500_000
"""Where nothing comes, time is told after so long, whether a tick is due or not."""
_ON_ITS_WAY_US = 50_000
"""So long what is in Kafka may be on its way to here: what comes in some milliseconds is fetched together."""
_TICKS_APART_US = 100_000
"""Ticks that come closer are told of together."""


class Partition(Protocol):
    """A Kafka partition that is read, as `partitions.PartitionReader` does."""

    topic: str
    partition: int
    partitions_count: int
    position: int

    @property
    def end_offset(self) -> int:
        """The offset after the last message that is known to be there."""

    @property
    def at_end(self) -> bool:
        """Whether everything that is known to be there was read."""

    @property
    def well(self) -> bool:
        """Whether no outage is being waited out."""

    @property
    def trouble(self) -> str:
        """What is being waited out."""

    def poll(self, messages_count: int, wait_s: float = 0.0) -> Poll | None:
        """Return what is there, or None."""

    def close(self) -> None:
        """Let go."""


class Alignment:
    """Keeps partitions side by side while catching up.

    Reading them one after another would make every row a correction. A partition whose records are ahead of the
    slowest by more than half a minute (of Kafka's own time) waits.
    """

    def __init__(self) -> None:
        self._times_ms: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, key: str, time_ms: int | None) -> None:
        """Note how far a partition was read; None once it is at its end, or was let go."""
        with self._lock:
            if time_ms is None:
                self._times_ms.pop(key, None)
            else:
                self._times_ms[key] = time_ms

    def must_wait(self, key: str) -> bool:
        """Say whether a partition is too far ahead."""
        with self._lock:
            own = self._times_ms.get(key)
            return own is not None and own - min(self._times_ms.values()) > _AHEAD_LIMIT_MS


def wanted_count(times_ms: npt.NDArray[np.int64]) -> int:
    """Return how many messages to ask for next, by the times of those that came: more would lead too far ahead.

    >>> [wanted_count(np.arange(1000) * apart_ms) for apart_ms in (0, 1, 8, 60_000)]
    [10000, 10000, 3750, 2000]
    """
    apart_ms = int(times_ms[-1] - times_ms[0]) / max(len(times_ms) - 1, 1)
    enough = _AHEAD_LIMIT_MS / apart_ms if apart_ms > 0 else _POLL_MESSAGES_MAX
    return int(min(max(enough, _POLL_MESSAGES_MIN), _POLL_MESSAGES_MAX))


@dataclass
class LiveReader:
    """Reads one Kafka partition for the flow, an epoch after the other, and has the journal commit those that are done.

    With `until` it ends there; otherwise it goes on, and says now and then that it is at the partition's end: then time
    may pass though no event comes. `next_tick_us` tells at which instant after another that may make a row. It has
    `caught_up` once all that the partition had at one moment was durable within `limit`.

    All that Kafka had in the partition at `through_us` is read; it only rises, and is None while nothing is known. A
    look that finds the partition at its end makes it the begin of the look before, but no less than 50 ms ago: what
    came since may be on its way. It is also just before the newest message's time: no message is in Kafka before the
    broker's time of it, so all that was there then is read. Times that producers give (`CreateTime`) may lie. Of a
    partition that is behind, one that is too early makes it seem further behind, and one that is too late as if it were
    not: no later than the look's begin is believed.

    The end is what the cluster said last. One that falls silent seems to have nothing new until it is asked, some ten
    seconds later (edges/partitions.py): so long `through_us` rises though nothing is known.
    """

    key: str
    partition: Partition
    journal: Journal
    alignment: Alignment
    on_durable: Callable[[], None]
    until: int | None
    now_us: Callable[[], int]
    limit: timedelta
    next_tick_us: Callable[[int], int]
    told_us: int = 0
    through_us: int | None = None
    epoch: int = 1
    caught_up: bool = False
    _tick_us: int = 0
    _looked_us: int = 0
    _closed: int = 0
    _mark: tuple[int, int] = (0, 0)
    _wanted_count: int = _POLL_MESSAGES_MIN

    def __post_init__(self) -> None:
        """Begin to look whether it keeps up."""
        self._looked_us = self.now_us()
        self._mark = self.partition.end_offset, self._looked_us

    def poll(self) -> Poll | None:
        """Return what came since, unless this partition must let others catch up."""
        if self.alignment.must_wait(self.key):
            return None
        begun_us = self.now_us()
        polled = self.partition.poll(self._wanted_count)
        self._learn_through(begun_us, polled)
        if self.partition.at_end or not self.partition.well:
            self.alignment.read(self.key, None)
        elif polled is not None:  # else it is as far behind as before, with nothing here at the moment
            self.alignment.read(self.key, int(polled.timestamps_ms[-1]))
            self._wanted_count = wanted_count(polled.timestamps_ms)
        if self.until is None:
            polled = self._at_end(begun_us) if polled is None else polled
            if polled is not None and polled.at_end:
                return replace(polled, caught_up_us=begun_us, epoch=self.epoch)
        return None if polled is None else replace(polled, epoch=self.epoch)

    def _learn_through(self, begun_us: int, polled: Poll | None) -> None:
        """Learn until when everything is read, by a look that began then; an outage tells nothing."""
        known_us = [] if self.through_us is None else [self.through_us]
        if self.partition.at_end and self.partition.well:
            known_us.append(min(self._looked_us, begun_us - _ON_ITS_WAY_US))
        if polled is not None and polled.timestamps_ms[-1] >= 0:  # it has a time
            known_us.append(min(int(polled.timestamps_ms[-1]) * 1000 - 1, begun_us))  # others may have the same
        self.through_us, self._looked_us = max(known_us, default=None), begun_us

    def _at_end(self, time_us: int) -> Poll | None:
        """Say twice a second that nothing more was there, and when that may make a row; an outage is no such thing."""
        partition, ticks = self.partition, time_us >= self._tick_us
        if not (partition.at_end and partition.well and (ticks or time_us - self.told_us >= _IDLE_US)):
            return None
        soonest_us = time_us + _TICKS_APART_US if ticks else time_us
        self.told_us, self._tick_us = time_us, max(self.next_tick_us(time_us), soonest_us)
        return Poll.of_nothing(
            partition.topic, partition.partition, partition.partitions_count, partition.end_offset, time_us
        )

    def finished(self) -> bool:
        """Say whether the end asked for is reached."""
        return self.until is not None and self.partition.position >= self.until

    def close_epoch(self) -> None:
        """Tell how far the epoch goes."""
        self._closed = self.partition.position
        through = {} if self.through_us is None else {self.epoch: {self.key: self.through_us}}
        self.journal.tell(Update(offsets={self.epoch: {self.key: self._closed}}, through=through))
        self.epoch += 1

    def epoch_durable(self) -> None:
        """Have the epoch that closed last committed."""
        self.journal.commit(self.epoch - 1)
        self.on_durable()
        end, since_us = self._mark
        if not self.caught_up and self._closed >= end:
            now_us = self.now_us()
            self.caught_up = now_us - since_us <= count_us(self.limit)
            self._mark = self.partition.end_offset, now_us

    def close(self) -> None:
        """Let go."""
        self.alignment.read(self.key, None)
        self.partition.close()
