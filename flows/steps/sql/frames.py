"""A window's frame, from its tree: where it begins and ends, what it leaves out, and how often it decays."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from freshet.flows.steps.sql.engine import CHECK_SECONDS_MAX, deadline, explain
from freshet.flows.steps.sql.functions import ALLOWED
from freshet.flows.steps.sql.parse import Node, walk, write
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.plan import Exclude, Range, Rows

DEFAULT_FRAME = "RANGE BETWEEN INTERVAL '10 minutes' PRECEDING AND CURRENT ROW"
ROWS_MAX = 10_000

_WRITE_FRAME = f"write {DEFAULT_FRAME}"
_WRITE_BUCKET = f"write time_bucket(INTERVAL '1 hour', {EVENT_TIME})"
_WRITE_COUNT = f"write a whole number from 0 to {ROWS_MAX}"
_YEARS_MAX_US = 36_500 * 86_400_000_000
_DAY_US = 86_400_000_000
_BUCKET_ORIGIN = datetime(2000, 1, 3, tzinfo=UTC)
"""Where DuckDB's time_bucket begins to count, a Monday."""
_CONSTANT = frozenset(["CONSTANT", "CAST", "TYPE", "FUNCTION"])
_SHARE = 100
"""A window decays in so many steps."""

Words = Callable[[Node], str]
"""Spells a node."""


class FrameProblem(Exception):
    """A window's frame that is not computed."""

    def __init__(self, fact: str, got: str, hint: str = _WRITE_FRAME) -> None:
        super().__init__(fact)
        self.fact, self.got, self.hint = fact, got, hint


@dataclass(frozen=True, slots=True)
class FrameOptions:
    """What a declaration says of frames beside their SQL.

    `resolution_us` is 1 for exact frames. `decay_us` is 0 for no ticks, None for the default; `target_us` is how fresh
    rows must be.
    """

    resolution_us: int = 1
    decay_us: int | None = None
    target_us: int = 1


def is_default(window: Node) -> bool:
    """Say whether a window has no frame of its own, nor a bucket."""
    ends = (window["start"], window["end"])
    return ends == ("UNBOUNDED_PRECEDING", "CURRENT_ROW_RANGE") and bucket_of(window) is None


def bucket_of(window: Node) -> Node | None:
    """Return the time_bucket that a window is partitioned by beside its entity."""
    return next((part for part in window["partitions"] if _is_bucket(part)), None)


def _is_bucket(part: Node) -> bool:
    return bool(part["class"] == "FUNCTION" and part["function_name"].casefold() == "time_bucket")


def frame(connection: duckdb.DuckDBPyConnection, window: Node, words: Words, options: FrameOptions) -> Range | Rows:
    """Return the frame of a window, or raise `FrameProblem`, which says it in the words of the user."""
    bucket = bucket_of(window)
    if window["type"] == "WINDOW_LAG":
        if bucket is not None:
            hint = "leave time_bucket out: lag counts the entity's events, whatever their bucket"
            raise FrameProblem("has lag inside a time_bucket", words(bucket), hint)
        return _lag(connection, window, words)
    exclude = Exclude(
        "NO OTHERS" if window["exclude_clause"] == "NO_OTHER" else window["exclude_clause"].replace("_", " ")
    )
    starts, ends = window["start"], window["end"]
    if bucket is not None:
        if (starts, ends) != ("UNBOUNDED_PRECEDING", "CURRENT_ROW_RANGE"):
            hint = "leave the frame out: the bucket so far is meant"
            raise FrameProblem("has a frame inside a time_bucket", frame_words(window, words), hint)
        return _decaying(replace(_bucket(connection, bucket, words), exclude=exclude), options)
    if "FOLLOWING" in starts + ends:
        hint = f"end it at CURRENT ROW or before: later events are not known yet; such as {DEFAULT_FRAME}"
        raise FrameProblem("has a frame that sees the future", frame_words(window, words), hint)
    if starts.startswith("CURRENT_ROW"):
        raise FrameProblem("has a frame of the current row alone", frame_words(window, words), "write the value itself")
    if "GROUPS" in starts + ends:
        hint = "write RANGE of a duration, or ROWS of a count"
        raise FrameProblem("has a frame of GROUPS", frame_words(window, words), hint)
    if starts.endswith("ROWS") or ends.endswith("ROWS"):
        return _rows(connection, window, words, exclude)
    return _decaying(_range(connection, window, words, exclude, options), options)


def _range(
    connection: duckdb.DuckDBPyConnection, window: Node, words: Words, exclude: Exclude, options: FrameOptions
) -> Range:
    """RANGE BETWEEN a duration or UNBOUNDED PRECEDING AND CURRENT ROW or a duration PRECEDING."""
    preceding = None if window["start_expr"] is None else _duration(connection, window["start_expr"], words)
    ending = 0 if window["end_expr"] is None else _duration(connection, window["end_expr"], words, zero=True)
    if preceding is not None and preceding < ending:
        hint = "begin it before it ends"
        raise FrameProblem("has a frame that ends before it begins", frame_words(window, words), hint)
    resolution = 1 if preceding is None else options.resolution_us
    return Range(preceding, ending, resolution, exclude=exclude)


def _decaying(made: Range, options: FrameOptions) -> Range:
    """Say how often rows follow a frame by time alone."""
    changes = made.preceding_us if made.preceding_us is not None else made.ending_us or None
    if changes is None or options.decay_us == 0:
        return made
    if options.decay_us is not None:
        return replace(made, decay_us=options.decay_us)
    if made.resolution_us > 1 or made.preceding_us == 0:  # sawtooth, tumbling: at their very edges
        return replace(made, decay_us=1)
    return replace(made, decay_us=max(options.target_us, changes // _SHARE))


def _rows(connection: duckdb.DuckDBPyConnection, window: Node, words: Words, exclude: Exclude) -> Rows:
    preceding = None if window["start_expr"] is None else _count(connection, window["start_expr"], words)
    ending = 0 if window["end_expr"] is None else _count(connection, window["end_expr"], words)
    if preceding is not None and preceding < ending:
        hint = "begin it before it ends"
        raise FrameProblem("has a frame that ends before it begins", frame_words(window, words), hint)
    return Rows(preceding, ending, exclude)


def _lag(connection: duckdb.DuckDBPyConnection, window: Node, words: Words) -> Rows:
    arguments = [part["expression"] for part in window["arguments"]]
    count = _count(connection, arguments[1], words) if len(arguments) > 1 else 1
    return Rows(count, count)


def _bucket(connection: duckdb.DuckDBPyConnection, bucket: Node, words: Words) -> Range:
    """PARTITION BY time_bucket(a duration, event_timestamp[, an offset or origin])."""
    arguments = [part["expression"] for part in bucket["arguments"]]
    if len(arguments) not in (2, 3):
        raise FrameProblem("has a time_bucket of other arguments", words(bucket), _WRITE_BUCKET)
    time = arguments[1]
    if time["class"] != "COLUMN_REF" or time["column_names"] != [EVENT_TIME]:
        raise FrameProblem("has a time_bucket of something else than the event time", words(bucket), _WRITE_BUCKET)
    width = _duration(connection, arguments[0], words, _WRITE_BUCKET)
    origin = round(_BUCKET_ORIGIN.timestamp()) * 10**6
    if len(arguments) == 3:
        moved = _constant(connection, arguments[2], words, _WRITE_BUCKET)
        if moved.type == pa.month_day_nano_interval() and moved.as_py() is not None and not moved.as_py().months:
            origin += moved.as_py().days * _DAY_US + moved.as_py().nanoseconds // 1000
        elif pa.types.is_timestamp(moved.type) and moved.as_py() is not None:
            origin = moved.cast(pa.timestamp("us")).value
        else:
            raise FrameProblem("has a time_bucket of other arguments", words(bucket), _WRITE_BUCKET)
    return Range(0, resolution_us=width, origin_us=origin % width)


def _duration(
    connection: duckdb.DuckDBPyConnection, node: Node, words: Words, hint: str = _WRITE_FRAME, *, zero: bool = False
) -> int:
    """Return a constant duration in µs."""
    got = words(node)
    found = _constant(connection, node, words, hint)
    if found.type != pa.month_day_nano_interval() or found.as_py() is None:
        raise FrameProblem("has a frame that is not a duration", got, hint)
    length = found.as_py()
    if length.months:
        raise FrameProblem("has a frame of months", got, "write days: months differ in length")
    length_us = int(length.days * _DAY_US + length.nanoseconds // 1000)
    if length_us < 0 or (length_us == 0 and not zero):
        raise FrameProblem("has a frame that is not longer than zero", got, hint)
    if length_us > _YEARS_MAX_US:
        raise FrameProblem("has a frame of more than 100 years", got, hint)
    return length_us


def _count(connection: duckdb.DuckDBPyConnection, node: Node, words: Words) -> int:
    """Return a constant number of rows."""
    found = _constant(connection, node, words, _WRITE_COUNT)
    value = found.as_py()
    if not pa.types.is_integer(found.type) or value is None or value < 0:
        raise FrameProblem("counts rows by something else than a whole number", words(node), _WRITE_COUNT)
    if value > ROWS_MAX:
        raise FrameProblem("has a frame of too many rows", words(node), _WRITE_COUNT + ", or a duration")
    return int(value)


def _constant(connection: duckdb.DuckDBPyConnection, node: Node, words: Words, hint: str) -> Any:
    """Return the value of a constant expression, as an Arrow scalar."""
    for part in walk(node):
        name = part.get("function_name", "").casefold()
        if part["class"] not in _CONSTANT or (part["class"] == "FUNCTION" and name not in ALLOWED):
            raise FrameProblem("has a frame that is not constant", words(node), hint)
    try:
        with deadline(connection, CHECK_SECONDS_MAX):
            return connection.sql(f"SELECT {write(connection, node)} AS value").to_arrow_table().column(0)[0]
    except duckdb.Error as error:
        raise FrameProblem("has a frame that DuckDB cannot read", explain(error)[0], hint) from None


def frame_words(window: Node, words: Words) -> str:
    """Return a frame as SQL spells it; DuckDB's names of bounds end in the unit."""

    def bound(word: str, node: Node | None) -> str:
        first, second = word.split("_")[:2]
        if node is None:
            return f"{first} {second}"
        return f"{words(node)} {second}"

    ends = (window["start"], window["end"])
    unit = next((unit for unit in ("ROWS", "GROUPS") if any(word.endswith(unit) for word in ends)), "RANGE")
    start, end = bound(ends[0], window["start_expr"]), bound(ends[1], window["end_expr"])
    return f"{unit} BETWEEN {start} AND {end}"
