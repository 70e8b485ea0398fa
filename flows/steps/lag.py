"""Lag in seconds, from offsets alone.

The end offset of a partition is sampled now and then. What was committed at offset c is as old as the moment when the
end offset was c, interpolated between samples (kafka-lag-exporter's method). So lag is 0, not growing, on an idle
topic, and works on brokers that cannot look up offsets by time.
"""

from bisect import bisect_right
from collections import deque

_SAMPLES_COUNT = 240


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
