"""Whether a view keeps up, told from offsets alone: pure.

A message waits from when Kafka has it until the flow has committed its offset, and it is online before that. What a
round learns of a partition is where it ends and what is committed. That there was a message by the first look that saw
the end past it, and that it is not committed yet, says how long it has waited *at least*; no timer says anything, and
neither does an idle partition's age. So whatever is called late here is late, up to a commit interval, and what lasts
is called so one look later than it might be.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from freshet.schemas.units import Objective, spell

STALLED_AFTER = timedelta(seconds=15)
"""How long nothing of a partition must be committed, while messages wait, before it is stalled; or the target."""

CHECKS_MIN = 60
"""How many checks a long window must have before it says something: five minutes of one partition."""

_STALLED_LOOKS = 3
_MINUTE_S = 60
_KEPT_MINUTES = 3 * 24 * 60
_ENDS_MAX = 512

Source = tuple[str, int]
"""A stream and one of its partitions."""


class State(StrEnum):
    """How a source partition keeps up."""

    IDLE = "idle"
    """Everything is committed, and nothing came since the last look."""
    FRESH = "fresh"
    """No message is known to have waited longer than the target."""
    LAGGING = "lagging"
    """A message has waited longer than the target; the flow is on its way to it, as far as can be told."""
    STALLED = "stalled"
    """A message has waited longer than the target, and the flow has long committed nothing."""
    BREACHED = "breached"
    """The objective is broken: too many checks found it late, and it was one of those, of late."""
    UNKNOWN = "unknown"
    """Nothing was ever committed, or a message waits that was there before the first look, or Kafka was not heard."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is committed of a partition, asked first, None if nothing; and the offset after its last message."""

    committed: int | None
    end: int


@dataclass(frozen=True, slots=True)
class Line:
    """How a partition stands: `lag_seconds` is how long its oldest message has waited at least, None if unknown.

    `waiting_count` messages are not committed. `burning` is page or ticket where the objective is broken.
    """

    stream: str
    partition: int | None
    state: State
    lag_seconds: float | None = None
    waiting_count: int | None = None
    committed: int | None = None
    end: int | None = None
    burning: str | None = None


@dataclass(frozen=True, slots=True)
class BurnRule:
    """The objective is broken if its budget of late checks burns `factor` times too fast, long since and still now."""

    severity: str
    factor: float
    long: timedelta
    short: timedelta


BURN_RULES = (
    BurnRule("page", 14.4, timedelta(hours=1), timedelta(minutes=5)),
    BurnRule("page", 6.0, timedelta(hours=6), timedelta(minutes=30)),
    BurnRule("ticket", 3.0, timedelta(days=1), timedelta(hours=2)),
    BurnRule("ticket", 1.0, timedelta(days=3), timedelta(hours=6)),
)
"""At 14.4 an hour takes 2 % of what a month may have (Google's SRE workbook, chapter 5)."""

_WINDOWS = sorted({window for rule in BURN_RULES for window in (rule.long, rule.short)})
WINDOWS = tuple(spell(window) for window in _WINDOWS)
"""The windows of the rules, from short to long, by name."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What there is to export of a view.

    `checked_count` checks ever were of partitions that had something to be fresh with, `stale_count` of them found it
    late; `burn_rates` says by window (`1h`, `5m`, …) how many times faster than allowed the late ones came: 1 is what
    the objective leaves room for.
    """

    checked_count: int
    stale_count: int
    burn_rates: Mapping[str, float]


class Counts:
    """Checks, and late ones, by the minute, of the last three days."""

    def __init__(self) -> None:
        self._minutes, self._checked, self._stale = array("q"), array("q"), array("q")  # the latter two are totals
        self._dropped = (0, 0)

    @property
    def totals(self) -> tuple[int, int]:
        """All checks ever, and all late ones."""
        return (self._checked[-1], self._stale[-1]) if self._minutes else self._dropped

    def add(self, at_s: float, *, stale: bool) -> None:
        """Count a check."""
        minute, (checked, late) = int(at_s // _MINUTE_S), self.totals
        if not self._minutes or self._minutes[-1] < minute:
            for column, value in ((self._minutes, minute), (self._checked, checked), (self._stale, late)):
                column.append(value)
        self._checked[-1], self._stale[-1] = checked + 1, late + stale
        if len(self._minutes) >= 2 * _KEPT_MINUTES:
            self._dropped = (self._checked[-_KEPT_MINUTES - 1], self._stale[-_KEPT_MINUTES - 1])
            for column in (self._minutes, self._checked, self._stale):
                del column[:-_KEPT_MINUTES]

    def since(self, at_s: float) -> tuple[int, int]:
        """Return the checks of the minutes after an instant, and the late ones.

        >>> counts = Counts()
        >>> for at_s in (0, 30, 60, 120): counts.add(at_s, stale=at_s == 60)
        >>> counts.since(-60), counts.since(59), counts.since(60)
        ((4, 1), (2, 1), (1, 0))
        """
        index = bisect_right(self._minutes, int(at_s // _MINUTE_S))
        before = (self._checked[index - 1], self._stale[index - 1]) if index else self._dropped
        checked, stale = self.totals
        return checked - before[0], stale - before[1]


@dataclass
class Clock:
    """When a partition's end was first seen how far, and since when its committed offset stands.

    The history is what keeps the first message after a silence from looking as old as the silence. All times are in
    seconds of one origin.
    """

    first_end: int | None = None
    grew: bool = False
    """Whether something came between the last two looks."""
    _ends: deque[tuple[int, float]] = field(default_factory=deque)
    _committed: int | None = None
    _stands_since_s: float = 0.0
    _looks_count: int = 0

    def look(self, one: Progress, answered_s: float) -> None:
        """Note a look whose answers were there at an instant."""
        self.grew = bool(self._ends) and one.end != self._ends[-1][0]
        if self.first_end is None or (self._ends and one.end < self._ends[-1][0]):  # a topic made anew starts anew
            self.first_end = one.end
            self._ends.clear()
        waits = (one.committed or 0) < one.end
        if one.committed != self._committed or not waits:
            self._committed, self._stands_since_s, self._looks_count = one.committed, answered_s, 0
        self._looks_count += waits
        if not self._ends or one.end > self._ends[-1][0]:
            self._ends.append((one.end, answered_s))
        while len(self._ends) > 1 and self._ends[0][0] <= (one.committed or 0):
            self._ends.popleft()
        if len(self._ends) > _ENDS_MAX:  # without some of them, a message is said to have come later than it did
            self._ends = deque([*self._ends][::2])

    def waited_s(self, committed: int, asked_s: float) -> float:
        """Return how long the first message not committed had waited, at least, when the committed offset was asked."""
        seen = next((at_s for end, at_s in self._ends if end > committed), asked_s)
        return max(0.0, asked_s - seen)

    def stands_still(self, asked_s: float, length_s: float) -> bool:
        """Say whether nothing was committed for so long, as several looks at waiting messages saw it."""
        return self._looks_count >= _STALLED_LOOKS and asked_s - self._stands_since_s >= length_s


class Freshness:
    """How all source partitions keep up, look after look.

    An event is online before its offset is committed, at most `commit_interval` earlier: a message is late only if it
    has waited longer than the target and that.
    """

    def __init__(self, objective: Objective, commit_interval: timedelta = timedelta(0)) -> None:
        self._budget = 1 - objective.percentile / 100
        self._late_s = (objective.bound + commit_interval).total_seconds()
        self._stalled_s = max(self._late_s, STALLED_AFTER.total_seconds())
        self._clocks: dict[Source, Clock] = {}
        self._counts: dict[Source, Counts] = {}
        self._lines: dict[Source, Line] = {}
        self._begun_s: float | None = None
        self._at_s = 0.0

    def look(self, progress: Mapping[Source, Progress], asked_at: datetime, answered_at: datetime) -> None:
        """Note a look at all partitions: Kafka was asked at one instant, and had answered at another."""
        self._at_s = answered_at.timestamp()
        self._begun_s = self._at_s if self._begun_s is None else self._begun_s
        self._lines = {}
        for source, one in progress.items():
            clock = self._clocks.setdefault(source, Clock())
            clock.look(one, self._at_s)
            line = self._lines[source] = self._line(source, one, clock, asked_at.timestamp())
            if line.state in _CHECKED:
                counts = self._counts.setdefault(source, Counts())
                counts.add(self._at_s, stale=line.state is not State.FRESH)

    def lines(self, streams: Sequence[str]) -> list[Line]:
        """Return how each partition of some streams stands, as of the last look.

        A stream of which nothing is known has one line without a partition.
        """
        own = [source for source in sorted(self._lines) if source[0] in streams]
        broken = self._broken(own)
        known = {stream for stream, _ in own}
        unheard = [Line(stream, None, State.UNKNOWN) for stream in streams if stream not in known]
        return [*(self._marked(source, broken) for source in own), *unheard]

    def undecided_count(self, streams: Sequence[str]) -> int:
        """Return of how many partitions more may be said before long: what waits was there before the first look."""
        lines = (line for (stream, _), line in self._lines.items() if stream in streams)
        return sum(line.state is State.UNKNOWN and bool(line.waiting_count) for line in lines)

    def reading(self, streams: Sequence[str]) -> Reading:
        """Return what there is to export of a view of these streams."""
        own = [source for source in self._counts if source[0] in streams]
        checked, stale = _sum(self._counts[source].totals for source in own)
        return Reading(checked, stale, {spell(window): self._burn_rate(own, window) for window in _WINDOWS})

    def _line(self, source: Source, one: Progress, clock: Clock, asked_s: float) -> Line:
        committed = 0 if one.committed is None and one.end == 0 else one.committed
        if committed is None or committed > one.end:  # asked first, so it is of another topic than ends there
            return Line(*source, State.UNKNOWN, committed=committed, end=one.end)
        waiting_count = one.end - committed
        waited_s, state = clock.waited_s(committed, asked_s), State.FRESH
        if not waiting_count:
            state = State.FRESH if clock.grew else State.IDLE
        elif waited_s > self._late_s:
            stalled = waited_s >= self._stalled_s and clock.stands_still(asked_s, self._stalled_s)
            state = State.STALLED if stalled else State.LAGGING
        elif clock.first_end is None or committed < clock.first_end:
            return Line(*source, State.UNKNOWN, None, waiting_count, committed, one.end)
        return Line(*source, state, waited_s, waiting_count, committed, one.end)

    def _broken(self, own: Sequence[Source]) -> list[BurnRule]:
        """Return the rules by which the objective is broken; one speaks once its short window has passed."""
        run_s = self._at_s - (self._at_s if self._begun_s is None else self._begun_s)
        return [
            rule
            for rule in BURN_RULES
            if run_s >= rule.short.total_seconds()
            and self._counted(own, rule.long)[0] >= CHECKS_MIN
            and min(self._burn_rate(own, rule.long), self._burn_rate(own, rule.short)) > rule.factor
        ]

    def _marked(self, source: Source, broken: Iterable[BurnRule]) -> Line:
        """Return a partition's line; of a broken objective, if it was late in the time that says so."""
        line = self._lines[source]
        burning = next((rule.severity for rule in broken if self._counted([source], rule.short)[1]), None)
        if burning is None or line.state is State.UNKNOWN:
            return line
        return replace(line, state=line.state if line.state is State.STALLED else State.BREACHED, burning=burning)

    def _burn_rate(self, own: Sequence[Source], window: timedelta) -> float:
        checked, stale = self._counted(own, window)
        return stale / checked / self._budget if checked else 0.0

    def _counted(self, own: Sequence[Source], window: timedelta) -> tuple[int, int]:
        begin_s = self._at_s - window.total_seconds()
        return _sum(self._counts[source].since(begin_s) for source in own if source in self._counts)


_CHECKED = frozenset({State.FRESH, State.LAGGING, State.STALLED})


def _sum(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    first, second = 0, 0
    for one, other in pairs:
        first, second = first + one, second + other
    return first, second


def without_history(lines: Iterable[Line]) -> list[Line]:
    """Return what one check by itself says: without a history to count, what lags breaks the objective."""
    return [replace(line, state=State.BREACHED) if line.state is State.LAGGING else line for line in lines]
