"""How far a consumer is behind in a partition, from samples of its offsets: in messages, in seconds, until when.

The end offset of a partition is sampled now and then. What was committed at offset c is as old as the moment when the
end offset was c, interpolated between samples (kafka-lag-exporter's method). So lag is 0, not growing, on an idle
topic, and works on brokers that cannot look up offsets by time.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from freshet.flows.steps.burrow import Commits, Status
from freshet.schemas.standing import Standing

_SAMPLES_COUNT = 240
TREND_S = 60.0
"""Over how long it is seen whether lag grows."""
_TREND_SAMPLES_COUNT = 6
"""From so few samples no trend is told."""


class LagClock:
    """When one partition's end offset was what."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=_SAMPLES_COUNT)

    def observe(self, end_offset: int, now_s: float) -> None:
        """Note the end offset at an instant (seconds, any origin); of a stretch without change the newest counts."""
        while self._samples and self._samples[-1][0] >= end_offset:
            self._samples.pop()
        self._samples.append((end_offset, now_s))

    def reaches(self, committed: int) -> bool:
        """Say whether the samples go back to a committed offset; if not, its lag is at least what `lag_s` says."""
        return bool(self._samples) and committed >= self._samples[0][0]

    def lag_s(self, committed: int | None, now_s: float) -> float | None:
        """Return how long the first event not yet committed has waited; 0 if there is none, None if it is not known.

        >>> clock = LagClock()
        >>> clock.observe(100, 0.0); clock.observe(200, 10.0)
        >>> clock.lag_s(150, 12.0), clock.lag_s(200, 99.0), clock.lag_s(None, 1.0)
        (7.0, 0.0, None)
        """
        if committed is None or not self._samples:
            return None
        end_offset, _ = self._samples[-1]
        if committed >= end_offset:
            return 0.0
        offsets = [offset for offset, _ in self._samples]
        after = bisect_right(offsets, committed)
        if after == 0:  # older than every sample: at least as old as the oldest
            return now_s - self._samples[0][1]
        (low, begun), (high, ended) = self._samples[after - 1], self._samples[after]
        return now_s - (begun + (ended - begun) * (committed - low) / (high - low))


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer is behind in a partition. What is not known is None, what will never be is infinite.

    Of the messages before `end_offset`, `messages_count` are not yet committed, and the first of them has waited for
    `age_s`, at least so long if that is not exact. As it goes now, nothing waits after `drain_s`; the age passes the
    target after `breach_s`; and Kafka deletes the first of them after `retention_left_s`.
    """

    end_offset: int
    messages_count: int
    age_s: float | None
    is_exact: bool
    status: Status
    drain_s: float | None
    breach_s: float | None
    retention_left_s: float | None


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    messages_count: int
    age_s: float


class PartitionLag:
    """What is known of one consumer in one partition, look after look. `target_s` is the age not to be passed."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._clock, self._commits, self._seen = LagClock(), Commits(), (-1, 0.0)
        self._written: tuple[int, float | None] = (-1, None)
        self._trend: deque[_Sample] = deque()

    def look(
        self,
        standing: Standing,
        now_s: float,
        retention_s: float | None,
        written_at_s: Callable[[int], float | None],
    ) -> Lag:
        """Take what Kafka tells at an instant, seconds since the epoch; say what that means.

        A consumer that has not committed yet begins with the first message. `written_at_s` says when the message at an
        offset was written; it is asked, once an offset, where the samples do not go back so far.
        """
        committed = standing.first if standing.committed is None else standing.committed
        self._note(standing, now_s)
        messages_count = max(0, standing.end - committed)
        age_s, is_exact = self._age(committed, messages_count, now_s, written_at_s)
        if age_s is not None:
            self._trend.append(_Sample(now_s, messages_count, age_s))
        while self._trend and self._trend[0].at_s < now_s - TREND_S:
            self._trend.popleft()
        return Lag(
            standing.end,
            messages_count,
            age_s,
            is_exact,
            self._commits.status(now_s),
            self._drain_s(messages_count),
            self._breach_s(age_s),
            _retention_left_s(messages_count, age_s, retention_s),
        )

    def _note(self, standing: Standing, now_s: float) -> None:
        self._clock.observe(standing.end, now_s)
        self._commits.ends(standing.end)
        if standing.committed is not None:
            offset, before_s = self._seen
            at_s = standing.committed_at_s
            if at_s is None:  # a group that does not say when: seen only where the offset is another
                at_s = before_s if standing.committed == offset else now_s
            if (standing.committed, at_s) != self._seen:
                self._seen = standing.committed, at_s
                self._commits.commits(standing.committed, at_s)

    def _age(
        self, committed: int, messages_count: int, now_s: float, written_at_s: Callable[[int], float | None]
    ) -> tuple[float | None, bool]:
        sampled_s = self._clock.lag_s(committed, now_s)
        if not messages_count or self._clock.reaches(committed):
            return sampled_s, True
        if self._written[0] != committed:
            self._written = committed, written_at_s(committed)
        written_s = self._written[1]
        if written_s is None:
            return sampled_s, False
        return max(now_s - written_s, sampled_s or 0.0), True

    def _drain_s(self, messages_count: int) -> float | None:
        if not messages_count:
            return 0.0
        if len(self._trend) < _TREND_SAMPLES_COUNT:
            return None
        first, last = self._trend[0], self._trend[-1]
        done_per_s = (first.messages_count - last.messages_count) / (last.at_s - first.at_s)
        return messages_count / done_per_s if done_per_s > 0 else math.inf

    def _breach_s(self, age_s: float | None) -> float | None:
        """Return when the age passes the target if its floor rises on: what waits for a commit comes and goes."""
        if age_s is None:
            return None
        if age_s >= self._target_s:
            return 0.0
        if not age_s:
            return math.inf
        if len(self._trend) < _TREND_SAMPLES_COUNT:
            return None
        middle_s = (self._trend[0].at_s + self._trend[-1].at_s) / 2
        earlier = _lowest(sample for sample in self._trend if sample.at_s <= middle_s)
        later = _lowest(sample for sample in self._trend if sample.at_s > middle_s)
        rise_per_s = (later.age_s - earlier.age_s) / (later.at_s - earlier.at_s)
        return (self._target_s - age_s) / rise_per_s if rise_per_s > 0 else math.inf


def _lowest(samples: Iterable[_Sample]) -> _Sample:
    return min(samples, key=lambda sample: sample.age_s)


def _retention_left_s(messages_count: int, age_s: float | None, retention_s: float | None) -> float | None:
    if not messages_count or retention_s is None:
        return math.inf
    return None if age_s is None else max(0.0, retention_s - age_s)
