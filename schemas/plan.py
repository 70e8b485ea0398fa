"""What a declaration compiles to: for each view the SQL of its row-level parts and the windows between them.

An event passes three stages: `inputs_sql` computes what the windows need of it, the windows fold that per entity, and
`finish_sql` computes the features from the folds. Stages one and three are row-level and run in DuckDB; stage two is
ours.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import cached_property

import pyarrow as pa

from freshet.schemas.view import View

PARTITION_BITS = 20
"""In a view of several streams, `_partition` of the inputs has the stream's place above so many bits."""

APPROXIMATE = ("approx_count_distinct", "approx_quantile")
"""Functions whose values are near those of the SQL that they are judged by."""

_NOTHING = pa.schema([])


class Exclude(StrEnum):
    """What a frame leaves out: SQL's EXCLUDE. The current row is the newest event up to q, its ties share its time."""

    NOTHING = "NO OTHERS"
    CURRENT_ROW = "CURRENT ROW"
    TIES = "TIES"
    GROUP = "GROUP"


@dataclass(frozen=True, slots=True)
class Range:
    """A frame in time: at instant q the events t with floor(q - preceding) <= t <= q - ending, ties included.

    `floor` rounds down to origin + k · resolution. So a sliding window has a resolution of 1 µs, a sawtooth window a
    longer one, and a tumbling window of w is `Range(0, resolution_us=w)`: the bucket of q so far. `preceding_us` is
    None for UNBOUNDED PRECEDING. `decay_us` is the interval of the ticks at which rows follow the frame though no event
    comes: 1 for the very instant, None for never.
    """

    preceding_us: int | None
    ending_us: int = 0
    resolution_us: int = 1
    origin_us: int = 0
    exclude: Exclude = Exclude.NOTHING
    decay_us: int | None = None

    @property
    def span_us(self) -> int | None:
        """How far back from q the frame can reach; None for all of the past."""
        return None if self.preceding_us is None else self.preceding_us + self.resolution_us - 1


@dataclass(frozen=True, slots=True)
class Rows:
    """A frame in events: from `preceding` before the current row to `ending` before it, 0 being the current row.

    The current row of q is the newest event up to q; events are ordered by (event time, event id, partition, offset).
    `preceding` is None for UNBOUNDED PRECEDING.
    """

    preceding: int | None
    ending: int = 0
    exclude: Exclude = Exclude.NOTHING


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One distinct window aggregate of a view: a function of `windows.aggregates.FUNCTIONS`.

    `argument` is the input column `_a<argument>`; None for count(*). `parameter` is the second argument of quantiles.
    """

    function: str
    argument: int | None
    result_type: str
    frame: Range | Rows
    parameter: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Lag:
    """A value of an earlier event that arguments need: `_l<n>`, n being its place in `ViewPlan.lags`.

    It is column `column` of the inputs, of the event that stands `rows` events before; where there is none, the event's
    own column `default`, or NULL.
    """

    column: str
    rows: int
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Framed:
    """One window of a feature, event by event, as the judge sees it.

    `sql` is the window, `inputs` the SQL of what it takes of an event, FILTER's condition last, each with its words for
    people; both read an event of the step `lagged`. `column` has its value in `windowed`. The rest is SQL of a list of
    events, by their `_nr`, for a row `i` of `windowed`: those between the frame's two ends, those of them that EXCLUDE
    leaves, and those of these that FILTER lets through.
    """

    sql: str
    frame: Range | Rows
    column: str
    inputs: tuple[tuple[str, str], ...]
    between: str
    members: str
    counted: str


@dataclass(frozen=True, slots=True)
class Trace:
    """What a feature is made of: its windows, and the columns that it takes of the newest event alone.

    `shape` is its expression with everything in place that has a name, but no window's entity and frame; `frames` has
    these, a frame for each window in the order of the text. Of equal shapes and frames the values are equal, but that
    `decay_us` says when rows stand, not what they hold.
    """

    windows: tuple[Framed, ...]
    columns: tuple[str, ...]
    shape: str = ""
    frames: tuple[Range | Rows, ...] = ()


@dataclass(frozen=True)
class Oracle:
    """A view's rows in DuckDB's own windows, from a table `events` of accepted events.

    `steps` are named SELECTs, each with what it is for; the last, `windowed`, has every window's value. `finish` makes
    the features of it, and `_version`. Ticks go up to the parameter `$until_us`. `exact` has, for each window that
    adds up doubles, its column, its function, and the SQL of its frame's values for a row `i`. `tolerances` has, for
    features that are one approximate window, how far off they may be. `traces` has what each feature is made of.
    """

    steps: tuple[tuple[str, str, str], ...]
    finish: str
    exact: tuple[tuple[str, str, str], ...] = ()
    tolerances: Mapping[str, str] = field(default_factory=dict)
    traces: Mapping[str, Trace] = field(default_factory=dict)

    def mentions(self, column: str) -> bool:
        """Say whether any of the SQL may read a column of the events; of one that it does not, no value matters."""
        return column.casefold() in self._words

    @cached_property
    def _words(self) -> frozenset[str]:
        every = [str(self), *self.tolerances.values(), *(sql for _, _, sql in self.exact)]
        return frozenset(re.findall(r"\w+", " ".join(every).casefold()))

    @property
    def windowed(self) -> str:
        """The SQL of all steps."""
        steps = ",\n".join(f"{name} AS (  -- {purpose}\n  {sql}\n)" for name, purpose, sql in self.steps)
        return f"WITH {steps}\nSELECT * FROM windowed"

    def __str__(self) -> str:
        return self.windowed.removesuffix("SELECT * FROM windowed") + self.finish


IN_CALENDAR = "BETWEEN TIMESTAMPTZ '0001-01-01 00:00:00Z' AND TIMESTAMPTZ '9999-12-31 23:59:59.999999Z'"
"""What SQL says of a time that Python, and so Feast, can hold."""
_OF_THE_CALENDAR = re.compile(rf"CASE WHEN (\w+) {re.escape(IN_CALENDAR)} THEN (date_trunc\('second', \1\)) END")


@dataclass(frozen=True)
class ViewPlan:
    """One view, compiled.

    `inputs_sql` reads `events` (a contract's accepted events) and gives `inputs`: the entity, `event_timestamp`,
    `_partition`, `_offset`, `_available_at`, the event id as `_id` where the streams have one, the aggregates'
    arguments `_a0`… with their FILTER folded in, and the `payload`, `_p0`…: definitions without a window, and plain
    columns around windows. A view of several streams has an `inputs_sql` for each, in the order of `view.sources`.

    Arguments that need earlier events' values are not among the inputs. They come, as `arguments`, from `lagged_sql`,
    which reads `lagged`: the columns `_r0`… of the inputs, and the `lags`, `_l0`…

    `finish_sql` reads `rows`, where the arguments have become window values `_w0`… in the order of `aggregates`, and
    gives the view's `row_schema`. `oracle` is all of it in DuckDB's own windows. With `whole_history` a row depends on
    everything up to its time, else on what its longest frame holds. `argument_features` names, for each argument of
    `inputs_sql`, then each value of the payload and each of `_r0`…, the features that need it. `events` has the columns
    of accepted events, of all streams together.
    """

    view: View
    inputs_sql: tuple[str, ...]
    inputs: pa.Schema
    aggregates: tuple[Aggregate, ...]
    payload: tuple[str, ...]
    finish_sql: str
    oracle: Oracle
    whole_history: bool
    argument_features: tuple[str, ...] = ()
    events: pa.Schema = _NOTHING
    lags: tuple[Lag, ...] = ()
    lagged_sql: str = ""
    arguments: pa.Schema = _NOTHING

    @property
    def digest(self) -> str:
        """What it computes: of equal digests, equal rows of views of one name.

        The oracle's SQL says neither of which streams its events are, nor what it only judges by something exact. Most
        views are named after their streams, and are exact: their digests are those of before these were told apart.
        Nor did it say that a time beyond the calendar is NULL: such a row could not be read.
        """
        view, said = self.view, [_OF_THE_CALENDAR.sub(r"\2", str(self.oracle))]
        if not view.name.startswith("_".join(view.sources).lower()):
            said.append(f"of {', '.join(view.sources)}")
        said += [f"{made.function} of {made.argument}" for made in self.aggregates if made.function in APPROXIMATE]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]

    @property
    def frames(self) -> tuple[Range | Rows, ...]:
        """The distinct frames."""
        return tuple(dict.fromkeys(made.frame for made in self.aggregates))

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The distinct frames in time."""
        return tuple(frame for frame in self.frames if isinstance(frame, Range))

    @property
    def reach_us(self) -> int | None:
        """How far back from its instant a row can depend on events; None for all of the past."""
        spans = [frame.span_us for frame in self.ranges]
        return None if self.whole_history or None in spans else max(filter(None, spans), default=0)

    @property
    def lookback_us(self) -> int | None:
        """How far back from its instant events say that there is a row, and what it is; None for all of the past.

        It is more than the reach: a tick is made by an event that has left a frame, an interval ago at most.
        """
        interval_us = max((frame.decay_us or 0 for frame in self.ranges), default=0)
        return None if self.reach_us is None else self.reach_us + interval_us


@dataclass(frozen=True)
class Pipeline:
    """Every view of a project."""

    project: str
    plans: tuple[ViewPlan, ...]

    @property
    def views(self) -> tuple[View, ...]:
        """The feature views."""
        return tuple(plan.view for plan in self.plans)

    def plan(self, view_name: str) -> ViewPlan:
        """Return the plan of a view that is known to exist."""
        return next(plan for plan in self.plans if plan.view.name == view_name)

    def of_source(self, source: str) -> tuple[ViewPlan, ...]:
        """Return the plans of the views that a stream feeds."""
        return tuple(plan for plan in self.plans if source in plan.view.sources)
