"""DuckDB's own answer: the declared SQL, whole, over the accepted events, against the rows that the flow made."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from freshet.flows.steps.sql import engine
from freshet.flows.steps.sql.parse import quoted
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.plan import ViewPlan

_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Compared:
    """How many rows were compared, and up to twenty that differ, each with its key and both answers."""

    rows_count: int
    values_count: int
    differing_count: int
    differing: tuple[dict[str, Any], ...]


def compare(plan: ViewPlan, events: pa.Table, final_rows: pa.Table) -> Compared:
    """Compare the final rows of a view with what DuckDB makes of the same accepted events.

    A row that only one of them has differs. Floats may differ by 1e-9 of the larger; everything else must be equal.
    """
    view = plan.view
    keys = [quoted(name) for name in (*view.entity_names, EVENT_TIME)]
    same = []
    for feature in view.features:
        name = quoted(feature.name)
        equal = f"e.{name} IS NOT DISTINCT FROM r.{name}"
        if feature.dtype.is_float:
            close = f"abs(e.{name} - r.{name}) <= 1e-9 * greatest(abs(e.{name}), abs(r.{name}))"
            equal = f"({equal} OR coalesce({close}, false))"
        same.append(equal)
    on = " AND ".join(f"e.{key} = r.{key}" for key in keys)
    found = "e._found AND r._found"
    connection = engine()
    connection.register("events", events)
    connection.register("made", final_rows)
    joined = (
        f"FROM (SELECT *, true AS _found FROM ({plan.oracle_sql})) e"  # noqa: S608  # compiled, not typed by a stranger
        f" FULL JOIN (SELECT *, true AS _found FROM made) r ON {on}"
    )
    differs = f"coalesce(NOT ({found} AND {' AND '.join(same)}), true)"
    counts = connection.sql(f"SELECT count(*), count(*) FILTER (WHERE {differs}) {joined}").fetchall()[0]
    shown = ", ".join(
        [f"coalesce(e.{key}, r.{key}) AS {key}" for key in keys]
        + [f"e.{quoted(f.name)} AS {quoted(f'{f.name} (DuckDB)')}, r.{quoted(f.name)}" for f in view.features]
    )
    differing = connection.sql(f"SELECT {shown} {joined} WHERE {differs} LIMIT {_SHOWN_MAX}").to_arrow_table()
    return Compared(counts[0], counts[0] * len(view.features), counts[1], tuple(differing.to_pylist()))
