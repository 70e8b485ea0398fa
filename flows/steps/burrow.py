"""Whether a consumer of a partition keeps up, by Burrow's rules, from what it committed and where the partition ended.

Source: linkedin/Burrow, core/internal/evaluator/caching.go and core/internal/storage/inmemory.go, which look at the
last ten commits and the last ten end offsets. Burrow takes a partition's end from a sample that may be seconds old,
so a consumer that falls behind steadily may look as if it caught up; here the end is sampled with the commit.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

INTERVALS_COUNT = 10
"""How many commits, and how many end offsets, are kept: Burrow's own default."""


class Status(StrEnum):
    """How a consumer does with a partition; names and meaning are Burrow's."""

    OK = "OK"
    WARN = "WARN"
    """It goes on, but at no commit had it less to do than at the one before."""
    STOP = "STOP"
    """It has not committed for longer than the time over which its last commits stretch."""
    STALL = "STALL"
    """It commits one and the same offset."""
    REWIND = "REWIND"
    """It committed an offset before the one that it had committed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """An offset that was committed, and how many messages lay behind it then."""

    offset: int
    at_s: float
    lag_count: int


class Commits:
    """The last commits of one consumer to one partition, and where the partition ended lately.

    >>> commits = Commits()
    >>> for second in range(10):
    ...     commits.ends(100 + 10 * second)
    ...     commits.commits(50, second)
    >>> commits.status(10.0)
    <Status.STALL: 'STALL'>
    """

    def __init__(self, intervals_count: int = INTERVALS_COUNT) -> None:
        self._commits: deque[Commit] = deque(maxlen=intervals_count)
        self._ends: deque[int] = deque(maxlen=intervals_count)

    def ends(self, end_offset: int) -> None:
        """Note the offset after the partition's last message."""
        self._ends.append(end_offset)

    def commits(self, offset: int, at_s: float) -> None:
        """Note a commit, the partition's end having been noted before."""
        if self._ends:
            self._commits.append(Commit(offset, at_s, max(0, self._ends[-1] - offset)))

    def status(self, now_s: float) -> Status:
        """Return how the consumer does by now, in seconds of the clock that its commits are told by."""
        if not self._commits:
            return Status.OK
        first, last = self._commits[0], self._commits[-1]
        if self._ends[-1] <= last.offset:
            return Status.OK
        has_stopped = now_s - last.at_s > last.at_s - first.at_s
        if has_stopped and not any(end <= last.offset for end in self._ends):
            return Status.STOP
        if any(commit.lag_count == 0 for commit in self._commits):
            return Status.OK
        pairs = list(pairwise(self._commits))
        if any(later.offset < earlier.offset for earlier, later in pairs):
            return Status.REWIND
        if all(later.offset == earlier.offset for earlier, later in pairs):
            return Status.STALL
        if all(later.lag_count >= earlier.lag_count for earlier, later in pairs):
            return Status.WARN
        return Status.OK
