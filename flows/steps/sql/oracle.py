"""The judge's SQL: the declared windows in DuckDB's own, over all accepted events, with ticks and versions.

It shares nothing with `windows` but the plan's frames. What SQL leaves open is stated: events tied in time are in the
order of (event id, [stream,] partition, offset), and rows stand at ticks too, as copies of the newest event before,
marked `_tick`, which no window counts.
"""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import duckdb

from freshet.flows.steps.sql.check import Expression, frame_of, windowed
from freshet.flows.steps.sql.finish import finish_sql
from freshet.flows.steps.sql.functions import ENDS, Form, Windowed
from freshet.flows.steps.sql.parse import Node, expression, quoted, rewrite, write
from freshet.schemas.event import EVENT_TIME, OFFSET, PARTITION, STREAM
from freshet.schemas.plan import Exclude, Framed, Oracle, Range, Rows, Trace
from freshet.schemas.view import VERSION, View

_ORDERED = ("list", "arg_min", "arg_max")
_FLOATS = ("FLOAT", "DOUBLE")
_EXACT = ("sum", "avg", "var_samp", "var_pop", "stddev_samp", "stddev_pop")
_TIME = "_time"
_NO_FRAME: Node = {
    "partitions": [], "orders": [], "start": "UNBOUNDED_PRECEDING", "end": "CURRENT_ROW_RANGE", "start_expr": None,
    "end_expr": None, "exclude_clause": "NO_OTHER",
}  # fmt: skip
_COMMA = ",\n    "


def oracle_sql(
    connection: duckdb.DuckDBPyConnection, view: View, members: Sequence[Expression], *, whole_history: bool
) -> Oracle:
    """Return the SQL that gives a view's rows from its table `events`, up to the instant `$until_us`."""
    return _Oracle(connection, view, members, whole_history).made()


@dataclass
class _Oracle:
    connection: duckdb.DuckDBPyConnection
    view: View
    members: Sequence[Expression]
    whole_history: bool
    by_event: list[str] = field(default_factory=list)
    """Windows of events by count: ticks carry their values."""
    by_time: list[str] = field(default_factory=list)
    lags: dict[str, str] = field(default_factory=dict)
    frames: dict[Range, None] = field(default_factory=dict)
    exact: list[tuple[str, str, str]] = field(default_factory=list)
    values: dict[tuple[str, str], str] = field(default_factory=dict)
    """The column of each distinct window: by its SQL and frame."""
    framed: dict[str, Framed] = field(default_factory=dict)
    """Each distinct window by its column."""

    @property
    def entity(self) -> str:
        return ", ".join(map(quoted, self.view.entity_names))

    def made(self) -> Oracle:
        outers = [self._outer(one) for one in self.members]
        tolerances = {one.definition.name: self._tolerance(one) for one in self.members}
        lags = [f"{sql} AS {name}" for sql, name in self.lags.items()]
        steps = [
            ("accepted", "events of a known entity, numbered in their order", self._accepted()),
            ("lagged", "what windows need of earlier events", self._with("accepted", lags)),
            ("by_event", "windows that count events", self._with("lagged", self.by_event)),
            ("carried", "the last event of each instant: what a tick carries on", self._carried()),
            ("ticks", "when an event leaves a frame, or enters one, by time alone", self._ticks()),
            ("instants", "every event, and every tick", self._instants()),
            ("windowed", "windows in time, and how many events a row reaches", self._windowed()),
        ]
        kept = {name: sql for name, sql in tolerances.items() if sql is not None}
        finish = finish_sql(self.view, outers, "windowed WHERE _last", (VERSION,))
        traces = {one.definition.name: self._trace(one) for one in self.members}
        return Oracle(tuple(steps), finish, tuple(self.exact), kept, traces)

    # Rows

    def _with(self, table: str, columns: Sequence[str]) -> str:
        return f"SELECT {_COMMA.join(['*', *columns])}\n  FROM {table}"

    def _accepted(self) -> str:
        events = self.members[0].events
        ids, order = events.ids(self.connection), [EVENT_TIME]
        items = ["*", f"{EVENT_TIME} AS {_TIME}", "false AS _tick"]
        if ids:
            cases = " ".join(f"WHEN {index} THEN {sql}" for index, sql in enumerate(ids))
            items.append(f"{ids[0] if len(ids) == 1 else f'CASE {STREAM} {cases} END'} AS _id")
            order.append("_id NULLS LAST")
        order += [*([STREAM] if len(events.contracts) > 1 else []), PARTITION, OFFSET]
        known = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in self.view.entity_names)
        number = f"row_number() OVER (PARTITION BY {self.entity} ORDER BY {', '.join(order)}) AS _nr"
        return f"SELECT *, {number} FROM (SELECT {', '.join(items)} FROM events WHERE {known})"

    def _carried(self) -> str:
        last = f"row_number() OVER (PARTITION BY {self.entity}, {EVENT_TIME} ORDER BY _nr DESC)"
        return f"SELECT * FROM by_event QUALIFY {last} = 1"

    def _ticks(self) -> str:
        rules: dict[str, None] = {}
        for frame in self.frames:
            if frame.decay_us is None:
                continue
            time = f"epoch_us({EVENT_TIME})"
            if frame.preceding_us is not None:
                floor = time
                if frame.resolution_us > 1:
                    floor = f"({time} - {_rest(f'{time} - {frame.origin_us}', frame.resolution_us)})"
                rules[_ceil(f"{floor} + {frame.resolution_us + frame.preceding_us}", frame.decay_us)] = None
            if frame.ending_us:
                rules[_ceil(f"{time} + {frame.ending_us}", frame.decay_us)] = None
        ticks = f"unnest([{_COMMA.join(rules)}]::BIGINT[])"
        every = f"SELECT DISTINCT {self.entity}, {ticks} AS _us FROM by_event"
        return f"SELECT {self.entity}, make_timestamp(_us)::TIMESTAMPTZ AS _at FROM ({every}) WHERE _us <= $until_us"

    def _instants(self) -> str:
        same = " AND ".join(f"t.{quoted(name)} = c.{quoted(name)}" for name in self.view.entity_names)
        carried = f"SELECT c.* REPLACE (t._at AS {EVENT_TIME}, true AS _tick)"
        joined = f"FROM ticks t ASOF JOIN carried c ON {same} AND t._at >= c.{EVENT_TIME}"
        return f"SELECT * FROM by_event UNION ALL BY NAME {carried} {joined} WHERE c.{EVENT_TIME} < t._at"

    def _windowed(self) -> str:
        last = f"row_number() OVER (PARTITION BY {self.entity}, {EVENT_TIME} ORDER BY _nr DESC) = 1"
        start = "UNBOUNDED PRECEDING"
        if not self.whole_history:
            exact = [frame.preceding_us for frame in self.frames if frame.resolution_us == 1]
            bounds = [_back(frame) for frame in self.frames if frame.resolution_us > 1]
            bounds += [str(max(length for length in exact if length is not None))] if exact else []
            start = (
                f"to_microseconds({bounds[0] if len(bounds) == 1 else f'greatest({_COMMA.join(bounds)})'}) PRECEDING"
            )
        reach = f"PARTITION BY {self.entity} ORDER BY {EVENT_TIME} RANGE BETWEEN {start} AND CURRENT ROW"
        version = f"{_counted('NOT _tick', '1')} OVER ({reach}) AS {VERSION}"
        return self._with("instants i", [*self.by_time, version, f"{last} AS _last"])

    # Windows

    def _outer(self, one: Expression) -> str:
        """Return a feature's expression over the columns of `windowed`."""

        def replaced(node: Node) -> Node | None:
            if node["class"] == "WINDOW":
                return expression(self.connection, self._window(node, one))
            if node["class"] == "COLUMN_REF" and node["column_names"] == [EVENT_TIME]:
                return {**node, "column_names": [_TIME]}
            return None

        return write(self.connection, rewrite(one.node, replaced))

    def _window(self, window: Node, one: Expression) -> str:
        """Return the column of a window's value."""
        frame = frame_of(self.connection, window, one)
        sql = write(self.connection, window)
        key = (sql, repr(frame))
        if key in self.values:
            return self.values[key]
        made = windowed(window)
        assert made is not None, window["function_name"]
        column = self.values[key] = f"_o{len(self.values)}"
        inputs = [self._input(part["expression"], one) for part in window["arguments"]]
        kept = None if window["filter_expr"] is None else self._input(window["filter_expr"], one)
        if isinstance(frame, Range):
            self.frames.setdefault(frame)
            self.by_time.append(f"{self._in_time(window, made, frame, inputs, kept)} AS {column}")
        else:
            self.by_event.append(f"{self._in_rows(window, made, frame, inputs, kept)} AS {column}")
        if made.function in _EXACT and self._is_float(window, one, made):
            values = self._subquery(f"list({_guarded(inputs[0])} ORDER BY e._nr)", frame, kept)
            self.exact.append((column, made.function, values))
        taken = [part["expression"] for part in window["arguments"][: made.inputs_count]]
        taken += [] if window["filter_expr"] is None else [window["filter_expr"]]
        words = [(write(self.connection, part), _guarded(self._input(part, one))) for part in taken]
        self.framed[column] = self._framed(sql, frame, column, words, kept)
        return column

    def _framed(
        self, sql: str, frame: Range | Rows, column: str, inputs: Sequence[tuple[str, str]], kept: str | None
    ) -> Framed:
        """Return a window with its events: these are numbers, so one SQL fits every aggregate."""
        numbers, whole = "list(e._nr ORDER BY e._nr)", replace(frame, exclude=Exclude.NOTHING)
        return Framed(
            sql,
            frame,
            column,
            tuple(inputs),
            self._subquery(numbers, whole, None),
            self._subquery(numbers, frame, None),
            self._subquery(numbers, frame, kept),
        )

    def _trace(self, one: Expression) -> Trace:
        """Return what a feature is made of."""
        columns: dict[str, None] = {}
        windows: dict[str, None] = {}

        def note(node: Node) -> Node | None:
            if node["class"] == "WINDOW":
                windows.setdefault(self._window(node, one))
                return node
            if node["class"] == "COLUMN_REF":
                columns.setdefault(node["column_names"][0])
            return None

        rewrite(one.node, note)
        framed = tuple(self.framed[column] for column in windows)
        return Trace(framed, tuple(columns), *self._meaning(one))

    def _meaning(self, one: Expression) -> tuple[str, tuple[Range | Rows, ...]]:
        """Return a feature's shape, and its windows' frames."""
        frames: list[Range | Rows] = []

        def bare(node: Node) -> Node | None:
            if node["class"] == "COLUMN_REF" and node["column_names"][0] in one.lagged:
                return rewrite(one.lagged[node["column_names"][0]], bare)
            if node["class"] == "WINDOW":
                inner = {key: node[key] for key in ("arguments", "filter_expr")}
                return {**node, **rewrite(inner, bare), **_NO_FRAME}
            return None

        def note(node: Node) -> Node | None:
            if node["class"] == "WINDOW":
                frames.append(frame_of(self.connection, node, one))
                return bare(node)
            return None

        return write(self.connection, rewrite(one.node, note)), tuple(frames)

    def _is_float(self, window: Node, one: Expression, made: Windowed) -> bool:
        if made.form is Form.DOUBLE:
            return True
        return one.type_of(self.connection, window["arguments"][0]["expression"]) in _FLOATS

    def _input(self, node: Node, one: Expression) -> str:
        """Write an input; columns of earlier events' values over those of `lagged`."""

        def replaced(part: Node) -> Node | None:
            if part["class"] == "WINDOW":
                return expression(self.connection, self._lag(part))
            if part["class"] == "COLUMN_REF" and part["column_names"][0] in one.lagged:
                return rewrite(one.lagged[part["column_names"][0]], replaced)
            return None

        return write(self.connection, rewrite(node, replaced))

    def _lag(self, window: Node) -> str:
        """Return the column of `lagged` that has an earlier event's value."""
        arguments = ", ".join(write(self.connection, part["expression"]) for part in window["arguments"])
        sql = f"lag({arguments}) OVER (PARTITION BY {self.entity} ORDER BY _nr)"
        return self.lags.setdefault(sql, f"_g{len(self.lags)}")

    def _in_rows(self, window: Node, made: Windowed, frame: Rows, inputs: Sequence[str], kept: str | None) -> str:
        """Return a window that counts events, over `lagged`."""
        if frame.exclude in (Exclude.TIES, Exclude.GROUP):  # ties of one instant, which the order by number has not
            return self._subquery(_aggregate(window, made, inputs), frame, kept, "lagged")
        bounds = "UNBOUNDED" if frame.preceding is None else str(frame.preceding)
        exclude = "" if frame.exclude is Exclude.NOTHING else f" EXCLUDE {frame.exclude}"
        rows = f"ROWS BETWEEN {bounds} PRECEDING AND {frame.ending} PRECEDING{exclude}"
        over = f"PARTITION BY {self.entity} ORDER BY _nr"
        if window["type"] == "WINDOW_LAG":
            return f"lag({', '.join([_guarded(inputs[0]), *inputs[1:]])}) OVER ({over})"
        return _over(window, made, inputs, kept, f"{over} {rows}")

    def _in_time(self, window: Node, made: Windowed, frame: Range, inputs: Sequence[str], kept: str | None) -> str:
        """Return a window in time, over `instants`: as declared, but for what ticks carry."""
        bucket = [part for part in window["partitions"] if part["class"] != "COLUMN_REF"]
        over = ", ".join([self.entity, *(write(self.connection, part) for part in bucket)])
        start = "UNBOUNDED"
        if frame.preceding_us is not None and not bucket:
            start = _duration(frame.preceding_us) if frame.resolution_us == 1 else f"to_microseconds({_back(frame)})"
        end = f"{_duration(frame.ending_us)} PRECEDING" if frame.ending_us else "CURRENT ROW"
        exclude = "" if frame.exclude is Exclude.NOTHING else f" EXCLUDE {frame.exclude}"
        bounds = f"RANGE BETWEEN {start} PRECEDING AND {end}{exclude}"
        counted = "NOT _tick" if kept is None else f"NOT _tick AND {_guarded(kept)}"
        sql = _over(window, made, inputs, counted, f"PARTITION BY {over} ORDER BY {EVENT_TIME} {bounds}")
        if frame.exclude is Exclude.NOTHING:
            return sql
        return f"CASE WHEN _tick THEN {self._subquery(_aggregate(window, made, inputs), frame, kept)} ELSE {sql} END"

    def _subquery(self, aggregate: str, frame: Range | Rows, kept: str | None, row: str = "i") -> str:
        """Return an aggregate over the frame of a row `i`, event by event."""
        conditions = [f"e.{quoted(name)} = {row}.{quoted(name)}" for name in self.view.entity_names]
        if isinstance(frame, Rows):
            conditions.append(f"e._nr <= {row}._nr - {frame.ending}")
            conditions += [] if frame.preceding is None else [f"e._nr >= {row}._nr - {frame.preceding}"]
        else:
            now = f"epoch_us({row}.{EVENT_TIME})"
            conditions.append(f"epoch_us(e.{EVENT_TIME}) <= {now} - {frame.ending_us}")
            if frame.preceding_us is not None:
                conditions.append(f"epoch_us(e.{EVENT_TIME}) >= {now} - {_back(frame, f'{row}.')}")
        conditions += {
            Exclude.NOTHING: [],
            Exclude.CURRENT_ROW: [f"e._nr <> {row}._nr"],
            Exclude.TIES: [f"(e.{EVENT_TIME} <> {row}.{_TIME} OR e._nr = {row}._nr)"],
            Exclude.GROUP: [f"e.{EVENT_TIME} <> {row}.{_TIME}"],
        }[frame.exclude]
        source = f"SELECT * FROM lagged{'' if kept is None else f' WHERE {_guarded(kept)}'}"
        return f"(SELECT {aggregate} FROM ({source}) e WHERE {' AND '.join(conditions)})"

    def _tolerance(self, one: Expression) -> str | None:
        """Return how far a feature may be off where it is one window and no more; None for as floats may."""
        if one.node["class"] != "WINDOW":
            return None
        made, column = windowed(one.node), self._window(one.node, one)
        assert made is not None
        if made.function == "approx_count_distinct":
            return f"CASE WHEN {column} > 1024 THEN 0.15 * {column} ELSE 0 END"
        if made.function == "approx_quantile":
            return f"0.0101 * abs({column})"
        return None


def _guarded(sql: str) -> str:
    """Let what fails be NULL: DuckDB computes inputs of events that FILTER drops too."""
    return f"TRY({sql})"


def _aggregate(window: Node, made: Windowed, inputs: Sequence[str]) -> str:
    """Return a window's function as an aggregate, its events in order."""
    name = window["function_name"].casefold()
    value = _guarded(inputs[0]) if inputs else ""
    if made.function in ENDS:
        end = made.function.removesuffix("_value")
        there = f" FILTER (WHERE {value} IS NOT NULL)" if window["ignore_nulls"] else ""
        return f"{end}({value} ORDER BY e._nr){there}"
    return _call(name, window, made, inputs, "e._nr")


def _call(name: str, window: Node, made: Windowed, inputs: Sequence[str], number: str) -> str:
    """Return the call of an aggregate; approximate ones are judged by what they approximate."""
    guarded = [_guarded(part) for part in inputs[: made.inputs_count]] + [*inputs[made.inputs_count :]]
    if made.function == "approx_count_distinct":
        return f"count(DISTINCT {guarded[0]})"
    if made.function == "approx_quantile":
        return f"quantile_disc({', '.join([f'CAST({guarded[0]} AS DOUBLE)', *guarded[1:]])})"
    order = ""
    if made.function in _ORDERED:
        order = f" ORDER BY {number}"
    elif made.function == "mode":
        order = f" ORDER BY {guarded[0]}"
    return f"{name}({'DISTINCT ' if window['distinct'] else ''}{', '.join(guarded) or '*'}{order})"


def _over(
    window: Node,
    made: Windowed,
    inputs: Sequence[str],
    counted: str | None,
    over: str,
) -> str:
    """Return a window; `counted` says which events it counts."""
    name = window["function_name"].casefold()
    if made.function in ENDS:  # they take no FILTER
        conditions = [] if counted is None else [counted]
        conditions += [f"{_guarded(inputs[0])} IS NOT NULL"] if window["ignore_nulls"] else []
        boxed = f"{{'v': {_guarded(inputs[0])}}}"
        boxed = f"CASE WHEN {' AND '.join(conditions)} THEN {boxed} END" if conditions else boxed
        return f"struct_extract({made.function}({boxed} ORDER BY _nr IGNORE NULLS) OVER ({over}), 'v')"
    if made.function == "count" and counted is not None and not window["distinct"]:
        return f"{_counted(counted, _guarded(inputs[0]) if inputs else '1')} OVER ({over})"
    kept = "" if counted is None else f" FILTER (WHERE {counted})"
    return f"{_call(name, window, made, inputs, '_nr')}{kept} OVER ({over})"


def _counted(condition: str, value: str) -> str:
    """Return how many values there are where a condition holds.

    DuckDB counts with a FILTER row by row of each frame, in time quadratic in an entity's events; this it does not.
    """
    return f"count(CASE WHEN {condition} THEN {value} END)"


def _rest(sql: str, step: int) -> str:
    """Return how far a number lies above a multiple of `step`."""
    return f"((({sql}) % {step} + {step}) % {step})" if step > 1 else "0"


def _duration(length_us: int) -> str:
    """Write a duration as people do.

    >>> _duration(600_000_000), _duration(1_500_000)
    ("INTERVAL '10 minutes'", "INTERVAL '1500000 microseconds'")
    """
    for word, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1)):
        count, rest = divmod(length_us, size * 10**6)
        if not rest:
            return f"INTERVAL '{count} {word}'"
    return f"INTERVAL '{length_us} microseconds'"


def _ceil(sql: str, step: int) -> str:
    return f"({sql} + ({step} - {_rest(sql, step)}) % {step})" if step > 1 else f"({sql})"


def _back(frame: Range, row: str = "") -> str:
    """Return how far before its instant a frame begins, in µs."""
    assert frame.preceding_us is not None
    start = f"epoch_us({row}{EVENT_TIME}) - {frame.preceding_us} - {frame.origin_us}"
    return (
        f"({frame.preceding_us} + {_rest(start, frame.resolution_us)})"
        if frame.resolution_us > 1
        else f"{frame.preceding_us}"
    )
