"""DuckDB's own answer: the declared SQL, whole, over the accepted events, against the rows that the flow made.

Where DuckDB's sums of doubles cancel, exact rational arithmetic judges: the windows of rows that differ are computed
anew from the values in their frames, and the expressions around them once more.
"""

# ruff: noqa: S608  # compiled SQL, not typed by a stranger

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import duckdb
import pyarrow as pa

from freshet.flows.steps.sql import engine
from freshet.flows.steps.sql.engine import explain
from freshet.flows.steps.sql.parse import quoted
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, OFFSET, PARTITION, STREAM
from freshet.schemas.plan import Framed, Trace, ViewPlan
from freshet.schemas.view import CREATED, VERSION, Feature

_SHOWN_MAX = 20
_JUDGED_MAX = 2_000
_MEMORY = "8GB"


@dataclass(frozen=True, slots=True)
class Compared:
    """How many rows and values were compared, and up to twenty rows that differ, each with its key and both answers.

    `judged_count` is how many rows DuckDB's floats were too far off for, and exact arithmetic was asked.
    """

    rows_count: int
    values_count: int
    differing_count: int
    differing: tuple[dict[str, Any], ...]
    judged_count: int = 0


def union_of(streams: Sequence[pa.Table]) -> pa.Table:
    """Return the events of several streams as one table, columns by name; of one stream its own."""
    if len(streams) == 1:
        return streams[0]
    places = [
        table.append_column(pa.field(STREAM, pa.int32()), pa.array([place] * table.num_rows, pa.int32()))
        for place, table in enumerate(streams)
    ]
    return pa.concat_tables(places, promote_options="default")


def compare(
    plan: ViewPlan, events: pa.Table, final_rows: pa.Table, until_us: int, since_us: int | None = None
) -> Compared:
    """Compare the final rows of a view with what DuckDB makes of the same accepted events.

    Both are taken from `since_us` on, if it is given, up to `until_us` (µs since the epoch), to which all ticks must
    have been made. `events` of several
    streams is their union, in the order of `view.sources`. A row that only one of them has differs. Floats may differ
    by 1e-9 of the larger, approximate values by their error; everything else, and `_version`, must be equal. Raises
    `Refused` where DuckDB fails, as on a sum that overflows its type.
    """
    connection, judged_count = _answered(plan, events, final_rows, until_us, since_us)
    rows_count, differing_count = _count(connection, plan)
    keys = [quoted(name) for name in (*plan.view.entity_names, EVENT_TIME)]
    shown = [f"coalesce(e.{key}, r.{key}) AS {key}" for key in keys]
    names = [*(feature.name for feature in plan.view.features), VERSION]
    shown += [f"e.{quoted(name)} AS {quoted(f'{name} (DuckDB)')}, r.{quoted(name)}" for name in names]
    found = connection.sql(
        f"SELECT {', '.join(shown)} {_joined(plan)} WHERE {_differs(plan)} ORDER BY ALL LIMIT {_SHOWN_MAX}"
    )
    differing = tuple(found.to_arrow_table().to_pylist())
    return Compared(rows_count, rows_count * len(plan.view.features), differing_count, differing, judged_count)


def answers(plan: ViewPlan, events: pa.Table, rows: pa.Table, until_us: int) -> pa.Table:
    """Return what DuckDB makes of the same accepted events at the instants of some rows.

    One line a row of `rows`: its entity, `event_timestamp`, and DuckDB's features and `_version`, null where it has no
    such row; for each float feature how far off it may be, as `_t_<feature>`. `rows`, `events` and `until_us` are as
    for `compare`, and so is what is raised; `events` need only be those in the reach of the rows.
    """
    connection, _ = _answered(plan, events, rows, until_us)
    keys = [f"r.{quoted(name)}" for name in (*plan.view.entity_names, EVENT_TIME)]
    shown = [f"e.{quoted(feature.name)}" for feature in plan.view.features]
    for feature in plan.view.features:
        name = quoted(feature.name)
        if feature.name in plan.oracle.tolerances or feature.dtype.is_float:
            near = f"1e-9 * greatest(abs(e.{name}), abs(r.{name}))" if feature.dtype.is_float else "0"
            known = f"e.{quoted(f'_t_{feature.name}')}" if feature.name in plan.oracle.tolerances else "0"
            shown.append(f"greatest({known}, {near}) AS {quoted(f'_t_{feature.name}')}")
    joined = _joined(plan).replace("FULL JOIN", "RIGHT JOIN")
    return connection.sql(f"SELECT {', '.join([*keys, *shown, f'e.{VERSION}'])} {joined}").to_arrow_table()


@dataclass(frozen=True, slots=True)
class Event:
    """An accepted event of an entity: its number in the judge's order, where it stands, and what a feature takes of it.

    `stream` is the place of its stream among the view's; `at_us` and `available_us` are its own time and Kafka's.
    `inputs` are values by their SQL; what fails there is NULL.
    """

    number: int
    stream: int
    partition: int
    offset: int
    at_us: int
    available_us: int
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a feature at one instant: its value, and its events by their numbers.

    `between` are those between the frame's ends, `members` those of them that EXCLUDE leaves, `counted` those of these
    that FILTER lets through.
    """

    framed: Framed
    value: Any
    between: tuple[int, ...]
    members: tuple[int, ...]
    counted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What DuckDB says of a feature of one entity at the newest instant that has a row, by itself or among those given.

    `answer` has its row's features and `_version`, None where it has no such row. `differing` names what differs from
    the given row, if both are there, and `judged` says that exact arithmetic was asked. `newest` is the number of the
    newest event up to then, None where there is none.
    """

    at_us: int | None
    answer: Mapping[str, Any] | None
    differing: frozenset[str] = frozenset()
    judged: bool = False
    newest: int | None = None
    windows: tuple[Window, ...] = ()
    events: tuple[Event, ...] = ()


def explained(plan: ViewPlan, feature: str, events: pa.Table, rows: pa.Table, until_us: int) -> Answer:
    """Return what DuckDB makes of one entity's accepted events, and which of them each window of a feature sees.

    The instant is that of the newest row up to `until_us`, of `rows` (the view's final ones) or DuckDB's own. `events`
    are all of the entity in the rows' reach, or more. Other arguments, and what is raised, are as for `compare`.
    """
    connection, judged_count = _answered(plan, events, rows, until_us)
    at_us = connection.sql(
        f"SELECT max(epoch_us({EVENT_TIME})) FROM (FROM expected UNION ALL BY NAME FROM made)"
    ).fetchall()[0][0]
    trace = plan.oracle.traces[feature]
    seen = _events(connection, plan, trace)
    if at_us is None:
        return Answer(None, None, events=seen)
    names = [*(one.name for one in plan.view.features), VERSION]
    here = f"WHERE epoch_us({EVENT_TIME}) = {at_us}"
    found = connection.sql(f"SELECT {', '.join(map(quoted, names))} FROM expected {here}").to_arrow_table().to_pylist()
    same = [f"{_same(plan, one)} AS {quoted(one.name)}" for one in plan.view.features]
    same.append(f"e.{VERSION} = r.{VERSION} AS {VERSION}")
    both = f"{_joined(plan)} WHERE e._found AND r._found AND epoch_us(e.{EVENT_TIME}) = {at_us}"
    alike = connection.sql(f"SELECT {', '.join(same)} {both}").to_arrow_table().to_pylist()
    differing = frozenset(name for name in names if alike and not alike[0][name])
    seen_at = _windows(connection, plan, trace, f"epoch_us({EVENT_TIME}) = {at_us}")
    newest, windows = next(iter(seen_at.values()), (None, ()))
    return Answer(at_us, found[0] if found else None, differing, judged_count > 0, newest, windows, seen)


def _events(connection: duckdb.DuckDBPyConnection, plan: ViewPlan, trace: Trace) -> tuple[Event, ...]:
    """Return all accepted events of the entity, in the judge's order."""
    inputs = {words: sql for framed in trace.windows for words, sql in framed.inputs}
    inputs |= {name: quoted(name) for name in trace.columns}
    stream = STREAM if len(plan.view.sources) > 1 else "0"
    items = ["_nr", stream, PARTITION, OFFSET, f"epoch_us({EVENT_TIME})", f"epoch_us({AVAILABLE_AT})"]
    found = connection.sql(
        f"WITH {_first_steps(plan)} SELECT {', '.join([*items, *inputs.values()])} FROM lagged ORDER BY _nr"
    ).fetchall()
    return tuple(
        Event(number, place, partition, offset, at_us, available_us, dict(zip(inputs, values, strict=True)))
        for number, place, partition, offset, at_us, available_us, *values in found
    )


def _windows(
    connection: duckdb.DuckDBPyConnection, plan: ViewPlan, trace: Trace, where: str
) -> dict[tuple[Any, ...], tuple[int, tuple[Window, ...]]]:
    """Return, by entity and instant (µs) of some rows, their newest event, and a feature's windows there."""
    entity = plan.view.entity_names
    items = [*(f"i.{quoted(name)}" for name in entity), f"epoch_us(i.{EVENT_TIME})", "i._nr"]
    keys_count, count = len(entity) + 1, len(trace.windows)
    items += [f"i.{framed.column}" for framed in trace.windows]
    items += [sql for framed in trace.windows for sql in (framed.between, framed.members, framed.counted)]
    rows = f"SELECT * FROM windowed WHERE _last AND {where}"
    found: dict[tuple[Any, ...], tuple[int, tuple[Window, ...]]] = {}
    for line in connection.sql(f"WITH {_first_steps(plan)} SELECT {', '.join(items)} FROM ({rows}) i").fetchall():
        newest, *rest = line[keys_count:]
        values, lists = rest[:count], [tuple(numbers or ()) for numbers in rest[count:]]
        each = zip(trace.windows, values, lists[::3], lists[1::3], lists[2::3], strict=True)
        found[line[:keys_count]] = newest, tuple(Window(*one) for one in each)
    return found


def _first_steps(plan: ViewPlan) -> str:
    """Return the steps that read events alone."""
    return ", ".join(f"{name} AS ({sql})" for name, _, sql in plan.oracle.steps[:2])


def _answered(
    plan: ViewPlan, events: pa.Table, rows: pa.Table, until_us: int, since_us: int | None = None
) -> tuple[duckdb.DuckDBPyConnection, int]:
    """Make the tables `made`, of the rows, and `expected`, of the events; say how many rows exact arithmetic judged."""
    names = [*plan.view.entity_names, EVENT_TIME, *(feature.name for feature in plan.view.features), VERSION]
    connection = engine(memory_limit=_MEMORY)
    connection.register("events", events)
    connection.register("given", rows.select([*names, CREATED]))
    within = f"f.{EVENT_TIME} <= make_timestamp({until_us})::TIMESTAMPTZ"
    if since_us is not None:
        within += f" AND f.{EVENT_TIME} >= make_timestamp({since_us})::TIMESTAMPTZ"
    connection.execute(f"CREATE TEMP TABLE made AS SELECT *, true AS _found FROM given f WHERE {within}")
    try:
        connection.execute(f"CREATE TEMP TABLE windowed AS {plan.oracle.windowed}", {"until_us": until_us})
    except duckdb.Error as error:
        hint = "an overflow, say: cast the input to a wider type, such as DOUBLE"
        fact = "cannot be compared: DuckDB cannot compute it from these events"
        raise Refused([Problem("feature view", plan.view.name, fact, explain(error)[0], hint)]) from error
    _finish(connection, plan, within)
    judged_count = 0
    if plan.oracle.exact and _count(connection, plan)[1]:
        judged_count = _judge(connection, plan)
        _finish(connection, plan, within)
    return connection, judged_count


def _finish(connection: duckdb.DuckDBPyConnection, plan: ViewPlan, within: str) -> None:
    """Make the expected rows of the windows' values."""
    keys = [*plan.view.entity_names, EVENT_TIME]
    joined = " AND ".join(f"f.{quoted(key)} = w.{quoted(key)}" for key in keys)
    tolerances = [f"{sql} AS {quoted(f'_t_{name}')}" for name, sql in plan.oracle.tolerances.items()]
    selected = ", ".join(["f.*", *tolerances, "true AS _found"])
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE expected AS SELECT {selected} FROM ({plan.oracle.finish}) f"
        f" JOIN (SELECT * FROM windowed WHERE _last) w ON {joined} WHERE {within}"
    )


def _count(connection: duckdb.DuckDBPyConnection, plan: ViewPlan) -> tuple[int, int]:
    """Return how many rows there are, and how many of them differ."""
    counts = connection.sql(f"SELECT count(*), count(*) FILTER (WHERE {_differs(plan)}) {_joined(plan)}").fetchall()[0]
    return int(counts[0]), int(counts[1])


def _joined(plan: ViewPlan) -> str:
    keys = [quoted(name) for name in (*plan.view.entity_names, EVENT_TIME)]
    return "FROM expected e FULL JOIN made r ON " + " AND ".join(f"e.{key} = r.{key}" for key in keys)


def _differs(plan: ViewPlan) -> str:
    """Return the condition under which a row differs."""
    same = [_same(plan, feature) for feature in plan.view.features]
    same.append(f"e.{VERSION} = r.{VERSION}")
    return f"coalesce(NOT (e._found AND r._found AND {' AND '.join(same)}), true)"


def _same(plan: ViewPlan, feature: Feature) -> str:
    name = quoted(feature.name)
    equal = f"e.{name} IS NOT DISTINCT FROM r.{name}"
    if feature.name in plan.oracle.tolerances:
        return f"({equal} OR coalesce(abs(e.{name} - r.{name}) <= e.{quoted(f'_t_{feature.name}')}, false))"
    if feature.dtype.is_float:
        close = f"abs(e.{name} - r.{name}) <= 1e-9 * greatest(abs(e.{name}), abs(r.{name}))"
        return f"({equal} OR coalesce({close}, false))"
    return equal


def _judge(connection: duckdb.DuckDBPyConnection, plan: ViewPlan) -> int:
    """Put exact values in the place of DuckDB's, in the rows that differ; return how many rows those are."""
    keys = [quoted(name) for name in (*plan.view.entity_names, EVENT_TIME)]
    same = " AND ".join(f"i.{key} = d.{key}" for key in keys)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE differing AS SELECT {', '.join(f'e.{key}' for key in keys)} {_joined(plan)}"
        f" WHERE {_differs(plan)} AND e._found AND r._found LIMIT {_JUDGED_MAX}"
    )
    lists = ", ".join(f"{sql} AS {column}" for column, _, sql in plan.oracle.exact)
    rows = connection.sql(
        f"WITH {_first_steps(plan)} SELECT {', '.join(f'i.{key}' for key in keys)}, {lists}"
        f" FROM (SELECT i.* FROM windowed i JOIN differing d ON {same} WHERE i._last) i"
    ).to_arrow_table()
    for column, function, _ in plan.oracle.exact:
        place = rows.column_names.index(column)
        exact = [EXACT[function](values or []) for values in rows.column(column).to_pylist()]
        rows = rows.set_column(place, column, pa.array(exact, pa.float64()))
    connection.register("exact", rows)
    values = ", ".join(f"{column} = x.{column}" for column, _, _ in plan.oracle.exact)
    same = " AND ".join(f"windowed.{key} = x.{key}" for key in keys)
    connection.execute(f"UPDATE windowed SET {values} FROM exact x WHERE {same} AND windowed._last")
    return int(rows.num_rows)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _special(values: Sequence[float]) -> float | None:
    """Return what a sum is where not all is finite."""
    special = [value for value in values if not math.isfinite(value)]
    return float(sum(special)) if special else None


def _nearest(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _sum(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    special = _special(known)
    if special is not None or not known:
        return special
    return _nearest(sum(map(Fraction, known), Fraction(0)))


def _avg(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(_known(values))


def _variance(fewer: int, *, root: bool) -> Callable[[Sequence[float | None]], float | None]:
    def exact(values: Sequence[float | None]) -> float | None:
        known = _known(values)
        if len(known) <= fewer:
            return None
        if _special(known) is not None:
            return math.nan
        numbers = [*map(Fraction, known)]
        mean = sum(numbers, Fraction(0)) / len(numbers)
        spread = _nearest(sum(((number - mean) ** 2 for number in numbers), Fraction(0)) / (len(numbers) - fewer))
        return math.sqrt(spread) if root else spread

    return exact


EXACT: dict[str, Callable[[Sequence[float | None]], float | None]] = {
    "sum": _sum,
    "avg": _avg,
    "var_samp": _variance(1, root=False),
    "var_pop": _variance(0, root=False),
    "stddev_samp": _variance(1, root=True),
    "stddev_pop": _variance(0, root=True),
}
"""What exact rational arithmetic makes of a frame's values, NULLs left out."""
