"""The row-level parts at work: arguments of windows from events, features from window values."""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

import json
import re
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from freshet.flows.steps.sql.engine import BATCH_SECONDS_MAX, Engine, connected, deadline, engine, explain
from freshet.flows.steps.sql.parse import write
from freshet.schemas.part import DECLARED
from freshet.schemas.plan import ViewPlan

_ARGUMENT = re.compile(r"_[apr]\d+")


class Failure(NamedTuple):
    """An event on which an expression fails: its row in the batch, the features that need the first such, and why."""

    row: int
    features: str
    error: str


class Projector:
    """Computes one view's `inputs` from events of a stream. A `database`, else a new one, serves one thread."""

    def __init__(self, plan: ViewPlan, stream: str, database: Engine | None = None) -> None:
        self._plan, self._sql = plan, plan.inputs_sql[plan.view.sources.index(stream)]
        self._connection = connected(database)
        self._prepared = _Prepared(self._connection, "events", self._sql)
        self._arguments = _arguments(self._connection, self._sql)

    def project(self, events: pa.Table) -> tuple[pa.Table, list[Failure]]:
        """Return the inputs of the events, in their order, and what fails; an event that fails has no inputs."""
        for column in self._plan.events:  # of a view of several streams
            if column.name not in events.column_names:
                events = events.append_column(column.name, pa.nulls(events.num_rows, column.type))
        try:
            return self._inputs(events), []
        except duckdb.Error as error:
            failures = self._failures(events)
            if not failures:
                raise AssertionError(f"{self._sql}: {explain(error)[0]}, but on no event") from error
        fails = np.zeros(events.num_rows, np.bool_)
        fails[[failure.row for failure in failures]] = True
        return self._inputs(events.filter(pa.array(~fails))), failures

    def _inputs(self, events: pa.Table) -> pa.Table:
        return self._prepared.run(events)

    def _failures(self, events: pa.Table) -> list[Failure]:
        """Find the events that fail: TRY says which may, and each alone says why."""
        found: dict[int, Failure] = {}
        for argument, features in zip(self._arguments, self._plan.argument_features, strict=True):
            alone = _Prepared(self._connection, "suspect", f"SELECT {argument} AS value FROM suspect")
            for row in self._suspects(events, argument):
                try:
                    if row not in found:
                        alone.run(events.slice(row, 1))
                except duckdb.Error as error:
                    found[row] = Failure(row, features, explain(error)[0])
        return [found[row] for row in sorted(found)]

    def _suspects(self, events: pa.Table, argument: str) -> list[int]:
        """Return the rows on which TRY gives nothing; all of them where TRY does not help, as with memory."""
        tried = f"SELECT TRY(struct_pack(v := {argument})) IS NULL AS failed FROM suspects"
        try:
            failed = _Prepared(self._connection, "suspects", tried).run(events).column("failed")
        except duckdb.Error:
            return list(range(events.num_rows))
        return [int(row) for row in np.flatnonzero(failed.to_numpy())]


class Arguments:
    """Computes one view's arguments that need earlier events' values. Holds a DuckDB of its own."""

    def __init__(self, plan: ViewPlan) -> None:
        self._schema = plan.arguments
        self._prepared = _Prepared(engine(), "lagged", plan.lagged_sql)

    def compute(self, lagged: pa.Table) -> pa.Table:
        """Return the arguments of events, from their own `_r0`… and earlier ones' `_l0`…; what fails is NULL."""
        return self._prepared.run(lagged).cast(self._schema)


class Finisher:
    """Computes one view's features from its window values. A `database`, else a new one, serves one thread."""

    def __init__(self, plan: ViewPlan, database: Engine | None = None) -> None:
        self._row_schema = plan.view.row_schema.with_metadata({DECLARED: plan.digest.encode()})
        self._prepared = _Prepared(connected(database), "rows", plan.finish_sql)

    def finish(self, rows: pa.Table) -> pa.Table:
        """Return rows of the view's `row_schema`, in the order of the windowed rows; what fails is NULL.

        The schema's metadata say what they were made by.
        """
        return self._prepared.run(rows).cast(self._row_schema)


class _Current:
    """The table that a prepared query reads next, handed over by Arrow's stream interface without a copy."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_schema__(self) -> object:
        return self.table.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


class _Prepared:
    """One SELECT over a table that changes from call to call, its schema seldom: binding costs most of a small call."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, name: str, sql: str, seconds_max: float = BATCH_SECONDS_MAX
    ) -> None:
        self._connection, self._name, self._sql, self._seconds_max = connection, name, sql, seconds_max
        self._current: _Current | None = None

    def run(self, table: pa.Table) -> pa.Table:
        """Return what the SELECT gives over a table."""
        if self._current is None or self._current.table.schema != table.schema:
            self._current = _Current(table.schema.empty_table())
            self._connection.register(self._name, self._current)
            self._connection.execute(f"PREPARE select_{self._name} AS {self._sql}")
        self._current.table = table
        # `execute` would keep the rows, and give them by a second statement: twice the time of few rows. What DuckDB's
        # own relations call gives them at once; its version is pinned.
        with deadline(self._connection, self._seconds_max):
            result = self._connection._submit(f"EXECUTE select_{self._name}", None, "arrow")  # noqa: SLF001  # no public call does
            selected: pa.Table = result.arrow_table()
        return selected


def _arguments(connection: duckdb.DuckDBPyConnection, inputs_sql: str) -> tuple[str, ...]:
    """Return the expressions that `inputs_sql` gives as arguments, in their order."""
    found = connection.execute("SELECT json_serialize_sql(?)", [inputs_sql]).fetchall()
    items = json.loads(found[0][0])["statements"][0]["node"]["select_list"]
    return tuple(write(connection, {**item, "alias": ""}) for item in items if _ARGUMENT.fullmatch(item["alias"]))
