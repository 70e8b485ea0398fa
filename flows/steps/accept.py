"""Which decoded events are accepted: judged per Kafka partition, by that partition's own event times.

So acceptance does not depend on how partitions interleave, on batch sizes, or on when a replay runs. In this order: an
event too far past its own Kafka time is `future`, and moves nothing; one older than the partition's newest by more than
the allowed lateness is `late`; one whose id was accepted before is a duplicate, and the lowest offset wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.flows.steps.windows.columns import microseconds
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, NEVER_US, Stream
from freshet.schemas.rejects import Reason
from freshet.schemas.units import count_us

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a batch: which events are accepted, and why the others are not.

    `rejected` holds (index, reason, detail); `duplicates` the indices of repeated events, which are counted, not kept.
    `times` has the time of every event, µs since the epoch.
    """

    accepted: npt.NDArray[np.int64]
    rejected: tuple[tuple[int, Reason, str], ...]
    duplicates: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]


@dataclass
class PartitionJudge:
    """One partition's clock, and the ids it has accepted within the allowed lateness."""

    stream: Stream
    newest_us: int = NEVER_US
    """The greatest event time seen, futures apart."""
    accepted_us: int = NEVER_US
    """The greatest event time of those that were accepted by all views."""
    seen: dict[object, int] = field(default_factory=dict)
    accepted_count: int = 0
    """How many events were accepted by all views, ever."""
    failed_count: int = 0
    """How many that were judged fit failed on an expression: their ids are in `seen`, and in no archive."""
    _kept_count: int = field(default=0, init=False, compare=False)
    """How many ids were not forgotten the last time."""

    def absorb(self, events: pa.Table) -> None:
        """Take accepted events that another run judged, after that run's state; `newest_us` is that run's last."""
        self.accepted_count += events.num_rows
        if self.stream.event_id is not None and events.num_rows:
            ids = events.column(self.stream.event_id).to_pylist()
            known = zip(ids, microseconds(events.column(EVENT_TIME)).tolist(), strict=True)
            oldest = self.newest_us - count_us(self.stream.lateness)
            self.seen.update((event_id, time) for event_id, time in known if event_id is not None and time >= oldest)

    def judge(self, events: pa.Table) -> Judged:
        """Judge events of this partition in the order of their offsets."""
        times, available = microseconds(events.column(EVENT_TIME)), microseconds(events.column(AVAILABLE_AT))
        if len(times) == 0:
            return Judged(np.zeros(0, np.int64), (), np.zeros(0, np.int64), times)
        lateness_us = count_us(self.stream.lateness)
        future = times - available > count_us(self.stream.max_future)
        clock = np.maximum.accumulate(np.where(future, NEVER_US, times))
        clock = np.maximum(clock, self.newest_us)
        late = ~future & (times < clock - lateness_us)
        self.newest_us = int(clock[-1])
        rest, rejected = np.arange(len(times)), list[tuple[int, Reason, str]]()
        if (unfit := future | late).any():  # which is rare
            rest = np.flatnonzero(~unfit)
            for index in np.flatnonzero(unfit).tolist():
                if future[index]:
                    rejected.append((index, Reason.FUTURE, self._future(times[index], available[index])))
                else:
                    rejected.append((index, Reason.LATE, self._late(times[index], clock[index])))
        repeated = self._repeated(events, rest, times, clock - lateness_us)
        return Judged(rest[~repeated], tuple(rejected), rest[repeated], times)

    def _repeated(
        self,
        events: pa.Table,
        rest: npt.NDArray[np.int64],
        times: npt.NDArray[np.int64],
        horizon: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Say which ids were accepted before, at a time that is still within each event's own horizon."""
        if self.stream.event_id is None:
            return np.zeros(len(rest), np.bool_)
        column = events.column(self.stream.event_id)
        ids: Sequence[object] = (column if len(rest) == len(column) else column.take(pa.array(rest))).to_pylist()
        fresh = dict(zip(ids, times[rest].tolist(), strict=True))
        if len(fresh) == len(ids) and None not in fresh and self.seen.keys().isdisjoint(fresh):
            self.seen |= fresh
            repeated = np.zeros(len(rest), np.bool_)
        else:
            repeated = self._one_by_one(ids, times[rest], horizon[rest])
        if len(self.seen) > 2 * max(self._kept_count, len(rest)):  # so that forgetting costs each id but once
            oldest = self.newest_us - count_us(self.stream.lateness)
            self.seen = {event_id: time for event_id, time in self.seen.items() if time >= oldest}
            self._kept_count = len(self.seen)
        return repeated

    def _one_by_one(
        self, ids: Sequence[object], times: npt.NDArray[np.int64], horizon: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Say which ids were seen before, where some may have been."""
        repeated = np.zeros(len(ids), np.bool_)
        for index, (event_id, time, oldest) in enumerate(zip(ids, times.tolist(), horizon.tolist(), strict=True)):
            if event_id is None:
                continue
            if self.seen.get(event_id, NEVER_US) >= oldest:
                repeated[index] = True
            else:
                self.seen[event_id] = time
        return repeated

    def _late(self, time: int, clock: int) -> str:
        behind = timedelta(microseconds=int(clock - time))
        allowed = self.stream.lateness
        return f"{_instant(time)} is {behind} behind its partition's newest event; the stream allows {allowed}"

    def _future(self, time: int, available: int) -> str:
        ahead = timedelta(microseconds=int(time - available))
        return f"{_instant(time)} is {ahead} past its Kafka time; the stream allows {self.stream.max_future}"


def _instant(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=int(microseconds))).isoformat()
