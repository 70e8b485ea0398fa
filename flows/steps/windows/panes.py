"""Which events no frame will tell apart again: they become panes, elements of several events.

Every row to come stands at or after the horizon, so the edges of its frames fall only on certain instants: for a
sliding window on any, for a sawtooth or tumbling one on multiples of its resolution, for a lifetime on none. Events
between two such instants may be merged; events before the first edge of every frame may be forgotten.
"""

import numpy as np
import numpy.typing as npt

from freshet.flows.steps.windows.aggregates import MERGEABLE
from freshet.flows.steps.windows.frames import low_edges
from freshet.flows.steps.windows.segments import TIME, Ints, Segments, run_begins
from freshet.schemas.plan import Exclude, Range, Rows, ViewPlan

Bools = npt.NDArray[np.bool_]


def panes(plan: ViewPlan, segments: Segments, at: Ints, owners: Ints, horizon_us: int) -> tuple[Bools, Bools]:
    """Say of each event at the positions `at`, those of `owners`, whether a pane begins there, and whether it matters.

    No event older than the horizon will come.
    """
    times = segments.time[at]
    alone = (times >= horizon_us) | _counted_alone(plan, segments, at, owners, horizon_us)
    begins, matters = alone | run_begins(owners), (times >= horizon_us) | plan.whole_history
    begins[1:] |= alone[:-1]
    all_kept = {made.frame for made in plan.aggregates if made.function not in MERGEABLE}
    for frame in plan.ranges:
        edges, needed = _edges(frame, times, horizon_us)
        begins |= run_begins(edges) | (needed & (frame in all_kept))
        matters |= needed
    return begins, matters


def _edges(frame: Range, times: Ints, horizon_us: int) -> tuple[Ints, Bools]:
    """Return, for each event, what of its time a frame can still tell, and whether it can still hold or lose it."""
    interval = frame.decay_us or 1
    oldest = horizon_us - frame.ending_us - interval
    if frame.preceding_us is None:
        return np.maximum(times, oldest), np.ones(len(times), np.bool_)
    floored = low_edges(Range(0, resolution_us=frame.resolution_us, origin_us=frame.origin_us), times)
    lowest = int(low_edges(frame, np.array([horizon_us - interval]))[0])
    edges = np.where(times >= oldest, times, np.maximum(floored, lowest - 1))
    return edges, times >= lowest


def _counted_alone(plan: ViewPlan, segments: Segments, at: Ints, owners: Ints, horizon_us: int) -> Bools:
    """Say which events before the horizon rows to come may still count one by one."""
    rows = [frame for frame in plan.frames if isinstance(frame, Rows)]
    counts = [*((frame.preceding or frame.ending) + 1 for frame in rows), *(lag.rows for lag in plan.lags)]
    counted = np.zeros(len(at), np.bool_)
    limit = segments.search(TIME, segments.start[owners], segments.end[owners], np.full(len(at), horizon_us))
    if counts:
        counted |= at >= limit - max(counts)
    if any(frame.exclude is not Exclude.NOTHING for frame in plan.frames):
        last = np.maximum(limit - 1, segments.start[owners])
        counted |= segments.time[at] == segments.time[last]
    return counted
