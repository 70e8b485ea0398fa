"""The row-level parts at work: arguments of windows from events, features from window values."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from freshet.flows.steps.sql.engine import BATCH_SECONDS_MAX, CHECK_SECONDS_MAX, deadline, engine, explain
from freshet.flows.steps.sql.parse import write
from freshet.schemas.plan import ViewPlan


class Failure(NamedTuple):
    """An event on which an expression fails: its row in the batch, the features that need the expression, and why."""

    row: int
    features: str
    error: str


class Projector:
    """Computes one view's `inputs` from events. Holds a DuckDB of its own: one thread at a time."""

    def __init__(self, plan: ViewPlan) -> None:
        self._plan = plan
        self._connection = engine()
        self._arguments = _arguments(self._connection, plan.inputs_sql)

    def project(self, events: pa.Table) -> tuple[pa.Table, list[Failure]]:
        """Return the inputs of the events, in their order, and what fails; an event that fails has no inputs."""
        try:
            return self._inputs(events), []
        except duckdb.Error as error:
            failures = [*self._failures(events)]
            if not failures:
                raise AssertionError(f"{self._plan.inputs_sql}: {explain(error)[0]}, but on no event") from error
        fails = np.zeros(events.num_rows, np.bool_)
        fails[[failure.row for failure in failures]] = True
        return self._inputs(events.filter(pa.array(~fails))), failures

    def _inputs(self, events: pa.Table) -> pa.Table:
        return _run(self._connection, "events", events, self._plan.inputs_sql, BATCH_SECONDS_MAX)

    def _failures(self, events: pa.Table) -> Iterator[Failure]:
        """Find the events that fail: TRY says which may, and each alone says why."""
        for argument, features in zip(self._arguments, self._plan.argument_features, strict=True):
            for row in self._suspects(events, argument):
                try:
                    alone = f"SELECT {argument} AS value FROM events"
                    _run(self._connection, "events", events.slice(row, 1), alone, CHECK_SECONDS_MAX)
                except duckdb.Error as error:
                    yield Failure(row, features, explain(error)[0])

    def _suspects(self, events: pa.Table, argument: str) -> list[int]:
        """Return the rows on which TRY gives nothing; all of them where TRY does not help, as with memory."""
        tried = f"SELECT TRY(struct_pack(v := {argument})) IS NULL AS failed FROM events"
        try:
            failed = _run(self._connection, "events", events, tried, BATCH_SECONDS_MAX).column("failed")
        except duckdb.Error:
            return list(range(events.num_rows))
        return np.flatnonzero(failed.to_numpy()).tolist()  # type: ignore[no-any-return]  # pyarrow is untyped


class Finisher:
    """Computes one view's features from its window values. Holds a DuckDB of its own: one thread at a time."""

    def __init__(self, plan: ViewPlan) -> None:
        self._plan = plan
        self._connection = engine()

    def finish(self, rows: pa.Table) -> pa.Table:
        """Return rows of the view's `row_schema`, in the order of the windowed rows; what fails is NULL."""
        finished = _run(self._connection, "rows", rows, self._plan.finish_sql, BATCH_SECONDS_MAX)
        return finished.cast(self._plan.view.row_schema)


def _run(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table, sql: str, seconds: float) -> pa.Table:
    connection.register(name, table)
    with deadline(connection, seconds):
        return connection.sql(sql).to_arrow_table()


def _arguments(connection: duckdb.DuckDBPyConnection, inputs_sql: str) -> tuple[str, ...]:
    """Return the expressions that `inputs_sql` calls `_a0`, `_a1`, …"""
    found = connection.execute("SELECT json_serialize_sql(?)", [inputs_sql]).fetchall()
    items = json.loads(found[0][0])["statements"][0]["node"]["select_list"]
    return tuple(write(connection, {**item, "alias": ""}) for item in items if item["alias"].startswith("_a"))
