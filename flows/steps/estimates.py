"""What a view will need: rows, parquet, Redis and state, from its plan and the load on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from freshet.flows.steps.windows.frames import tick_rules
from freshet.flows.steps.windows.shard import WindowShard
from freshet.schemas import units
from freshet.schemas.plan import Range, Rows, ViewPlan

_BYTES_OF_VARIABLE = 24
"""What a string or list is taken to need, before anything is known of its values."""
_SECONDS_PER_DAY = 86_400
_GROWTH = 4
"""So many times longer than what they hold columns become before they are compacted."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much comes: events a second, and of how many entities. `known_from` says who says so."""

    events_per_s: float
    entities_count: int
    known_from: str


@dataclass(frozen=True, slots=True)
class WindowEstimate:
    """What one window keeps: how many events or panes, in words and as a number."""

    window: str
    keeps: str
    elements_count: int


@dataclass(frozen=True, slots=True)
class ViewEstimate:
    """What one view needs under a load. State is an upper bound: columns grow to four times what they hold."""

    rows_per_event: int
    parquet_bytes_per_day: int
    redis_bytes: int
    state_bytes: int
    windows: tuple[WindowEstimate, ...]


def rows_per_event(plan: ViewPlan) -> int:
    """Return how many rows an event makes at most: its own, and a tick for each way to leave or enter a frame."""
    return 1 + len(tick_rules(plan))


def row_bytes(plan: ViewPlan) -> int:
    """Return the bytes of a row in parquet, uncompressed."""
    return sum(map(_width, plan.view.row_schema.types))


def element_bytes(plan: ViewPlan) -> int:
    """Return the bytes of state that an event, or a pane, takes."""
    return WindowShard(plan).element_bytes


def redis_bytes(plan: ViewPlan) -> int:
    """Return the bytes of an entity in Redis.

    The key, and for each hash field its 4-byte name, a tag, the value, and 2 bytes of a listpack's own.
    """
    view = plan.view
    key = 40 + sum(12 + len(column.name) + _width(column.type) for column in view.entity)
    return key + 2 * (len(view.name) + 16) + sum(4 + 2 + 2 + _width(feature.dtype.arrow) for feature in view.features)


def estimate(plan: ViewPlan, load: Load, lateness_us: Mapping[str, int]) -> ViewEstimate:
    """Return what a view needs; `lateness_us` is what each of its streams allows."""
    late_s = max(lateness_us.values()) / 1e6
    windows = [_window(frame, load, late_s) for frame in plan.frames]
    if plan.whole_history:
        windows.append(WindowEstimate("newest event", "an event an entity", load.entities_count))
    elements = max((window.elements_count for window in windows), default=0)
    rows = rows_per_event(plan)
    return ViewEstimate(
        rows,
        int(load.events_per_s * _SECONDS_PER_DAY * rows * row_bytes(plan)),
        load.entities_count * redis_bytes(plan),
        _GROWTH * elements * element_bytes(plan),
        tuple(windows),
    )


def allowed_load(plans: Sequence[ViewPlan], bytes_per_day: float, entities_count: int) -> Load:
    """Return the most events of each stream that the declared volume of parquet has room for, in all views together."""
    events_per_day = bytes_per_day / sum(rows_per_event(plan) * row_bytes(plan) for plan in plans)
    return Load(events_per_day / _SECONDS_PER_DAY, entities_count, "the declared offlineVolume, used up")


def reach_words(plan: ViewPlan) -> str:
    """Say how far back a row can depend on events; of a window with a resolution, the longest that it can get."""
    if plan.reach_us is None:
        return "lifetime"
    longest = max(plan.ranges, key=lambda frame: frame.span_us or 0)
    return _spelled(plan.reach_us + (longest.resolution_us > 1))


def words(frame: Range | Rows) -> str:
    """Say a frame as the user may read it.

    >>> words(Range(3_600_000_000)), words(Range(0, resolution_us=60_000_000)), words(Rows(9)), words(Range(None))
    ('last 1h', 'bucket of 1m so far', 'last 10 rows', 'lifetime')
    """
    if isinstance(frame, Rows):
        said = "all rows" if frame.preceding is None else f"last {frame.preceding + 1} rows"
        return said + (f" up to {frame.ending} before" if frame.ending else "")
    if frame.preceding_us is None:
        said = "lifetime"
    elif frame.preceding_us == 0 and frame.resolution_us > 1:
        said = f"bucket of {_spelled(frame.resolution_us)} so far"
    else:
        said = f"last {_spelled(frame.preceding_us)}"
        said += f" from a multiple of {_spelled(frame.resolution_us)} on" if frame.resolution_us > 1 else ""
    said += f" up to {_spelled(frame.ending_us)} before" if frame.ending_us else ""
    return said + (f", decaying every {_spelled(frame.decay_us)}" if frame.decay_us and frame.decay_us > 1 else "")


def _window(frame: Range | Rows, load: Load, late_s: float) -> WindowEstimate:
    recent = load.events_per_s * late_s
    if isinstance(frame, Rows):
        count = 1 + (frame.preceding or frame.ending)
        return WindowEstimate(words(frame), f"{count} events an entity", int(load.entities_count * count + recent))
    recent += load.events_per_s * ((frame.decay_us or 0) + frame.ending_us) / 1e6
    if frame.preceding_us is None:
        return WindowEstimate(words(frame), "a pane an entity", int(load.entities_count + recent))
    if frame.resolution_us > 1:
        panes = min(
            load.entities_count * (frame.preceding_us // frame.resolution_us + 1),
            load.events_per_s * (frame.preceding_us + frame.resolution_us) / 1e6,
        )
        kept = f"a pane each {_spelled(frame.resolution_us)} an entity"
        return WindowEstimate(words(frame), kept, int(panes + recent))
    inside = load.events_per_s * frame.preceding_us / 1e6
    return WindowEstimate(words(frame), "every event inside", int(inside + recent))


def _spelled(length_us: int) -> str:
    return units.spell(units.microseconds(length_us))


def _width(kind: pa.DataType) -> int:
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # Arrow's word for a type of variable width
        return _BYTES_OF_VARIABLE
