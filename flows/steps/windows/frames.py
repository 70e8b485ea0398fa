"""Where frames begin, and when time alone changes what they hold."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from freshet.flows.steps.windows.due import NEVER_DUE_US
from freshet.flows.steps.windows.segments import Ints
from freshet.schemas.plan import Range, ViewPlan


def low_edges(frame: Range, instants: Ints) -> Ints:
    """Return the time of the oldest event that a frame holds at each instant (µs); the frame must have one.

    >>> import numpy as np
    >>> low_edges(Range(10), np.array([25])), low_edges(Range(10, resolution_us=4), np.array([25]))
    (array([15]), array([12]))
    """
    assert frame.preceding_us is not None, frame
    return _floor(instants - frame.preceding_us, frame.resolution_us, frame.origin_us)


@dataclass(frozen=True, slots=True)
class TickRule:
    """The instant at which an event of time t makes a row though no event comes: when it leaves a frame, or enters one.

    It is floor(t) + shift, rounded up to a multiple of `interval_us` from the Unix epoch; `floor` rounds down to
    origin + k · resolution. So it never falls as t rises.
    """

    shift_us: int
    interval_us: int
    resolution_us: int = 1
    origin_us: int = 0

    def ticks(self, times: Ints) -> Ints:
        """Return the tick of each event time.

        >>> import numpy as np
        >>> TickRule(11, 5).ticks(np.array([0, 4, 5]))  # it leaves [q - 10, q] after 10, 14, 15
        array([15, 15, 20])
        """
        return _ceil(_floor(times, self.resolution_us, self.origin_us) + self.shift_us, self.interval_us)

    def first_after(self, clocks: Ints) -> Ints:
        """Return the earliest event time whose tick lies after each clock.

        >>> import numpy as np
        >>> TickRule(11, 5).first_after(np.array([14, 15]))
        array([0, 5])
        """
        edge = _floor(clocks, self.interval_us) - self.shift_us + 1
        return _ceil(edge, self.resolution_us, self.origin_us)


def tick_rules(plan: ViewPlan) -> tuple[TickRule, ...]:
    """Return the distinct rules by which a view's frames make ticks."""
    rules: dict[TickRule, None] = {}
    for frame in plan.ranges:
        if frame.decay_us is None:
            continue
        if frame.preceding_us is not None:
            shift = frame.preceding_us + frame.resolution_us
            rules[TickRule(shift, frame.decay_us, frame.resolution_us, frame.origin_us)] = None
        if frame.ending_us:
            rules[TickRule(frame.ending_us, frame.decay_us)] = None
    return tuple(rules)


def next_tick_us(rules: Iterable[TickRule], clock_us: int) -> int:
    """Return the first instant after a clock at which an event can make a row by one of the rules, whenever it was.

    >>> next_tick_us([TickRule(11, 5), TickRule(11, 7)], 14), next_tick_us([TickRule(1, 1, resolution_us=60)], 14)
    (15, 61)
    """
    clock = np.array([clock_us])
    return min((int(rule.ticks(rule.first_after(clock))[0]) for rule in rules), default=NEVER_DUE_US)


def _floor(values: Ints, step: int, origin: int = 0) -> Ints:
    return (values - origin) // step * step + origin if step > 1 else values


def _ceil(values: Ints, step: int, origin: int = 0) -> Ints:
    return -_floor(-values, step, -origin)
